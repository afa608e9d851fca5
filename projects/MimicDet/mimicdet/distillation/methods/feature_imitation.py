"""Imitation of whole maps (FitNet, RM+PFI's Eq. 4) or of a part of them (RM+PFI's Table 5)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...utils.errors import check_choice
from ..losses import masked_feature_loss
from ..masks import location_masks
from ..tensors import DetectorTensors
from .base import DISTILLATION_REGISTRY
from .feature_method import FeatureMethod, feature_settings

MASKS = ("all", "positives", "negatives", "boxes")


@DISTILLATION_REGISTRY.register()
class FeatureImitation(FeatureMethod):
    """Squared differences of feature maps where a mask says so."""

    loss_names = ("loss_feature",)

    @configurable
    def __init__(self, *, mask: str, **kwargs):
        """
        Args:
            mask: one of MASKS. "positives": locations with a positive anchor by the student's
                assignment; "negatives": all others; "boxes": inside ground-truth boxes.
            kwargs: see FeatureMethod.
        """
        super().__init__(**kwargs)
        check_choice("DISTILLATION.FeatureImitation.MASK", mask, MASKS)
        self.mask = mask
        if mask == "boxes":
            self.needs_student |= {"gt_boxes"}
        elif mask != "all":
            self.needs_student |= {"positives"}

    @classmethod
    def default_config(cls) -> CN:
        node = feature_settings(adaptation=False)
        # The mean instead of the sum over a pyramid's 256 channels. Not in the paper.
        node.LOSS_WEIGHT = 1 / 256
        # "all" (Eq. 4), "positives", "negatives" or "boxes" (Table 5).
        node.MASK = "all"
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        pairs = self.feature_pairs(student, teacher)
        return {"loss_feature": masked_feature_loss(pairs, self._masks(student))}

    def _masks(self, student: DetectorTensors) -> list[Tensor] | list[None]:
        if self.mask == "all":
            return [None] * len(self.levels)
        if self.mask == "boxes":
            return [self.box_mask(student, level) for level in self.levels]
        sizes = [tuple(x.shape[-2:]) for x in student.features]
        masks = location_masks(
            student.positives,
            len(student.features[0]),
            sizes,
            self.student_layout.anchors_per_location,
        )
        masks = [masks[level] for level in self.levels]
        return masks if self.mask == "positives" else [~mask for mask in masks]
