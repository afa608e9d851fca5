"""Boxes as distances from a point to their four sides, and their IoU: pure functions."""

import torch
from torch import Tensor

from .layers.precision import at_least_float32


def box_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """
    Distances from points to the left, top, right and bottom side; negative beyond a side.

    Args:
        points: (..., 2) xy; boxes: (..., 4) XYXY in the same unit.

    Returns:
        (..., 4).
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def distance_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """The inverse of `box_distances`: (..., 2) and (..., 4) -> boxes (..., 4) XYXY."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def expected_distances(logits: Tensor) -> Tensor:
    """
    The mean of each side's distribution over 0, 1, ..., bins - 1 (Eq. 4 of GFL).

    Args:
        logits: (..., 4 * bins) before the softmax, side by side.

    Returns:
        (..., 4) in bins.
    """
    logits = at_least_float32(logits)
    distribution = logits.unflatten(-1, (4, -1)).softmax(dim=-1)
    bins = torch.arange(distribution.shape[-1], dtype=logits.dtype, device=logits.device)
    return (distribution * bins).sum(dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """
    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of points inside boxes (FCOS, Eq. 3).

    Args:
        points: (b, 2) strictly inside boxes: (b, 4).

    Returns:
        (b,) in (0, 1]; 1 at the centre.
    """
    distances = box_distances(points, boxes)
    sides = torch.stack([distances[:, [0, 2]], distances[:, [1, 3]]], dim=1)
    ratios = sides.min(dim=2).values / sides.max(dim=2).values
    return ratios.prod(dim=1).sqrt()


def aligned_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """
    IoU of (..., 4) boxes with (..., 4) others, XYXY, row by row, with gradients: (...). Broadcasts.

    A box of negative size is empty; two empty boxes have 0.
    """
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (boxes, others)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=torch.finfo(boxes.dtype).eps)


def distance_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """
    aligned_iou less the squared distance of the centres in squared diagonals of the smallest box
    around both (Zheng et al., Distance-IoU Loss, AAAI 2020): (...), in (-1, 1].
    """
    hull = torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = hull - torch.minimum(boxes[..., :2], others[..., :2])
    gap = (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:]) / 2
    diagonal = hull.square().sum(dim=-1).clamp(min=torch.finfo(boxes.dtype).eps)
    return aligned_iou(boxes, others) - gap.square().sum(dim=-1) / diagonal
