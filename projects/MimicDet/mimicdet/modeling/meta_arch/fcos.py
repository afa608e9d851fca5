"""Detectron2's FCOS, built from a yaml config; Detectron2 itself builds it from Python alone."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.fcos import FCOS as Detectron2FCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers.precision import at_least_float32
from .adaptive import DetectionSettings, detector_parts


@META_ARCH_REGISTRY.register()
class FCOS(Detectron2FCOS):
    """
    Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019; with the changes
    of arXiv 2006.09214 that Detectron2's has.

    The name was free in Detectron2's registry, and an isinstance check for its FCOS holds.
    """

    @configurable
    def __init__(self, **kwargs):
        """kwargs: see Detectron2's FCOS."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg):
        shapes, parts = detector_parts(cfg, "RETINANET")
        keys = cfg.MODEL.RETINANET
        head = FCOSHead(
            input_shape=shapes,
            num_classes=keys.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * keys.NUM_CONVS,
            norm=keys.NORM,
            prior_prob=keys.PRIOR_PROB,
        )
        return {
            **parts,
            "head": head,
            "num_classes": keys.NUM_CLASSES,
            "center_sampling_radius": cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": keys.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": keys.FOCAL_LOSS_GAMMA,
            **vars(DetectionSettings.of_retinanet(cfg)),
        }

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Detectron2's losses, in float32: in half precision its GIoU raises an error."""
        return super().losses(
            anchors,
            [at_least_float32(x) for x in pred_logits],
            gt_labels,
            [at_least_float32(x) for x in pred_anchor_deltas],
            gt_boxes,
            [at_least_float32(x) for x in pred_centerness],
        )

    @torch.no_grad()
    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[Tensor]:
        """
        The positives of each object, as label_anchors assigns them.

        Returns:
            N x (R,) int64: index of the object in the image's gt_instances, -1 for background.
        """
        matched = []
        for instances in gt_instances:
            if len(instances) == 0:
                count = sum(len(x) for x in anchors)
                matched.append(anchors[0].tensor.new_full((count,), -1, dtype=torch.int64))
                continue
            quality, object_ids = self._match_anchors(instances.gt_boxes, anchors).max(dim=0)
            matched.append(object_ids.masked_fill(quality < 1e-5, -1))
        return matched
