"""Clipping, proposal selection, decoding and NMS (postprocess.py) against plain Python."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from mimicdet.postprocess import clip_boxes, detections, select_proposals

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = 4 + torch.rand(count, 2, generator=generator) * 30
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=1)


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area - w * h)


def plain_nms(boxes, scores, thresh):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= thresh for j in kept):
            kept.append(i)
    return kept


def test_boxes_are_clipped_to_height_and_width():
    boxes = torch.tensor([[[-3.0, -4.0, 5.0, 6.0], [10.0, 20.0, 90.0, 80.0]]])
    clipped = clip_boxes(boxes, (30, 50))
    expected = torch.tensor([[[0.0, 0.0, 5.0, 6.0], [10.0, 20.0, 50.0, 30.0]]])
    assert torch.equal(clipped, expected)
    assert boxes[0, 0, 0] == -3  # a new tensor


@pytest.mark.parametrize("topk", [5, 20, 500])
def test_inference_takes_the_best_objectness_without_nms(topk):
    boxes = random_boxes(60, (64, 64), seed=0)
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1))
    boxes[10] = torch.tensor([5.0, 5.0, 5.0, 9.0])  # empty
    logits[10] = 99
    logits[20] = float("nan")
    logits[30] = float("inf")
    valid = [i for i in range(60) if i not in (10, 20, 30)]
    expected = sorted(valid, key=lambda i: -float(logits[i]))[:topk]
    assert select_proposals(boxes, logits, topk).tolist() == expected


@pytest.mark.parametrize("thresh", [0.3, 0.8])
@pytest.mark.parametrize("pre_nms_topk", [0, 40])
def test_training_runs_nms_over_all_then_cuts(thresh, pre_nms_topk):
    boxes = random_boxes(100, (40, 40), seed=2)
    boxes[50:] = boxes[:50] + torch.rand(50, 1, generator=torch.Generator().manual_seed(1))
    boxes[7, 2] = boxes[7, 0] - 1  # empty
    logits = torch.randn(100, generator=torch.Generator().manual_seed(3))
    entering = sorted((i for i in range(100) if i != 7), key=lambda i: -float(logits[i]))
    entering = entering[: pre_nms_topk or None]
    kept = plain_nms(
        [boxes[i].tolist() for i in entering], [float(logits[i]) for i in entering], thresh
    )
    expected = [entering[i] for i in kept]
    assert len(expected) < len(entering)
    found = select_proposals(boxes, logits, 15, thresh, pre_nms_topk)
    assert found.tolist() == expected[:15]


def test_select_from_nothing():
    none = torch.zeros(0, 4)
    for thresh in (0.8, 1.0):
        assert select_proposals(none, torch.zeros(0), 10, thresh).tolist() == []
    empty = torch.ones(3, 4)
    assert select_proposals(empty, torch.zeros(3), 10, 0.8).tolist() == []


def plain_detections(boxes, logits, deltas, size, num_classes, score_thresh, nms_thresh, topk):
    """Decode, softmax, threshold, NMS class by class, best topk: one image, no tensor operator."""
    height, width = size
    decoded, found = [], []
    for box, (dx, dy, dw, dh) in zip(boxes, deltas):
        w, h = box[2] - box[0], box[3] - box[1]
        cx = box[0] + w / 2 + dx / WEIGHTS[0] * w
        cy = box[1] + h / 2 + dy / WEIGHTS[1] * h
        w, h = w * math.exp(dw / WEIGHTS[2]), h * math.exp(dh / WEIGHTS[3])
        corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        limits = [width, height, width, height]
        decoded.append([min(max(v, 0.0), m) for v, m in zip(corners, limits)])
    exponentials = [[math.exp(v) for v in row] for row in logits]
    scores = [[v / sum(row) for v in row] for row in exponentials]
    for c in range(num_classes):
        rows = [i for i in range(len(boxes)) if scores[i][c] > score_thresh]
        kept = plain_nms([decoded[i] for i in rows], [scores[i][c] for i in rows], nms_thresh)
        found += [(scores[rows[k]][c], c, decoded[rows[k]]) for k in kept]
    return sorted(found, key=lambda f: -f[0])[:topk]


@pytest.mark.parametrize("topk", [8, 100])
def test_detections_agree_with_plain_python(topk):
    sizes, counts = [(40, 50), (64, 30), (50, 50)], [40, 0, 25]
    generator = torch.Generator().manual_seed(5)
    boxes = [random_boxes(n, s, i) for i, (n, s) in enumerate(zip(counts, sizes))]
    logits = torch.randn(65, 4, generator=generator) * 2
    deltas = torch.randn(65, 4, generator=generator)
    results = detections(
        boxes, logits, deltas, sizes, Box2BoxTransform(weights=WEIGHTS), 0.3, 0.5, topk
    )
    assert [r.image_size for r in results] == sizes
    starts = [0, 40, 40, 65]
    for i, result in enumerate(results):
        part = slice(starts[i], starts[i + 1])
        expected = plain_detections(
            boxes[i].tolist(),
            logits[part].tolist(),
            deltas[part].tolist(),
            sizes[i],
            3,
            0.3,
            0.5,
            topk,
        )
        assert len(result) == len(expected)
        assert result.pred_classes.tolist() == [c for _, c, _ in expected]
        assert result.scores.tolist() == pytest.approx([s for s, _, _ in expected], rel=1e-4)
        boxes_found = result.pred_boxes.tensor.flatten().tolist()
        assert boxes_found == pytest.approx([v for *_, b in expected for v in b], abs=1e-3)
    assert len(results[0]) > 5 and len(results[1]) == 0


def test_detections_take_half_precision():
    boxes = [random_boxes(10, (40, 40), 0)]
    logits, deltas = torch.randn(10, 3).bfloat16(), torch.zeros(10, 4).bfloat16()
    result = detections(boxes, logits, deltas, [(40, 40)], Box2BoxTransform(WEIGHTS), 0.0, 1.0, 99)
    assert result[0].pred_boxes.tensor.dtype == torch.float32
    clipped = clip_boxes(boxes[0], (40, 40))
    distances = torch.cdist(result[0].pred_boxes.tensor, clipped).min(dim=1).values
    assert distances.max() < 1e-3
