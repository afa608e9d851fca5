"""How far two heads are apart, against closed forms and slow versions."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from mimicdet.distillation.head_losses import (
    BOX_LOSSES,
    FEATURE_LOSSES,
    SCORE_LOSSES,
    absolute_gap,
    binary_gap,
    box_weights,
    delta_gap,
    giou_gap,
    softmax_gap,
    squared_gap,
    standardized_gap,
    weighted_mean,
)

TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def test_softmax_gap_is_the_weighted_cross_entropy():
    student, teacher = random(5, 4), random(5, 4, seed=1)
    for row, s, t in zip(softmax_gap(student, teacher), student.tolist(), teacher.tolist()):
        p, q = softmax(s), softmax(t)
        weight = sum(abs(a - b) for a, b in zip(p, q)) / 2
        expected = -weight * sum(b * math.log(a) for a, b in zip(p, q))
        assert row.item() == pytest.approx(expected, rel=1e-5)


def test_binary_gap_is_the_weighted_binary_cross_entropy():
    student, teacher = random(5, 4), random(5, 4, seed=1)
    for row, s, t in zip(binary_gap(student, teacher), student.tolist(), teacher.tolist()):
        expected = sum(
            -abs(b - a) * (b * math.log(a) + (1 - b) * math.log(1 - a))
            for a, b in zip(softmax(s), softmax(t))
        )
        assert row.item() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_the_softmax_gap_leads_to_the_teacher():
    """The weight carries none, so that it is weight * (p - q), as of any cross-entropy."""
    student, teacher = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    softmax_gap(student, teacher).sum().backward()
    p, q = student.detach().softmax(dim=1), teacher.softmax(dim=1)
    weight = (p - q).abs().sum(dim=1, keepdim=True) / 2
    torch.testing.assert_close(student.grad, weight * (p - q))


@pytest.mark.parametrize("loss", SCORE_LOSSES.values())
def test_scores_that_agree_or_are_certain(loss):
    x = random(4, 3)
    assert loss(x, x + 2.0).abs().max() < 1e-5  # a softmax knows no common summand
    certain = torch.tensor([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]]).requires_grad_()
    value = loss(certain, certain.detach().flip(0))
    value.sum().backward()
    assert value.isfinite().all() and (value > 10).all() and certain.grad.isfinite().all()


def test_boxes_of_a_closed_form():
    """dx 10 of weight 10 moves a box of width 8 by its width: GIoU of neighbours is 0."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0]])
    teacher = torch.zeros(1, 4)
    student = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    assert giou_gap(student, teacher, boxes, TRANSFORM).item() == pytest.approx(1.0, abs=1e-5)
    half = torch.tensor([[0.0, 0.0, 5 * math.log(0.5), 0.0]])
    assert giou_gap(half, teacher, boxes, TRANSFORM).item() == pytest.approx(0.5, abs=1e-5)
    assert delta_gap(student, teacher, boxes, TRANSFORM).item() == pytest.approx(9.5)
    small = torch.full((1, 4), 0.5)
    assert delta_gap(small, teacher, boxes, TRANSFORM).item() == pytest.approx(4 * 0.125)


@pytest.mark.parametrize("loss", BOX_LOSSES.values())
def test_boxes_that_agree(loss):
    deltas, boxes = random(6, 4), torch.tensor([[4.0, 4.0, 30.0, 20.0]]).expand(6, 4)
    assert loss(deltas, deltas, boxes, TRANSFORM).abs().max() < 1e-5
    moved = loss(deltas, deltas + 1, boxes, TRANSFORM)
    assert moved.shape == (6,) and (moved > 0).all()


def test_half_precision_is_computed_in_float32():
    x, y = random(4, 3).bfloat16(), random(4, 3, seed=1).bfloat16()
    boxes = torch.tensor([[4.0, 4.0, 30.0, 20.0]]).expand(4, 4)
    for loss in SCORE_LOSSES.values():
        torch.testing.assert_close(loss(x, y), loss(x.float(), y.float()))
    x, y = random(4, 4).bfloat16(), random(4, 4, seed=1).bfloat16()
    for loss in BOX_LOSSES.values():
        expected = loss(x.float(), y.float(), boxes, TRANSFORM)
        torch.testing.assert_close(loss(x, y, boxes, TRANSFORM), expected)


def test_weighted_mean():
    values = torch.tensor([1.0, 2.0, 6.0]).requires_grad_()
    assert weighted_mean(values).item() == 3
    assert weighted_mean(values, torch.tensor([3.0, 1.0, 0.0])).item() == pytest.approx(1.25)
    for nothing in (weighted_mean(values, torch.zeros(3)), weighted_mean(values[:0])):
        assert nothing.item() == 0 and nothing.requires_grad
    assert weighted_mean(values[:0], torch.zeros(0)).item() == 0


LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
CLASSES = torch.tensor([0, 0, 2, 2])  # 2 is the background


def test_all_boxes_count_alike_by_default():
    assert box_weights(LOGITS, CLASSES, (), 1.0) is None


def test_weights_by_confidence_are_the_probability_of_the_boxs_class():
    expected = [softmax(row)[k] for row, k in zip(LOGITS.tolist(), CLASSES.tolist())]
    weights = box_weights(LOGITS, CLASSES, ("confidence",), 1.0)
    torch.testing.assert_close(weights, torch.tensor(expected))


@pytest.mark.parametrize("weighting", [("balanced",), ("confidence", "balanced")])
def test_balanced_classes_have_one_sum(weighting):
    classes = torch.tensor([0, 2, 2, 2])
    weights = box_weights(LOGITS, classes, weighting, 1.0)
    assert weights[0].item() == pytest.approx(1) and weights[1:].sum().item() == pytest.approx(1)
    even = bool(torch.allclose(weights[1:], torch.full((3,), 1 / 3)))
    assert even == (weighting == ("balanced",))


def test_the_share_of_the_background():
    classes = torch.tensor([0, 2, 2, 2])
    for most, expected in ((0.0, 0.0), (0.2, 0.2), (0.5, 0.5), (0.9, 0.75)):
        weights = box_weights(LOGITS, classes, (), most)
        share = weights[1:].sum() / weights.sum()
        assert share.item() == pytest.approx(expected) and weights[0] == 1
    assert not box_weights(LOGITS, torch.full((4,), 2), (), 0.5).any()
    assert len(box_weights(LOGITS[:0], CLASSES[:0], ("balanced", "confidence"), 0.5)) == 0


# ---------------------------------------------------------------- features


def test_standardized_features_are_pearsons_correlation():
    student, teacher = random(9, 5), random(9, 5, seed=1)
    r = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(student.T, teacher.T)]
    expected = 1 - torch.stack(r).mean()
    loss = standardized_gap(student, teacher).mean()
    torch.testing.assert_close(loss, expected)
    # Neither scale nor offset of a channel matters.
    moved = student * torch.tensor([1.0, 2.0, 9.0, 0.5, 3.0]) + random(5, seed=2)
    torch.testing.assert_close(standardized_gap(moved, teacher).mean(), expected)


def test_features_of_no_box_of_one_and_of_a_dead_channel():
    for boxes in (0, 1, 4):
        student = random(boxes, 3).requires_grad_()
        dead = student * torch.tensor([1.0, 0.0, 1.0])
        value = standardized_gap(dead, random(boxes, 3, seed=1)).sum()
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()


def test_squared_and_absolute_differences():
    student, teacher = torch.tensor([[3.0, 0.5]]), torch.zeros(1, 2)
    assert squared_gap(student, teacher).item() == pytest.approx((9 + 0.25) / 4)
    assert absolute_gap(student, teacher).item() == pytest.approx((2.5 + 0.125) / 2)


@pytest.mark.parametrize("loss", FEATURE_LOSSES.values())
def test_features_that_agree(loss):
    x = random(6, 5).bfloat16()
    assert loss(x, x).abs().max() < 1e-6 and loss(x, x).dtype == torch.float32
    assert loss(x, random(6, 5, seed=1).bfloat16()).shape == (6,)
