"""What both heads share: the S-head keeps the T-head's labels, losses and inference (3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from ..losses import box_l1_loss, classification_loss
from ..postprocess import decode_predictions, detections
from ..structures import HeadPredictions, LabelledBoxes


@dataclass(frozen=True)
class HeadSettings:
    """What both detection heads share: classes, box parametrisation, inference (3.3, 4.2)."""

    num_classes: int  # K, background not counted
    box2box_transform: Box2BoxTransform
    loss_weights: tuple[float, float]  # of (classification, box)
    test_thresholds: tuple[float, float, int]  # (score, NMS IoU, detections an image)

    @classmethod
    def from_config(cls, cfg, keys) -> "HeadSettings":
        """keys: MODEL.MIMICDET.STUDENT or TEACHER, for the weights of the losses."""
        heads, box_head = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        return cls(
            heads.NUM_CLASSES,
            Box2BoxTransform(weights=box_head.BBOX_REG_WEIGHTS),
            (keys.CLS_LOSS_WEIGHT, keys.REG_LOSS_WEIGHT * box_head.BBOX_REG_LOSS_WEIGHT),
            (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE),
        )

    def decode(
        self,
        proposal_boxes: Tensor,
        predictions: HeadPredictions,
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Boxes (N, M, 4) and scores (N, M, K), see postprocess.decode_predictions."""
        transform = self.box2box_transform
        return decode_predictions(proposal_boxes, predictions, image_sizes, transform, valid)

    def detect(
        self,
        proposal_boxes: Tensor,
        predictions: HeadPredictions,
        image_sizes: Sequence[tuple[int, int]],
        valid: Tensor | None = None,
    ) -> list[Instances]:
        """Final detections of N images in the size of the network's input (4.2)."""
        boxes, scores = self.decode(proposal_boxes, predictions, image_sizes, valid)
        return detections(boxes, scores, image_sizes, *self.test_thresholds)


@torch.no_grad()
def label_proposals(
    proposals: list[Instances], targets: list[Instances], matcher: Matcher, num_classes: int
) -> list[Instances]:
    """
    Add gt_classes (Ri,) and gt_boxes (Ri, 4) to each image's proposals.

    gt_classes: the matched object's class, num_classes for background, -1 for ignored. gt_boxes of
    background boxes are meaningless. Ground-truth boxes are not appended: they have no location in
    the S-head's map (4.1).
    """
    labelled = []
    for proposals_per_image, targets_per_image in zip(proposals, targets):
        gt_boxes = targets_per_image.gt_boxes
        boxes = proposals_per_image.proposal_boxes
        matched_idxs, matched_labels = matcher(pairwise_iou(gt_boxes, boxes))
        result = Instances(proposals_per_image.image_size, **proposals_per_image.get_fields())
        if len(gt_boxes):
            gt_classes = targets_per_image.gt_classes[matched_idxs]
            gt_classes[matched_labels == 0] = num_classes
            gt_classes[matched_labels == -1] = -1
            result.gt_boxes = gt_boxes[matched_idxs]
        else:
            gt_classes = torch.full_like(matched_idxs, num_classes)
            result.gt_boxes = Boxes(torch.zeros_like(boxes.tensor))
        result.gt_classes = gt_classes
        labelled.append(result)
    return labelled


def cat_labelled(proposals: list[Instances]) -> LabelledBoxes:
    """The labelled proposals of all images, one after another."""
    return LabelledBoxes(
        torch.cat([x.proposal_boxes.tensor for x in proposals]),
        torch.cat([x.gt_boxes.tensor for x in proposals]),
        torch.cat([x.gt_classes for x in proposals]),
    )


def regression_loss(
    pred_deltas: Tensor,
    boxes: LabelledBoxes,
    box2box_transform: Box2BoxTransform,
    normalizer: float,
) -> Tensor:
    """L1 between (B, 4) deltas and those that lead from the boxes to their objects."""
    gt_deltas = box2box_transform.get_deltas(boxes.boxes, boxes.gt_boxes)
    return box_l1_loss(pred_deltas, gt_deltas, normalizer)


def fast_rcnn_losses(
    predictions: HeadPredictions,
    boxes: LabelledBoxes,
    box2box_transform: Box2BoxTransform,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """
    The T-head's (classification, regression) losses: cross-entropy over all sampled boxes, L1 over
    the positives, both divided by the number of sampled boxes (Fast R-CNN's way; the paper leaves
    the divisor open).
    """
    positive = boxes.foreground(num_classes)
    cls_loss = classification_loss(predictions.pred_class_logits, boxes.gt_classes)
    loc_loss = regression_loss(
        predictions.pred_box_deltas[positive],
        boxes.select(positive),
        box2box_transform,
        max(len(boxes.gt_classes), 1),
    )
    return cls_loss, loc_loss
