"""Labels of the proposals, and the sample of them that trains the T-head (3.3, 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor


@dataclass(frozen=True)
class BoxSampling:
    """How boxes are matched to objects, and how many of them train."""

    matcher: Matcher
    num_classes: int
    batch_size_per_image: int
    positive_fraction: float  # at most, of the sampled proposals

    @classmethod
    def from_config(cls, cfg) -> "BoxSampling":
        keys = cfg.MODEL.ROI_HEADS
        return cls(
            Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS, allow_low_quality_matches=False),
            keys.NUM_CLASSES,
            keys.BATCH_SIZE_PER_IMAGE,
            keys.POSITIVE_FRACTION,
        )

    @torch.no_grad()
    def label(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """
        Add gt_classes (Ri,) and gt_boxes (Ri, 4) to each image's proposals.

        gt_classes: the matched object's class, num_classes for background, -1 for ignored.
        gt_boxes of background boxes are meaningless. Ground-truth boxes are not appended: they
        have no location in the S-head's map (4.1).
        """
        labelled = []
        for proposals_per_image, targets_per_image in zip(proposals, targets):
            gt_boxes = targets_per_image.gt_boxes
            boxes = proposals_per_image.proposal_boxes
            matched_idxs, matched_labels = self.matcher(pairwise_iou(gt_boxes, boxes))
            result = Instances(proposals_per_image.image_size, **proposals_per_image.get_fields())
            if len(gt_boxes):
                gt_classes = targets_per_image.gt_classes[matched_idxs]
                gt_classes[matched_labels == 0] = self.num_classes
                gt_classes[matched_labels == -1] = -1
                result.gt_boxes = gt_boxes[matched_idxs]
            else:
                gt_classes = torch.full_like(matched_idxs, self.num_classes)
                result.gt_boxes = Boxes(torch.zeros_like(boxes.tensor))
            result.gt_classes = gt_classes
            labelled.append(result)
        return labelled

    @torch.no_grad()
    def sample(self, gt_classes: Sequence[Tensor]) -> list[Tensor]:
        """
        Indices into each image's labels, positives first: B_t (4.1). Negatives fill the places of
        missing positives; missing negatives stay missing, as in Fast R-CNN.
        """
        numbers = self.batch_size_per_image, self.positive_fraction, self.num_classes
        return [torch.cat(subsample_labels(x, *numbers)) for x in gt_classes]
