"""BCKD against a slow loop over anchors and classes, and what it trains."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mimicdet.distillation import build_adapter
from mimicdet.distillation.methods.bckd import BCKD
from tests.distillation.by_hand import giou, sigmoid
from tests.distillation.tiny_detectors import (
    INPUTS,
    build_tiny,
    distiller_of,
    losses_of,
    taught_cfg,
    write_teacher,
)
from tests.helpers import make_input

SIZES, ANCHORS, CLASSES = [(2, 3), (1, 2)], 2, 3
COUNT = ANCHORS * sum(h * w for h, w in SIZES)


def layout():
    return replace(build_adapter(build_tiny("RetinaNet"), "BGR").layout, num_classes=CLASSES)


def side(seed, positives=5):
    """A detector's logits and boxes of two images."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    corners = torch.rand(2, COUNT, 2, **draw) * 20
    return SimpleNamespace(
        prediction_maps=[torch.randn(2, ANCHORS * CLASSES, *size, **draw) for size in SIZES],
        pred_boxes=torch.cat([corners, corners + 5 + torch.rand(2, COUNT, 2, **draw) * 20], dim=2),
        positives=SimpleNamespace(anchors=torch.arange(positives)),
    )


def by_hand(student, teacher):
    """The sums of both losses over images, levels, locations, anchors and classes."""
    classes = boxes = 0.0
    for n in range(2):
        row = 0
        for level, (height, width) in enumerate(SIZES):
            maps = [x.prediction_maps[level][n].tolist() for x in (student, teacher)]
            for y, x, a in (
                (y, x, a) for y in range(height) for x in range(width) for a in range(ANCHORS)
            ):
                gaps = []
                for c in range(CLASSES):
                    s, t = (sigmoid(m[a * CLASSES + c][y][x]) for m in maps)
                    gaps.append(abs(t - s))
                    classes -= gaps[-1] * (t * math.log(s) + (1 - t) * math.log(1 - s))
                pair = (z.pred_boxes[n, row].tolist() for z in (student, teacher))
                boxes += max(gaps) * (1 - giou(*pair))
                row += 1
        assert row == COUNT
    return classes, boxes


@pytest.mark.parametrize("positives", [0, 5])
def test_losses_are_the_papers_sums(positives):
    student, teacher = side(1, positives), side(2)
    method = BCKD(box_weight=4.0, student=layout(), teacher=layout())
    losses = method(student, teacher)
    classes, boxes = by_hand(student, teacher)
    divisor = max(positives, 1)
    assert losses["loss_bckd_cls"].item() == pytest.approx(classes / divisor, rel=1e-9)
    assert losses["loss_bckd_loc"].item() == pytest.approx(4 * boxes / divisor, rel=1e-6)
    assert all(x == 0 for x in method(student, student).values())


def test_each_loss_trains_its_own_branch(tmp_path):
    """The weight of the boxes is no way to the scores."""
    write_teacher(tmp_path, "RetinaNet")
    for key, layer, other in (
        ("loss_bckd_cls", "cls_score", "bbox_pred"),
        ("loss_bckd_loc", "bbox_pred", "cls_score"),
    ):
        distiller = distiller_of(taught_cfg(tmp_path, "RetinaNet", ["BCKD"]))
        losses_of(distiller)[key].backward()
        head = distiller.student.head
        assert getattr(head, layer).weight.grad.any() and getattr(head, other).weight.grad is None


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "ATSS", "GFL"])
def test_every_dense_detector_learns_by_it_with_and_without_objects(tmp_path, family):
    write_teacher(tmp_path, family)
    distiller = distiller_of(taught_cfg(tmp_path, family, ["BCKD"]))
    for inputs in (INPUTS, [make_input(boxes=[])]):
        losses = losses_of(distiller, inputs)
        assert all(0 < losses[name] < 1e4 for name in BCKD.loss_names)
    assert distiller.terms[0].loss_weight == 1.0 and distiller.methods[0].box_weight == 4.0


@pytest.mark.parametrize(
    "family, words",
    [
        ("MultiClassRPN", "BCKD needs prediction_maps, which the student MultiClassRPN"),
        ("MimicDet", "BCKD needs pred_boxes, which the student MimicDet does not"),
    ],
)
def test_where_it_does_not_fit(tmp_path, family, words):
    write_teacher(tmp_path, family)
    with pytest.raises(ValueError, match=words):
        distiller_of(taught_cfg(tmp_path, family, ["BCKD"]))
