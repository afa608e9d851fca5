"""Detectron2's two-stage detectors: the features and anchors of their RPN."""

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ...utils.errors import UserError
from ..tensors import DetectorTensors
from .base import ADAPTER_REGISTRY, DetectorAdapter, layout_of


class RCNNTensors(DetectorTensors):
    """Features and anchors of an R-CNN; gt_boxes of a student alone."""

    def __init__(
        self, model: nn.Module, features: dict[str, Tensor], gt_boxes: list[Tensor] | None = None
    ):
        self._model = model
        self.features = [features[f] for f in model.proposal_generator.in_features]
        if gt_boxes is not None:
            self.gt_boxes = gt_boxes

    @cached_property
    def anchors(self) -> list[Tensor]:
        generator = self._model.proposal_generator.anchor_generator
        return [x.tensor for x in generator(self.features)]


@ADAPTER_REGISTRY.register()
class GeneralizedRCNNAdapter(DetectorAdapter):
    """
    Faster R-CNN and its kin, with an RPN: the levels of MODEL.RPN.IN_FEATURES and its anchors. Its
    RPN samples its positives at random and its head scores proposals, so neither is offered.
    """

    teacher_offers = frozenset({"features", "anchors"})
    student_offers = teacher_offers | {"gt_boxes"}

    def __init__(self, model: nn.Module, input_format: str):
        super().__init__(model, input_format)
        rpn = model.proposal_generator
        if rpn is None or not hasattr(rpn, "anchor_generator"):
            raise UserError(f"{type(model).__name__} without an RPN has no anchors to distil by")
        self.layout = layout_of(
            model,
            model.roi_heads.num_classes,
            rpn.in_features,
            rpn.anchor_generator,
            input_format,
        )

    def forward_training(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], RCNNTensors]:
        kept: list[dict[str, Tensor]] = []
        hook = self.model.backbone.register_forward_hook(lambda *call: kept.append(call[-1]))
        try:
            losses = self.model(batched_inputs)
        finally:
            hook.remove()
        device = self.model.device
        gt_boxes = [x["instances"].gt_boxes.tensor.to(device) for x in batched_inputs]
        return losses, RCNNTensors(self.model, kept[0], gt_boxes)

    def forward_teacher(self, batched_inputs: list[dict[str, Any]]) -> RCNNTensors:
        images = self.model.preprocess_image(batched_inputs)
        return RCNNTensors(self.model, self.model.backbone(images.tensor))
