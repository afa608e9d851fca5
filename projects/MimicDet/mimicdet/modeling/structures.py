"""
Small typed records that modules of MimicDet hand to each other.

Shape shorthand, used all over the package:

    N: images in the batch            L: pyramid levels of the one-stage part (P3..P7: 5)
    Hl, Wl: size of level l's map     R: locations of all levels = sum of Hl * Wl; one anchor each
    Ri: proposals of image i          B: boxes of the batch = sum of Ri
    M: proposals an image             K: foreground classes
    D: width of the mimicked features

A *location* is a flat anchor index in [0, R): levels in the order of MODEL.RPN.IN_FEATURES,
row-major inside a level. It names an anchor, its adjusted box and the S-head's output there alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor


@dataclass(frozen=True)
class RefinementPredictions:
    """What the refinement module says of every anchor of the batch (3.2)."""

    pred_objectness_logits: Tensor  # (N, R)
    pred_anchor_deltas: Tensor  # (N, R, 4), in the parametrisation of MODEL.RPN.BBOX_REG_WEIGHTS
    delta_maps: list[Tensor]  # L x (N, 4, Hl, Wl): the same deltas, as the S-head's guidance
    anchors: Tensor  # (R, 4), XYXY in input pixels
    anchor_levels: Tensor  # (R,), int64 in [0, L)


@dataclass(frozen=True)
class AnchorLabels:
    """The refinement module's own assignment of every anchor of the batch (3.2)."""

    labels: Tensor  # (N, R) int64: 1 positive, 0 negative, -1 ignored
    matched_idxs: Tensor  # (N, R) int64: the image's object of each positive anchor; else 0
    positives_per_level: Tensor  # (L,) int64


@dataclass(frozen=True)
class Proposals:
    """The M best adjusted anchor boxes of each image in evaluation, best first (4.2)."""

    boxes: Tensor  # (N, M, 4), XYXY in input pixels, clipped to the image
    objectness_logits: Tensor  # (N, M)
    locations: Tensor  # (N, M) int64 in [0, R)
    levels: Tensor  # (N, M) int64 in [0, L)
    valid: Tensor  # (N, M) bool; False: a filler, where an image has fewer boxes of some area


@dataclass(frozen=True)
class HeadPredictions:
    """
    Outputs of either detection head for B boxes, and the features that are mimicked (3.3). In
    evaluation (N, M) stands for B.
    """

    pred_class_logits: Tensor  # (B, K + 1), background last
    pred_box_deltas: Tensor  # (B, 4), class-agnostic, relative to the adjusted anchor box
    class_features: Tensor  # (B, D): what the logits are computed from
    box_features: Tensor  # (B, D): what the deltas are computed from

    def select(self, indices: Tensor | slice) -> "HeadPredictions":
        """The predictions of some of the boxes; indices: (b,) int64 in [0, B), or a slice."""
        return HeadPredictions(*(x[indices] for x in vars(self).values()))

    def by_image(self, num_images: int) -> "HeadPredictions":
        """(N * M, ...) as (N, M, ...)."""
        return HeadPredictions(*(x.unflatten(0, (num_images, -1)) for x in vars(self).values()))


@dataclass(frozen=True)
class ModelOutputs:
    """What MimicDet computes of a batch in evaluation, from the maps to the predictions (4.2)."""

    features: list[Tensor]  # L x (N, C, Hl, Wl): the refined levels
    refined: RefinementPredictions
    proposals: Proposals
    predictions: HeadPredictions  # (N, M, ...), of the head that evaluation runs


@dataclass(frozen=True)
class LabelledBoxes:
    """Proposals of all images, one after another, with the objects that they are matched to."""

    boxes: Tensor  # (B, 4), XYXY in input pixels
    gt_boxes: Tensor  # (B, 4); meaningless where gt_classes is not an object's
    gt_classes: Tensor  # (B,) int64; K: background, -1: ignored

    @classmethod
    def of(cls, proposals: Sequence[Instances]) -> "LabelledBoxes":
        """The proposals that BoxSampling labelled."""
        return cls(
            torch.cat([x.proposal_boxes.tensor for x in proposals]),
            torch.cat([x.gt_boxes.tensor for x in proposals]),
            torch.cat([x.gt_classes for x in proposals]),
        )

    def select(self, indices: Tensor) -> "LabelledBoxes":
        """Some of the boxes; indices: int64 indices or a mask."""
        return LabelledBoxes(self.boxes[indices], self.gt_boxes[indices], self.gt_classes[indices])

    def foreground(self, num_classes: int) -> Tensor:
        """Mask (B,) of the boxes that are matched to an object."""
        return (self.gt_classes >= 0) & (self.gt_classes < num_classes)


@dataclass(frozen=True)
class BoxQuery:
    """Boxes that a student asks a teacher about: where, and on which level."""

    boxes: list[Tensor]  # N x (Bi, 4), XYXY in input pixels, detached
    levels: list[Tensor]  # N x (Bi,), int64 in [0, L)


@dataclass(frozen=True)
class TrainingTensors:
    """What one training step of MimicDet leaves behind for distillation.MimicDetAdapter."""

    features: list[Tensor]  # L x (N, C, Hl, Wl): P3..P7
    refined: RefinementPredictions
    anchor_labels: AnchorLabels
    gt_instances: list[Instances]  # N
    image_sizes: list[tuple[int, int]]  # N x (height, width) before padding
    student: HeadPredictions | None  # at the boxes that are mimicked; None: no S-head
    teacher: HeadPredictions | None  # the same boxes, same order; None: no T-head here
    query: BoxQuery  # those boxes, for a teacher that lives elsewhere (Table 5)
    maps: dict[str, Tensor]  # all of the backbone's by name, which the T-head reads
    labelled: LabelledBoxes  # the same, image after image, with their objects


def image_indices(sizes: list[int], device: torch.device) -> Tensor:
    """Image index of each of sum(sizes) concatenated boxes: (B,) int64."""
    counts = torch.as_tensor(sizes, device=device)
    images = torch.arange(len(sizes), device=device)
    return torch.repeat_interleave(images, counts, output_size=sum(sizes))


def flat_indices(indices: list[Tensor], counts: list[int]) -> Tensor:
    """Indices into each image's boxes as indices into the boxes of all images."""
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return torch.cat([index + start for index, start in zip(indices, starts)])
