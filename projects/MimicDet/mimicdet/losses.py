"""
Losses: pure functions. Shape shorthand: see structures.py.

Every loss of an empty input is a zero that is still connected to the graph. Half precision is
computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers.precision import at_least_float32


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


def classification_loss(logits: Tensor, gt_classes: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over (b,) boxes; logits (b, K + 1), background last (3.3)."""
    loss = F.cross_entropy(at_least_float32(logits), gt_classes, reduction="sum")
    return loss / max(len(gt_classes), 1)


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """
    One branch of the paper's Eq. 1: mean over boxes of 1 - cosine(student, teacher).

    Args:
        student, teacher: (b, D). A cosine in half precision would lose the digits that are
            left when the branches agree.

    Returns:
        scalar in [0, 2]; 0 for no boxes. Raises ValueError where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"mimic loss needs features of one shape, got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        cosine = F.cosine_similarity(student, teacher, dim=1)
        return (1 - cosine).sum() / max(len(cosine), 1)
