"""
Losses: pure functions. Shape shorthand: see structures.py.

Every loss of an empty input is a zero that is still connected to the graph. Half precision is
computed in float32.
"""

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss
from torch import Tensor

from .layers.precision import at_least_float32
from .structures import LabelledBoxes


def objectness_loss(logits: Tensor, labels: Tensor, normalizer: float | Tensor) -> Tensor:
    """
    Binary cross-entropy of the refinement module, summed over all anchors that are not ignored,
    divided by the normalizer (3.2).

    Args:
        logits: (...), any shape; labels: the same shape, 1 positive, 0 negative, -1 ignored.
    """
    logits = at_least_float32(logits)
    valid, targets = (labels >= 0).to(logits.dtype), (labels == 1).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, targets, weight=valid, reduction="sum")
    return loss / normalizer


def box_l1_loss(pred_deltas: Tensor, gt_deltas: Tensor, normalizer: float | Tensor) -> Tensor:
    """L1 over (b, 4) deltas of positive boxes, summed, divided by the normalizer (3.2, 3.3)."""
    return F.l1_loss(at_least_float32(pred_deltas), gt_deltas, reduction="sum") / normalizer


def regression_loss(
    pred_deltas: Tensor,
    boxes: LabelledBoxes,
    box2box_transform: Box2BoxTransform,
    normalizer: float,
) -> Tensor:
    """L1 between (B, 4) deltas and those that lead from the boxes to their objects (3.3)."""
    gt_deltas = box2box_transform.get_deltas(boxes.boxes, boxes.gt_boxes)
    return box_l1_loss(pred_deltas, gt_deltas, normalizer)


def classification_loss(logits: Tensor, gt_classes: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over (b,) boxes; logits (b, K + 1), background last (3.3)."""
    loss = F.cross_entropy(at_least_float32(logits), gt_classes, reduction="sum")
    return loss / max(len(gt_classes), 1)


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """
    One branch of the paper's Eq. 1: mean over boxes of 1 - cosine(student, teacher), a scalar in
    [0, 2]; 0 for no boxes. For arguments and errors see `cosine_gap`.
    """
    gap = cosine_gap(student, teacher)
    return gap.sum() / max(len(gap), 1)


def cosine_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """
    1 - cosine(student, teacher) of each box.

    Args:
        student, teacher: (b, D). A cosine in half precision would lose the digits that are
            left when the branches agree.

    Returns:
        (b,) in [0, 2]. Raises ValueError where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"mimic loss needs features of one shape, got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        return 1 - F.cosine_similarity(student, teacher, dim=1)


# Of the dense detectors. The first two: Li et al., Generalized Focal Loss, NeurIPS 2020.


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """
    |y - sigma|^beta * binary cross-entropy(sigma, y) with y in [0, 1] (Eq. 5 of GFL).

    At y = 0 and y = 1 it is the focal loss with gamma = beta and no alpha.

    Args:
        logits: (...) before the sigmoid; quality: (...), the target y: the IoU of the predicted
            box at the object's class, 0 at all other classes and for background.

    Returns:
        (...), not reduced.
    """
    logits, quality = at_least_float32(logits), at_least_float32(quality)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).abs().pow(beta) * cross_entropy


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """
    Cross-entropy with the two bins around a distance, each weighted by its nearness (Eq. 6 of GFL).

    Args:
        logits: (b, bins) before the softmax; distances: (b,) in [0, bins - 1], in bins.

    Returns:
        (b,), not reduced. For a whole distance it is that bin's cross-entropy.
    """
    logits, distances = at_least_float32(logits), at_least_float32(distances)
    left = distances.floor().clamp(max=logits.shape[1] - 2).long()
    weight_right = distances - left
    loss_left = F.cross_entropy(logits, left, reduction="none")
    loss_right = F.cross_entropy(logits, left + 1, reduction="none")
    return (1 - weight_right) * loss_left + weight_right * loss_right


def weighted_giou_loss(pred_boxes: Tensor, gt_boxes: Tensor, weights: Tensor) -> Tensor:
    """
    Sum of weight * (1 - GIoU).

    Args:
        pred_boxes, gt_boxes: (b, 4) XYXY in one unit; weights: (b,).
    """
    loss = giou_loss(at_least_float32(pred_boxes), at_least_float32(gt_boxes), reduction="none")
    return (loss * weights).sum()
