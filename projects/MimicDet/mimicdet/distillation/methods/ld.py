"""LD: the distributions of a box's edges (Zheng et al., CVPR 2022)."""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...utils.errors import UserError
from ..losses import edge_distribution_loss
from ..masks import valuable_region
from ..tensors import DetectorLayout, DetectorTensors, Locations, scores
from .base import DISTILLATION_REGISTRY, DistillationMethod


@DISTILLATION_REGISTRY.register()
class LD(DistillationMethod):
    """
    Zheng et al., Localization Distillation for Dense Object Detection, CVPR 2022: for detectors
    that predict a distribution for each box edge, KL(softmax(z_t / T) || softmax(z_s / T)) of its
    logits z, here times T^2. In the main region, the student's positives, each weighted by the
    student's highest score (detached); on request in the valuable localisation region too.
    """

    agrees_on = frozenset({"levels", "anchors", "edges"})

    @configurable
    def __init__(
        self,
        *,
        temperature: float,
        valuable_region: bool,
        gamma: float,
        student: DetectorLayout,
        teacher: DetectorLayout,
    ):
        """
        Args:
            temperature: T of both softmaxes.
            valuable_region: one more loss, of anchors near the positives; gamma: where it begins,
                see masks.valuable_region.
            student, teacher: the two detectors; they must have as many bins.
        """
        super().__init__()
        name = "DISTILLATION.LD"
        if temperature <= 0:
            raise UserError(f"{name}.TEMPERATURE must be above 0, got {temperature}")
        if not 0 <= gamma <= 1:
            raise UserError(f"{name}.GAMMA must be 0 to 1, got {gamma}")
        self.temperature, self.gamma = temperature, gamma
        self.valuable_region = valuable_region
        self.reading = student.class_scores
        self.needs_teacher = frozenset({"edge_logits"})
        self.needs_student = frozenset({"positives", "edge_logits", "class_logits_at"})
        self.loss_names: tuple[str, ...] = ("loss_ld",)
        if valuable_region:
            self.needs_student |= {"anchors", "gt_boxes"}
            self.loss_names += ("loss_ld_valuable",)

    @classmethod
    def default_config(cls) -> CN:
        node = CN()
        node.LOSS_WEIGHT = 0.25
        node.TEMPERATURE = 10.0  # tau
        # Whether anchors near the positives are taught too, and the share of the positives' least
        # distance-IoU that they must have.
        node.VALUABLE_REGION = False
        node.GAMMA = 0.25
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        positives = student.positives
        weights = scores(student.class_logits_at(positives).detach(), self.reading).amax(dim=1)
        losses = {"loss_ld": self._loss(student, teacher, positives, weights.float())}
        if self.valuable_region:
            anchors = torch.cat(student.anchors)
            region = valuable_region(anchors, student.gt_boxes, positives, self.gamma)
            near = Locations(*torch.nonzero(region, as_tuple=True))
            ones = torch.ones_like(near.anchors, dtype=torch.float32)
            losses["loss_ld_valuable"] = self._loss(student, teacher, near, ones)
        return losses

    def _loss(
        self, student: DetectorTensors, teacher: DetectorTensors, at: Locations, weights: Tensor
    ) -> Tensor:
        pair = (side.edge_logits[at.images, at.anchors] for side in (student, teacher))
        return edge_distribution_loss(*pair, weights, self.temperature)
