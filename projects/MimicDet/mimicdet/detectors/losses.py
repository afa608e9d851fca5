"""
Losses of the dense detectors: pure functions, without reduction where weights may follow.

Half precision is computed in float32.

Source of the first two: Li et al., Generalized Focal Loss, NeurIPS 2020.
"""

import torch.nn.functional as F
from fvcore.nn import giou_loss
from torch import Tensor

from ..layers.precision import at_least_float32


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
