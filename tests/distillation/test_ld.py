"""LD against slow loops, its valuable region, and what it refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from mimicdet.distillation.masks import valuable_region
from mimicdet.modeling.boxes import distance_iou
from tests.distillation.test_bckd import sigmoid
from tests.distillation.tiny_detectors import (
    INPUTS,
    distiller_of,
    losses_of,
    taught_cfg,
    write_teacher,
)
from tests.helpers import make_input

KEYS = "DISTILLATION__LD__"
NAMES = {"loss_ld", "loss_ld_valuable"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GFL teacher on disk."""
    path = tmp_path_factory.mktemp("gfl")
    write_teacher(path, "GFL")
    return path


def divergence(student, teacher, temperature):
    """T^2 * KL of (4, bins) logits, mean over the edges."""
    total = 0.0
    for rows in zip(student.tolist(), teacher.tolist()):
        exps = [[math.exp(v / temperature) for v in row] for row in rows]
        p, q = ([e / sum(row) for e in row] for row in exps)
        total += sum(b * math.log(b / a) for a, b in zip(p, q))
    return temperature**2 * total / 4


def diou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - overlap
    hull = [max(a[i], b[i]) - min(a[i - 2], b[i - 2]) for i in (2, 3)]
    gap = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    return overlap / union - sum(v * v for v in gap) / sum(v * v for v in hull)


def region_by_hand(anchors, gt_boxes, positives, gamma):
    found, first = set(), 0
    taken = set(zip(positives.images.tolist(), positives.anchors.tolist()))
    anchors = anchors.tolist()
    for n, boxes in enumerate(gt_boxes):
        for g, box in enumerate(boxes.tolist()):
            mine = [
                diou(anchors[a], box)
                for a, k in zip(positives.anchors.tolist(), positives.objects.tolist())
                if k == first + g
            ]
            if mine:
                near = [
                    r
                    for r, x in enumerate(anchors)
                    if gamma * min(mine) <= diou(x, box) <= min(mine)
                ]
                found |= {(n, r) for r in near}
        first += len(boxes)
    return found - taken


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0])
def test_region_is_between_two_limits_of_each_object(gamma):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator, dtype=torch.float64) * 90
    anchors = torch.cat([corners, corners + 8 + torch.rand(300, 2, generator=generator) * 30], 1)
    boxes = [anchors[:3] + 4, anchors[:0], anchors[3:5] - 3]
    ious = distance_iou(anchors[:, None], torch.cat(boxes)[None])
    chosen = {0: [0], 1: [1], 3: [2]}  # object 4 of the batch and object 2 have no positive
    rows = [(0 if k < 3 else 2, r, k) for k in chosen for r in ious[:, k].topk(4).indices.tolist()]
    images, indices, objects = torch.tensor(rows).T
    all_boxes = torch.cat(boxes)
    positives = SimpleNamespace(
        images=images, anchors=indices, objects=objects, gt_boxes=all_boxes[objects]
    )
    region = valuable_region(anchors, boxes, positives, gamma)
    expected = region_by_hand(anchors, boxes, positives, gamma)
    assert set(map(tuple, region.nonzero().tolist())) == expected
    assert not region[1].any() and (len(expected) > 20 or gamma == 1)


def test_losses_are_the_papers_sums(folder):
    changes = {f"{KEYS}VALUABLE_REGION": True, f"{KEYS}LOSS_WEIGHT": 1.0, f"{KEYS}GAMMA": 0.1}
    distiller = distiller_of(taught_cfg(folder, "GFL", ["LD"], **changes))
    for norm in (m for m in distiller.student.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()  # the student runs twice
    with EventStorage(), torch.no_grad():
        _, student = distiller.adapter.forward_training(INPUTS)
    teacher = distiller.teachers[0](INPUTS)
    losses = losses_of(distiller)
    positives = student.positives
    total = weights = 0.0
    for n, r in zip(positives.images.tolist(), positives.anchors.tolist()):
        logits = torch.cat([x[n].flatten(1) for x in student.prediction_maps], 1)[:, r]
        weight = max(sigmoid(v) for v in logits.tolist())
        weights += weight
        total += weight * divergence(student.edge_logits[n, r], teacher.edge_logits[n, r], 10.0)
    assert losses["loss_ld"].item() == pytest.approx(total / max(weights, 1), rel=1e-3)
    region = region_by_hand(torch.cat(student.anchors), student.gt_boxes, positives, 0.1)
    near = [divergence(student.edge_logits[x], teacher.edge_logits[x], 10.0) for x in region]
    assert losses["loss_ld_valuable"].item() == pytest.approx(sum(near) / len(near), rel=1e-3)
    assert total > 0 < len(near)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_trains_the_boxes_alone(folder, name):
    cfg = taught_cfg(folder, "GFL", ["LD"], **{f"{KEYS}VALUABLE_REGION": True, f"{KEYS}GAMMA": 0.1})
    distiller = distiller_of(cfg)
    losses_of(distiller)[name].backward()
    head = distiller.student.head
    assert head.box_values.weight.grad.any() and head.class_logits.weight.grad is None


def test_images_without_objects_are_a_zero_in_the_graph(folder):
    distiller = distiller_of(taught_cfg(folder, "GFL", ["LD"], **{f"{KEYS}VALUABLE_REGION": True}))
    losses = losses_of(distiller, [make_input(boxes=[])])
    assert all(losses[name] == 0 and losses[name].requires_grad for name in NAMES)


def test_half_precision(folder, bfloat16_cpu):
    half = {"SOLVER__AMP__ENABLED": True, "DISTILLATION__TEACHER__AMP": True}
    changes = {f"{KEYS}VALUABLE_REGION": True, f"{KEYS}GAMMA": 0.1}
    losses = losses_of(distiller_of(taught_cfg(folder, "GFL", ["LD"], **changes, **half)))
    full = losses_of(distiller_of(taught_cfg(folder, "GFL", ["LD"], **changes)))
    for name in NAMES:
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(full[name].item(), rel=0.5, abs=0.05)


def test_defaults_and_the_region_on_request(folder):
    distiller = distiller_of(taught_cfg(folder, "GFL", ["LD"]))
    assert distiller.methods[0].temperature == 10.0 and distiller.terms[0].loss_weight == 0.25
    assert NAMES & set(losses_of(distiller)) == {"loss_ld"}


def test_distance_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4]])
    others = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [8, 8, 12, 12]])
    expected = [diou(a, b) for a, b in zip(boxes.tolist(), others.tolist())]
    torch.testing.assert_close(distance_iou(boxes, others), torch.tensor(expected))
    assert expected[0] == 1 and expected[2] == pytest.approx(-128 / 288)
    assert distance_iou(boxes[:, None], others[None]).shape == (3, 3)


@pytest.mark.parametrize(
    "student, teacher, changes, words",
    [
        ("ATSS", {}, {}, "LD needs edge_logits, which the student ATSS does not offer"),
        ("RetinaNet", {}, {}, "LD needs edge_logits, which the student RetinaNet does not offer"),
        ("GFL", {"GFL__REG_MAX": 8}, {}, "LD: edge_bins 17 of the student, 9 of the teacher"),
        ("GFL", {}, {f"{KEYS}TEMPERATURE": 0.0}, "LD.TEMPERATURE must be above 0"),
        ("GFL", {}, {f"{KEYS}GAMMA": 1.5}, "LD.GAMMA must be 0 to 1"),
    ],
)
def test_what_it_refuses(tmp_path, student, teacher, changes, words):
    write_teacher(tmp_path, "GFL", **teacher)
    with pytest.raises(ValueError, match=words):
        distiller_of(taught_cfg(tmp_path, student, ["LD"], **changes))
