"""
What student and teacher make of an image: imitation regions, variances, differences, ranks.

Everything is told in pixels of the network's input. L, C, Hl, Wl, P: see distillation/tensors.py.
Locations in the padding behind an image are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..distillation import DetectorTensors
from ..distillation.losses import channel_gap, rank_loss
from ..distillation.masks import near_object_masks
from ..distillation.tensors import scores
from ..modeling.boxes import aligned_iou


@dataclass(frozen=True)
class Region:
    """FGFI's imitation region by one rule."""

    label: str
    masks: list[Tensor]  # L x (Hl, Wl) bool

    @property
    def shares(self) -> list[float]:
        """Of each level the share of its locations that is inside, 0 to 1."""
        return [float(mask.float().mean()) for mask in self.masks]


@dataclass(frozen=True)
class ChannelVariance:
    """Variance of each channel over the locations inside and outside a mask."""

    inside: Tensor  # (C,); NaN without a location
    outside: Tensor  # (C,)

    @property
    def calmer_inside(self) -> int:
        """Number of channels whose variance is smaller inside."""
        return int((self.inside < self.outside).sum())


@dataclass(frozen=True)
class DifferenceMaps:
    """RM+PFI's Eq. 7 and 8 of one image, level by level, and their product, which Eq. 9 squares."""

    prediction: list[Tensor]  # L x (Hl, Wl)
    feature: list[Tensor]

    @property
    def product(self) -> list[Tensor]:
        return [p * f for p, f in zip(self.prediction, self.feature)]


@dataclass(frozen=True)
class RankSignal:
    """What ranks the P positive anchors of one object: class scores, or IoUs."""

    student: Tensor  # (P,)
    teacher: Tensor  # (P,)

    @property
    def distributions(self) -> tuple[Tensor, Tensor]:
        """Eq. 5: (student's, teacher's) softmax over the anchors."""
        return self.student.softmax(dim=0), self.teacher.softmax(dim=0)

    @cached_property
    def divergence(self) -> float:
        """Eq. 6 of this object: KL(teacher || student)."""
        one_object = torch.zeros(len(self.student), dtype=torch.int64, device=self.student.device)
        return float(rank_loss(self.student, self.teacher, one_object, 1))


@dataclass(frozen=True)
class ObjectRanks:
    """How both detectors rank the candidates of one object (RM+PFI, Fig. 2 and 4)."""

    gt_box: Tensor  # (4,) XYXY
    gt_class: int
    anchors: Tensor  # (P, 4) XYXY
    class_scores: RankSignal  # probabilities of the object's class
    ious: RankSignal  # of the predicted boxes with the object
    student_boxes: Tensor  # (P, 4) XYXY, what the anchors predict
    teacher_boxes: Tensor


def visible(maps: Tensor, image_size: tuple[int, int], stride: int) -> Tensor:
    """The part of a (..., Hl, Wl) map that lies on an image of (height, width) pixels."""
    height, width = (-(-side // stride) for side in image_size)
    return maps[..., :height, :width]


@torch.no_grad()
def imitation_regions(
    student: DetectorTensors,
    image_size: tuple[int, int],
    strides: Sequence[int],
    psis: Sequence[float],
    iou_thresholds: Sequence[float] = (),
) -> list[Region]:
    """
    FGFI's Fig. 3 for the first image of the batch: a region for each psi (3.1), then one for each
    constant threshold (Hard-thresh).
    """
    rules: list[tuple[str, float | None, float]] = [(f"psi {x:g}", x, 0.0) for x in psis]
    rules += [(f"IoU above {x:g}", None, x) for x in iou_thresholds]
    regions = []
    for label, psi, threshold in rules:
        masks = []
        for x, anchors, stride in zip(student.features, student.anchors, strides):
            height, width = x.shape[-2:]
            boxes = student.gt_boxes[:1]
            near = near_object_masks(anchors, boxes, (height, width), psi, threshold)
            masks.append(visible(near[0], image_size, stride))
        regions.append(Region(label, masks))
    return regions


@torch.no_grad()
def channel_variance(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> ChannelVariance:
    """
    FGFI's Fig. 6 (b), (c): locations of all images together, each channel by itself.

    Args:
        maps: of each image (C, H, W), one level of the teacher's features; masks: (H, W) bool.
    """
    variances = []
    for side in (masks, [~mask for mask in masks]):
        values = torch.cat([x[:, mask] for x, mask in zip(maps, side, strict=True)], dim=1)
        gaps = values - values.float().mean(dim=1, keepdim=True)
        variances.append(gaps.square().mean(dim=1))
    return ChannelVariance(*variances)


@torch.no_grad()
def difference_maps(
    student: DetectorTensors,
    teacher: DetectorTensors,
    image_size: tuple[int, int],
    strides: Sequence[int],
) -> DifferenceMaps:
    """RM+PFI's Fig. 3 for the first image of the batch; both detectors have the same channels."""
    logits = zip(student.prediction_maps, teacher.prediction_maps)
    prediction = [channel_gap(s.float().sigmoid(), t.float().sigmoid())[0] for s, t in logits]
    feature = [channel_gap(s, t)[0] for s, t in zip(student.features, teacher.features)]
    for maps in (prediction, feature):
        maps[:] = [visible(x, image_size, stride) for x, stride in zip(maps, strides)]
    return DifferenceMaps(prediction, feature)


@torch.no_grad()
def object_ranks(
    student: DetectorTensors, teacher: DetectorTensors, readings: tuple[str, str]
) -> list[ObjectRanks]:
    """
    The objects of the batch that have two positive anchors at least, those first that the detectors
    rank most differently by class score.

    Args:
        readings: layout.class_scores of student and teacher.
    """
    positives = student.positives
    class_scores, boxes = [], []
    for side, reading in zip((student, teacher), readings):
        values = scores(side.class_logits_at(positives).float(), reading)
        class_scores.append(values.gather(1, positives.gt_classes[:, None]).squeeze(1))
        boxes.append(side.pred_boxes_at(positives))
    ious = [aligned_iou(x, positives.gt_boxes) for x in boxes]
    anchors = torch.cat(student.anchors)[positives.anchors]
    ranks = []
    for index in range(positives.num_objects):
        own = torch.nonzero(positives.objects == index).squeeze(1)
        if len(own) < 2:
            continue
        ranks.append(
            ObjectRanks(
                gt_box=positives.gt_boxes[own[0]],
                gt_class=int(positives.gt_classes[own[0]]),
                anchors=anchors[own],
                class_scores=RankSignal(*(x[own] for x in class_scores)),
                ious=RankSignal(*(x[own] for x in ious)),
                student_boxes=boxes[0][own],
                teacher_boxes=boxes[1][own],
            )
        )
    return sorted(ranks, key=lambda x: x.class_scores.divergence, reverse=True)
