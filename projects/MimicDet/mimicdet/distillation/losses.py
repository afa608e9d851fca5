"""
The methods' losses: pure functions, not weighted. Shape shorthand: see tensors.py.

A loss of nothing (no positives, no objects, an empty mask) is a zero that is still connected to the
graph. Half precision is computed in float32. The batch is a mean: the papers write one image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.layers.precision import at_least_float32
from ..modeling.losses import quality_focal_loss, weighted_giou_loss
from .tensors import SOFTMAX


def grouped_log_softmax(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """
    Log-softmax of (P,) values over the members of each group, in one pass.

    Args:
        groups: (P,) int64 in [0, num_groups); a group may be empty.
    """
    # The largest value of a group only keeps exp from overflowing; it carries no gradient.
    largest = values.new_full((num_groups,), float("-inf"))
    largest = largest.scatter_reduce(0, groups, values.detach(), "amax")
    shifted = values - largest[groups]
    sums = values.new_zeros(num_groups).index_add(0, groups, shifted.exp())
    return shifted - sums.log()[groups]


def rank_loss(student: Tensor, teacher: Tensor, objects: Tensor, num_objects: int) -> Tensor:
    """
    RM+PFI's Eq. 5 and 6: KL(teacher || student) between the rank distributions, the softmax of the
    scores over each object's positive anchors; summed over the anchors, mean over the objects.

    Args:
        student, teacher: (P,) scores of the positive anchors; objects: (P,) int64, whose they are.
        num_objects: M; objects without a positive anchor count in it.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    student_ranks = grouped_log_softmax(student, objects, num_objects)
    teacher_ranks = grouped_log_softmax(teacher, objects, num_objects)
    return (teacher_ranks.exp() * (teacher_ranks - student_ranks)).sum() / max(num_objects, 1)


def channel_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """RM+PFI's Eq. 7 and 8: squared difference of (N, C, H, W) maps, mean over C: (N, H, W)."""
    return _squared_gap(student, teacher).mean(dim=1)


def prediction_guided_loss(
    features: Sequence[tuple[Tensor, Tensor]], scores: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """
    RM+PFI's Eq. 7 to 9: squared feature differences weighted by squared prediction differences.

    Args:
        features: of each level (student, teacher), both (N, Q, Hl, Wl).
        scores: of each level (student, teacher) probabilities, both (N, C, Hl, Wl). Not in the
            paper: with A anchors a location C is A * K.
    """
    total = features[0][0].new_zeros((), dtype=torch.float32)
    for (student, teacher), (student_scores, teacher_scores) in zip(features, scores):
        gaps = channel_gap(student, teacher), channel_gap(student_scores, teacher_scores)
        total = total + (gaps[0] * gaps[1]).square().mean()
    return total / len(features)


def masked_feature_loss(
    features: Sequence[tuple[Tensor, Tensor]], masks: Sequence[Tensor | None]
) -> Tensor:
    """
    RM+PFI's Eq. 4, imitation of whole maps, or its variants with a mask (Table 5): the squared
    difference of the features, summed over channels, mean over the locations, then over levels.

    Args:
        features: of each level (student, teacher), both (N, Q, Hl, Wl).
        masks: of each level (N, Hl, Wl) bool, the locations that are imitated; None: all.
    """
    total = features[0][0].new_zeros((), dtype=torch.float32)
    for (student, teacher), mask in zip(features, masks):
        gap = _squared_gap(student, teacher).sum(dim=1)
        total = total + (gap.mean() if mask is None else _mean_inside(gap, mask))
    return total / len(features)


def fine_grained_loss(features: Sequence[tuple[Tensor, Tensor]], masks: Sequence[Tensor]) -> Tensor:
    """
    FGFI's Eq. 2: 1 / (2 Np) * sum over masked locations and channels of (adapted student -
    teacher)^2, Np the masked locations; a term a level, added up (4.2, multi-layer imitation).

    Args:
        features: of each level (adapted student, teacher), both (N, C, Hl, Wl).
        masks: of each level (N, Hl, Wl) bool.
    """
    total = features[0][0].new_zeros((), dtype=torch.float32)
    for (student, teacher), mask in zip(features, masks):
        total = total + _mean_inside(_squared_gap(student, teacher).sum(dim=1), mask) / 2
    return total


def standardised(maps: Tensor) -> Tensor:
    """
    (N, C, ...) maps or features shifted and scaled to mean 0 and variance 1 over all but C. A
    channel of one value is 0, without a gradient: it would be divided by next to nothing.
    """
    maps, eps = at_least_float32(maps), 1e-6
    if len(maps) == 0:
        return maps
    dims = (0, *range(2, maps.dim()))
    # Not the unbiased variance: a map of one location has none.
    deviation, mean = torch.std_mean(maps, dim=dims, correction=0, keepdim=True)
    return ((maps - mean) / (deviation + eps)).masked_fill(deviation <= eps, 0.0)


def correlation_loss(features: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """
    PKD: half the mean squared difference of the standardised maps, which is 1 - r with Pearson's r
    of each channel, mean over channels; a term a level, added up.

    Args:
        features: of each level (student, teacher), both (N, C, Hl, Wl).
    """
    total = features[0][0].new_zeros((), dtype=torch.float32)
    for student, teacher in features:
        total = total + _squared_gap(standardised(student), standardised(teacher)).mean() / 2
    return total


def channel_distribution_loss(
    features: Sequence[tuple[Tensor, Tensor]], temperature: float
) -> Tensor:
    """
    CWD: each channel of an image is a distribution over its locations, the softmax of
    its values at a temperature T; T^2 * KL(teacher || student), summed over the locations, mean
    over channels and images; a term a level, added up.

    Args:
        features: of each level (student, teacher), both (N, C, Hl, Wl).
    """
    total = features[0][0].new_zeros((), dtype=torch.float32)
    for student, teacher in features:
        _check_shapes(student, teacher)
        divergence = _divergence(student.flatten(2), teacher.flatten(2), temperature)
        total = total + temperature**2 * divergence.mean()
    return total


def soft_label_loss(
    student: Tensor, teacher: Tensor, temperature: float, reading: str, normalizer: float
) -> Tensor:
    """
    RM+PFI's Eq. 2 and 3 (Hinton et al.): KL(teacher || student) of the class probabilities at a
    temperature, summed over the samples and divided by the normalizer.

    Args:
        student, teacher: logits. Read as softmax: (P, K + 1), one distribution over the classes and
            the background. Else of any shape: each logit is a sigmoid's, one distribution over
            yes and no. Not in the paper, whose detectors have sigmoids and whose Eq. 2 has not.
    """
    if reading == SOFTMAX:
        return _divergence(student, teacher, temperature).sum() / normalizer
    student = at_least_float32(student) / temperature
    teacher = at_least_float32(teacher) / temperature
    # t log(t / s) + (1 - t) log((1 - t) / (1 - s)); log(1 - sigmoid(x)) is log sigmoid(-x).
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).sum() / normalizer


def score_imitation_loss(student: Tensor, teacher: Tensor, normalizer: float) -> Tensor:
    """
    Binary cross-entropy of each score with the teacher's, weighted by their difference, summed and
    divided by the normalizer: BCKD's loss of classes and, as quality focal loss with beta 1,
    CrossKD's. The gradient goes through the weight too.

    Args:
        student, teacher: logits of sigmoids, of one shape.
    """
    target = at_least_float32(teacher).sigmoid()
    return quality_focal_loss(student, target, beta=1.0).sum() / normalizer


def box_imitation_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, normalizer: float
) -> Tensor:
    """
    Sum of weight * (1 - GIoU) of each box with the teacher's, divided by the normalizer.

    Args:
        student, teacher: (..., 4) XYXY in one unit; weights: (...).
    """
    boxes = student.flatten(0, -2), teacher.flatten(0, -2)
    return weighted_giou_loss(*boxes, weights.flatten()) / normalizer


def edge_distribution_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """
    T^2 * KL(teacher || student) of box edges' distributions at a temperature T: mean over a box's
    four edges, weighted mean over the boxes, as GFL takes its own distribution loss (the sum of
    the weights counts as 1 at least). LD's loss, and CrossKD's of boxes that are distributions.

    Args:
        student, teacher: (..., 4, bins) before the softmax; weights: (...).
    """
    divergence = _divergence(student, teacher, temperature).mean(dim=-1)
    return temperature**2 * (divergence * weights).sum() / weights.sum().clamp(min=1)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher maps differ in shape: {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softmax over the last dimension at a temperature: (...)."""
    student_log, teacher_log = (
        F.log_softmax(at_least_float32(x) / temperature, dim=-1) for x in (student, teacher)
    )
    return (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)


def _squared_gap(student: Tensor, teacher: Tensor) -> Tensor:
    _check_shapes(student, teacher)
    return (at_least_float32(student) - at_least_float32(teacher)).square()


def _mean_inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the (N, H, W) values where the mask holds; 0 where it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
