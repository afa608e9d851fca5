"""What both heads share: classes, box parametrisation, inference (3.3, 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from torch import Tensor

from ..postprocess import decode_predictions, detections
from ..structures import HeadPredictions


@dataclass(frozen=True)
class HeadSettings:
    """Of the S-head or of the T-head; all but the weights of the losses are alike."""

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
