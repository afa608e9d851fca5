"""Clipping, proposal selection, decoding and NMS (postprocess.py) against plain Python."""

import math

import pytest
import torch
from detectron2.modeling import detector_postprocess
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from mimicdet.modeling.postprocess import (
    apply_deltas,
    clip_boxes,
    decode_predictions,
    detections,
    nms_best,
    rank_proposals,
    rescale_detections,
    select_proposals,
)
from mimicdet.modeling.structures import HeadPredictions

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


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]
)
@pytest.mark.parametrize("shape", [(7, 4), (2, 7, 4)])
def test_deltas_are_applied_as_detectron2_does(weights, shape):
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(2, 7, 4, generator=generator) * 8  # some above the largest growth
    boxes = torch.rand(shape, generator=generator) * 50
    boxes[..., 2:] += boxes[..., :2]
    transform = Box2BoxTransform(weights=weights)
    actual = apply_deltas(transform, deltas, boxes)
    for own, own_deltas, own_boxes in zip(actual, deltas, boxes.expand(2, 7, 4)):
        torch.testing.assert_close(own, transform.apply_deltas(own_deltas, own_boxes))


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
    for fixed_size in (False, True):
        locations, valid = rank_proposals(boxes[None], logits[None], topk, fixed_size)
        assert locations.shape == valid.shape == (1, topk if fixed_size else min(topk, 60))
        assert locations[valid].tolist() == expected
        assert not valid[0, len(expected) :].any() and not locations[~valid].any()


def test_images_of_a_batch_are_selected_apart():
    boxes = torch.stack([random_boxes(30, (64, 64), seed) for seed in range(3)])
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))
    boxes[1, :28, 2:] = boxes[1, :28, :2]  # two boxes are left
    for thresh in (0.9, 0.3):
        together = select_proposals(boxes, logits, 10, thresh)
        alone = [select_proposals(b[None], x[None], 10, thresh)[0] for b, x in zip(boxes, logits)]
        assert [x.tolist() for x in together] == [x.tolist() for x in alone]
        assert sorted(together[1].tolist()) == [28, 29] and len(together[0]) == 10


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
    actual = select_proposals(boxes[None], logits[None], 15, thresh, pre_nms_topk)[0]
    assert actual.tolist() == expected[:15]


def test_select_from_nothing():
    none, empty = torch.zeros(2, 0, 4), torch.ones(2, 3, 4)
    for boxes in (none, empty):
        logits = torch.zeros(boxes.shape[:2])
        assert [x.tolist() for x in select_proposals(boxes, logits, 10, 0.8)] == [[], []]
        assert not rank_proposals(boxes, logits, 10)[1].any()


@pytest.mark.parametrize("topk", [1, 3, 40, 1000])
@pytest.mark.parametrize("num_groups", [1, 4])
def test_nms_best_agrees_with_plain_nms_group_by_group(topk, num_groups):
    """However often the prefix has to grow: most boxes overlap one another."""
    generator = torch.Generator().manual_seed(topk)
    boxes, scores = random_boxes(150, (40, 40), seed=7), torch.rand(150, generator=generator)
    groups = torch.randint(0, num_groups, (150,), generator=generator)
    kept = []
    for group in range(num_groups):
        rows = torch.nonzero(groups == group).squeeze(1).tolist()
        kept += [rows[i] for i in plain_nms(boxes[rows].tolist(), scores[rows].tolist(), 0.2)]
    assert len(kept) < 100
    expected = sorted(kept, key=lambda i: -float(scores[i]))[:topk]
    assert nms_best(boxes, scores, groups, 0.2, topk).tolist() == expected


def test_nms_best_looks_at_no_more_boxes_than_it_needs(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "mimicdet.modeling.postprocess.nms",
        lambda b, s, t: sizes.append(len(b)) or torch.arange(len(b)),
    )
    boxes, zeros = random_boxes(1000, (600, 600), seed=0), torch.zeros(1000, dtype=torch.int64)
    assert len(nms_best(boxes, torch.rand(1000), zeros, 0.5, 10)) == 10
    assert sizes == [20]


def test_many_groups_cost_no_digits():
    """Two boxes of group 5000 whose IoU is just below the threshold, far from the first group."""
    boxes = torch.tensor(
        [[0.0, 0.0, 1333.0, 800.0], [10.0, 10.0, 20.0, 20.0], [10.0, 13.34, 20, 23.34]]
    )
    groups = torch.tensor([0, 5000, 5000])
    overlap = iou(boxes[1].tolist(), boxes[2].tolist())
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms_best(boxes, scores, groups, overlap + 1e-4, 9).tolist() == [0, 1, 2]
    assert nms_best(boxes, scores, groups, overlap - 1e-4, 9).tolist() == [0, 1]


def test_equal_scores_keep_their_order():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(40, 1) + torch.arange(40.0)[:, None] * 20
    zeros = torch.zeros(40, dtype=torch.int64)
    assert nms_best(boxes, torch.ones(40), zeros, 0.5, 15).tolist() == list(range(15))


def plain_detections(boxes, logits, deltas, size, num_classes, score_thresh, nms_thresh, topk):
    """Decode, softmax, threshold, NMS class by class, best topk: one image, no tensor operator."""
    height, width = size
    decoded, actual = [], []
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
        actual += [(scores[rows[k]][c], c, decoded[rows[k]]) for k in kept]
    return sorted(actual, key=lambda f: -f[0])[:topk]


def detect(boxes, logits, deltas, sizes, score_thresh, nms_thresh, topk):
    """Detections of images with boxes N x (Ri, 4), filled up to the most; logits (B, K + 1)."""
    counts = [len(x) for x in boxes]

    def padded(parts):
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

    boxes, logits, deltas = (padded(x) for x in (boxes, logits.split(counts), deltas.split(counts)))
    valid = torch.arange(boxes.shape[1]) < torch.tensor(counts)[:, None]
    predictions = HeadPredictions(logits, deltas, logits, deltas)
    transform = Box2BoxTransform(weights=WEIGHTS)
    decoded = decode_predictions(boxes, predictions, sizes, transform, valid)
    as_tensor = decode_predictions(boxes, predictions, torch.tensor(sizes), transform, valid)
    for of_list, of_tensor in zip(decoded, as_tensor):  # the sizes that a graph takes
        assert torch.equal(of_list, of_tensor)
    return detections(*decoded, sizes, score_thresh, nms_thresh, topk)


@pytest.mark.parametrize("topk", [8, 100])
def test_detections_agree_with_plain_python(topk):
    sizes, counts = [(40, 50), (64, 30), (50, 50)], [40, 0, 25]
    generator = torch.Generator().manual_seed(5)
    boxes = [random_boxes(n, s, i) for i, (n, s) in enumerate(zip(counts, sizes))]
    logits = torch.randn(65, 4, generator=generator) * 2
    deltas = torch.randn(65, 4, generator=generator)
    results = detect(boxes, logits, deltas, sizes, 0.3, 0.5, topk)
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
    result = detect(boxes, logits, deltas, [(40, 40)], 0.0, 1.0, 99)
    assert result[0].pred_boxes.tensor.dtype == torch.float32
    clipped = clip_boxes(boxes[0], (40, 40))
    distances = torch.cdist(result[0].pred_boxes.tensor, clipped).min(dim=1).values
    assert distances.max() < 1e-3


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("output_size", [(50, 75), (120, 61), (211, 300)])
def test_rescaling_is_detectron2s(count, output_size):
    size = (100, 150)
    boxes = random_boxes(count, size, seed=3)
    if count > 1:
        boxes[7] = torch.tensor([160.0, 10.0, 170.0, 20.0])  # nothing of it is in the image
    actual = Instances(size)
    actual.pred_boxes = Boxes(boxes)
    actual.scores = torch.arange(count) / 50
    actual.pred_classes = torch.arange(count) % 3
    rescaled = rescale_detections(actual, output_size)
    assert torch.equal(actual.pred_boxes.tensor, boxes)  # the input stays as it is
    expected = detector_postprocess(actual, *output_size)
    assert rescaled.image_size == expected.image_size and len(rescaled) == max(
        count - 1, min(count, 1)
    )
    assert torch.equal(rescaled.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(rescaled.scores, expected.scores)
    assert torch.equal(rescaled.pred_classes, expected.pred_classes)
