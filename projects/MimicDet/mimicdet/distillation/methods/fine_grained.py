"""Fine-grained Feature Imitation: maps are imitated near objects (FGFI, 3.1, 3.2)."""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...utils.errors import UserError, check_choice
from ..losses import fine_grained_loss
from ..masks import near_object_masks
from ..tensors import DetectorTensors
from .base import DISTILLATION_REGISTRY
from .feature_method import FeatureMethod, feature_settings

REGIONS = ("near_objects", "iou_threshold", "all", "boxes")


@DISTILLATION_REGISTRY.register()
class FineGrained(FeatureMethod):
    """
    The student's map, through an adaptation layer, imitates the teacher's at the locations whose
    anchors are near an object; each level has its own anchors, its own mask and its own term. With
    SoftLabels beside it this is the paper's -ID.
    """

    loss_names = ("loss_fine_grained",)

    @configurable
    def __init__(self, *, region: str, psi: float, iou_threshold: float, **kwargs):
        """
        Args:
            region: one of REGIONS; psi, iou_threshold: of the first two, see near_object_masks.
            kwargs: see FeatureMethod.
        """
        super().__init__(**kwargs)
        check_choice("DISTILLATION.FineGrained.REGION", region, REGIONS)
        for key, value in (("PSI", psi), ("IOU_THRESHOLD", iou_threshold)):
            if not 0 <= value <= 1:
                raise UserError(f"DISTILLATION.FineGrained.{key} must be 0 to 1, got {value}")
        self.region = region
        self.psi = psi if region == "near_objects" else None
        self.iou_threshold = iou_threshold
        if region != "all":
            self.needs_student |= {"gt_boxes"}
        if region in ("near_objects", "iou_threshold"):
            self.needs_student |= {"anchors"}

    @classmethod
    def default_config(cls) -> CN:
        node = feature_settings(adaptation=True, kernel=3)
        # lambda. Not in the paper.
        node.LOSS_WEIGHT = 0.01
        # "near_objects" (3.1), "iou_threshold" (Hard-thresh), "all" (-F) or "boxes" (-G).
        node.REGION = "near_objects"
        # Of "near_objects": the share of an object's largest IoU that an anchor must exceed.
        node.PSI = 0.5
        # Of "iou_threshold": the IoU that an anchor must exceed.
        node.IOU_THRESHOLD = 0.5
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        masks = [self._mask(student, level) for level in self.levels]
        loss = fine_grained_loss(self.feature_pairs(student, teacher), masks)
        return {"loss_fine_grained": loss}

    def _mask(self, student: DetectorTensors, level: int) -> Tensor:
        x = student.features[level]
        height, width = x.shape[-2:]
        if self.region == "all":
            return x.new_ones((len(x), height, width), dtype=torch.bool)
        if self.region == "boxes":
            return self.box_mask(student, level)
        return near_object_masks(
            student.anchors[level],
            student.gt_boxes,
            (height, width),
            self.psi,
            self.iou_threshold,
        )
