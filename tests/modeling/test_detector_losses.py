"""Losses and boxes of the dense detectors against closed forms and other implementations."""

import math

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torchvision.ops import box_iou, generalized_box_iou

from mimicdet.modeling.boxes import (
    aligned_iou,
    box_distances,
    centerness,
    distance_boxes,
    expected_distances,
)
from mimicdet.modeling.losses import (
    distribution_focal_loss,
    quality_focal_loss,
    weighted_giou_loss,
)
from mimicdet.modeling.meta_arch.gfl import DistributionTransform


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 40], 1)


def test_quality_focal_loss_at_whole_targets_is_the_focal_loss():
    logits = torch.linspace(-6, 6, 25).repeat(2, 1)
    targets = torch.stack([torch.zeros(25), torch.ones(25)])
    expected = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2.0)
    torch.testing.assert_close(quality_focal_loss(logits, targets), expected)


def test_quality_focal_loss_between_them():
    # sigma = 0.8, y = 0.5: 0.3^2 * -(0.5 ln 0.8 + 0.5 ln 0.2).
    logit = torch.tensor([math.log(4.0)])
    expected = 0.09 * -(0.5 * math.log(0.8) + 0.5 * math.log(0.2))
    assert quality_focal_loss(logit, torch.tensor([0.5])).item() == pytest.approx(expected)
    # The least loss is where the score is the quality.
    quality = torch.tensor([0.3], requires_grad=False)
    logit = torch.logit(quality).requires_grad_()
    loss = quality_focal_loss(logit, quality).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9) and abs(logit.grad.item()) < 1e-6


def test_distribution_focal_loss_of_an_exact_bin_is_cross_entropy():
    logits = torch.randn(17, 17, generator=torch.Generator().manual_seed(0))
    bins = torch.arange(17)
    expected = F.cross_entropy(logits, bins, reduction="none")
    torch.testing.assert_close(distribution_focal_loss(logits, bins.float()), expected)


def test_distribution_focal_loss_is_least_at_the_two_nearest_bins():
    # Eq. 6 is least where the right bin's probability is the fraction: -0.7 ln 0.7 - 0.3 ln 0.3.
    probabilities = torch.full((1, 8), 1e-12)
    probabilities[0, 2], probabilities[0, 3] = 0.7, 0.3
    logits = probabilities.log().requires_grad_()
    loss = distribution_focal_loss(logits, torch.tensor([2.3])).sum()
    assert loss.item() == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3), abs=1e-5)
    loss.backward()
    assert logits.grad.abs().max() < 1e-5


def test_giou_loss_agrees_with_torchvision():
    boxes, other = random_boxes(6, 0), random_boxes(6, 1)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(2))
    expected = ((1 - generalized_box_iou(boxes, other).diagonal()) * weights).sum()
    torch.testing.assert_close(weighted_giou_loss(boxes, other, weights), expected)
    assert weighted_giou_loss(boxes, boxes, weights).item() == pytest.approx(0, abs=1e-5)


def test_aligned_iou_agrees_with_torchvision():
    boxes, other = random_boxes(6, 3), random_boxes(6, 4)
    torch.testing.assert_close(aligned_iou(boxes, other), box_iou(boxes, other).diagonal())
    assert aligned_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_aligned_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 1, 1], [3, 0, 1, 4]])
    others = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 4], [5, 5, 6, 6], [1, 1, 1, 1], [0, 0, 4, 4]])
    expected = torch.tensor([4 / 28, 1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(aligned_iou(boxes, others), expected)
    boxes.requires_grad_()
    aligned_iou(boxes, others).sum().backward()
    assert torch.isfinite(boxes.grad).all() and boxes.grad[0].any()


def test_distances_and_boxes_are_inverse():
    point, box = torch.tensor([[10.0, 20.0]]), torch.tensor([[4.0, 12.0, 13.0, 40.0]])
    assert box_distances(point, box).tolist() == [[6.0, 8.0, 3.0, 20.0]]
    assert distance_boxes(point, box_distances(point, box)).tolist() == box.tolist()


def test_centerness_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(2, 1)
    # (2, 4): horizontally 2 / 6, vertically 1.
    values = centerness(torch.tensor([[4.0, 4.0], [2.0, 4.0]]), boxes)
    assert values.tolist() == pytest.approx([1.0, (1 / 3) ** 0.5])


def test_expected_distance_is_the_mean_of_the_distribution():
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [1, 0, 0]])
    logits = probabilities.clamp(min=1e-30).log().reshape(1, 12)
    torch.testing.assert_close(expected_distances(logits), torch.tensor([[0.5, 2.0, 1.3, 0.0]]))


def test_distribution_transform_counts_in_strides():
    transform = DistributionTransform(reg_max=16, anchor_scale=8.0)
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0], [0.0, 0.0, 128.0, 128.0]])  # strides 8 and 16
    boxes = torch.tensor([[16.0, 8.0, 40.0, 56.0], [-1000.0, 70.0, 80.0, 96.0]])
    distances = transform.get_deltas(anchors, boxes)
    # The second: 1064 / 16 is cut below the last bin, a top side below the centre is cut at 0.
    expected = torch.tensor([[2.0, 3.0, 1.0, 3.0], [15.9, 0.0, 1.0, 2.0]])
    torch.testing.assert_close(distances, expected)
    logits = 50 * F.one_hot(distances.round().long().clamp(max=16), 17).float().flatten(1)
    torch.testing.assert_close(transform.apply_deltas(logits[:1], anchors[:1]), boxes[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_computed_in_float32(dtype):
    logits = torch.randn(4, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.full((4,), 3.25)
    assert distribution_focal_loss(logits, target).dtype == torch.float32
    torch.testing.assert_close(
        distribution_focal_loss(logits, target), distribution_focal_loss(logits.float(), target)
    )
    assert quality_focal_loss(logits, torch.zeros(4, 17)).dtype == torch.float32
