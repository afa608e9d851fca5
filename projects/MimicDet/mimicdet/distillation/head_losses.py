"""
How far two heads are apart, box by box: pure functions, not weighted and not reduced.

Each takes the student's and the teacher's side of b boxes and returns (b,), 0 where they agree.
Half precision is computed in float32.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss
from torch import Tensor

from ..modeling.layers.precision import at_least_float32
from ..modeling.losses import cosine_gap
from .losses import standardised


def standardized_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """
    Half the squared difference of (b, D) features, mean over D, each channel with mean 0 and
    standard deviation 1 over the boxes; the mean over boxes is 1 - Pearson's correlation.

    Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient, NeurIPS 2022, whose maps are standardised over N, H and W.
    """
    return (standardised(student) - standardised(teacher)).square().mean(dim=1) / 2


def squared_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of (b, D) features, mean over D."""
    return (at_least_float32(student) - at_least_float32(teacher)).square().mean(dim=1) / 2


def absolute_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of (b, D) features, mean over D."""
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    return F.smooth_l1_loss(student, teacher, reduction="none").mean(dim=1)


def softmax_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """
    Cross-entropy of the student's class probabilities to the teacher's, times half of the sum of
    their absolute differences, which is 0 to 1 and carries no gradient. Not in the paper: BCKD's
    weight for a softmax, one a box.

    Args:
        student, teacher: (b, K + 1) logits.
    """
    log_scores, target = _log_scores(student), _log_scores(teacher).exp()
    weights = (target - log_scores.exp()).abs().sum(dim=1).detach() / 2
    return -weights * (target * log_scores).sum(dim=1)


def binary_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """
    Sum over classes of |p_t - p_s| * binary cross-entropy(p_s, p_t), the weight without gradient.

    Source: Yang et al., Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
    Detection, ICCV 2023. Not in the paper, whose detectors have sigmoids: p is the probability in
    the softmax, of the background too.

    Args:
        student, teacher: (b, K + 1) logits.
    """
    log_scores, target = _log_scores(student), _log_scores(teacher).exp()
    # A certain class has no finite log(1 - p); float32 has about seven digits.
    log_others = torch.log(-torch.expm1(log_scores.clamp(max=-1e-6)))
    weights = (target - log_scores.exp()).abs().detach()
    return -(weights * (target * log_scores + (1 - target) * log_others)).sum(dim=1)


def giou_gap(
    student: Tensor, teacher: Tensor, boxes: Tensor, box2box_transform: Box2BoxTransform
) -> Tensor:
    """
    1 - GIoU of the boxes that the deltas lead to.

    Args:
        student, teacher: (b, 4) deltas; boxes: (b, 4) XYXY that both start from.
    """
    pair = (box2box_transform.apply_deltas(at_least_float32(x), boxes) for x in (student, teacher))
    return giou_loss(*pair, reduction="none")


def delta_gap(
    student: Tensor, teacher: Tensor, boxes: Tensor, box2box_transform: Box2BoxTransform
) -> Tensor:
    """Smooth L1 of the deltas, summed over the four; arguments as of `giou_gap`."""
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    return F.smooth_l1_loss(student, teacher, reduction="none").sum(dim=1)


FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_gap,
    "standardized": standardized_gap,
    "l2": squared_gap,
    "smooth_l1": absolute_gap,
}
SCORE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": softmax_gap,
    "binary": binary_gap,
}
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Box2BoxTransform], Tensor]] = {
    "giou": giou_gap,
    "smooth_l1": delta_gap,
}


WEIGHTINGS = ("confidence", "balanced")


@torch.no_grad()
def box_weights(
    teacher: Tensor, gt_classes: Tensor, weighting: Collection[str], max_background: float
) -> Tensor | None:
    """
    How much each box counts in a mean. Not in the paper, where all count alike: None.

    Args:
        teacher: (b, K + 1) logits; gt_classes: (b,) int64 in [0, K], K the background.
        weighting: names of WEIGHTINGS. "confidence": the teacher's probability of the box's own
            class; "balanced": classes, background among them, have one sum each.
        max_background: the largest share of the background in the sum of all weights.

    Returns:
        (b,), 0 or more.
    """
    if not weighting and max_background >= 1:
        return None
    weights = _log_scores(teacher).exp().gather(1, gt_classes[:, None]).squeeze(1)
    if "confidence" not in weighting:
        weights = torch.ones_like(weights)
    if "balanced" in weighting:
        sums = weights.new_zeros(teacher.shape[1]).index_add(0, gt_classes, weights)
        weights = weights / sums[gt_classes].clamp(min=1e-12)
    if max_background < 1:
        background = gt_classes == teacher.shape[1] - 1
        most = weights[~background].sum() * max_background / (1 - max_background)
        factor = most / weights[background].sum().clamp(min=1e-12)
        weights = torch.where(background, weights * factor.clamp(max=1), weights)
    return weights


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of (b,) values; 0, still connected to the graph, where there are none or no weight."""
    if weights is None:
        return values.sum() / max(len(values), 1)
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def _log_scores(logits: Tensor) -> Tensor:
    return F.log_softmax(at_least_float32(logits), dim=1)
