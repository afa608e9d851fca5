"""GFL: a score that joins class and quality, and boxes whose sides are distributions."""

from dataclasses import dataclass

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor

from ...utils.errors import UserError
from ..backbone.pyramid import anchor_scales
from ..boxes import aligned_iou, box_distances, distance_boxes, expected_distances
from ..losses import distribution_focal_loss, quality_focal_loss, weighted_giou_loss
from .adaptive import AdaptiveDetector, process_mean
from .tower_head import TowerHead


class DistributionTransform:
    """
    Detectron2's box-to-box interface for sides that are distributions over distances.

    Distances start at the anchor's centre and count in strides of its level.
    """

    def __init__(self, reg_max: int, anchor_scale: float):
        """
        Args:
            reg_max: the largest distance; a side has reg_max + 1 bins.
            anchor_scale: side of every level's anchors in its strides.
        """
        self.reg_max = reg_max
        self.anchor_scale = anchor_scale

    def strides(self, anchors: Tensor) -> Tensor:
        """(b, 4) square anchors -> (b, 1) strides of their levels, input pixels."""
        return (anchors[:, 2:3] - anchors[:, 0:1]) / self.anchor_scale

    def get_deltas(self, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """(b, 4) anchors and boxes -> (b, 4) distances in strides, cut to what bins can express."""
        distances = box_distances(Boxes(anchors).get_centers(), gt_boxes) / self.strides(anchors)
        # Just below the last bin: the bin to the right of a distance must exist.
        return distances.clamp(min=0, max=self.reg_max - 0.1)

    def apply_deltas(self, logits: Tensor, anchors: Tensor) -> Tensor:
        """(b, 4 * (reg_max + 1)) logits and (b, 4) anchors -> (b, 4) boxes XYXY, input pixels."""
        distances = expected_distances(logits) * self.strides(anchors)
        return distance_boxes(Boxes(anchors).get_centers(), distances)


@dataclass(frozen=True)
class GFLLossSettings:
    focal_beta: float  # of the quality focal loss
    box_weight: float
    distribution_weight: float


@META_ARCH_REGISTRY.register()
class GFL(AdaptiveDetector):
    """
    Li et al., Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense
    Object Detection, NeurIPS 2020.
    """

    @classmethod
    def build_loss_settings(cls, cfg):
        keys = cfg.MODEL.GFL
        return GFLLossSettings(
            keys.QUALITY_FOCAL_BETA, keys.BOX_LOSS_WEIGHT, keys.DISTRIBUTION_LOSS_WEIGHT
        )

    @classmethod
    def build_head(cls, cfg, input_shape):
        box_dim = 4 * (cfg.MODEL.GFL.REG_MAX + 1)
        return TowerHead(cfg, input_shape, box_dim=box_dim, has_centerness=False)

    @classmethod
    def build_transform(cls, cfg, input_shape):
        scales = set(anchor_scales(cfg, input_shape))
        if len(scales) != 1:
            raise UserError(
                "MODEL.ANCHOR_GENERATOR.SIZES must be the same multiple of the stride on every "
                f"level of MODEL.RETINANET.IN_FEATURES for GFL, got multiples {sorted(scales)}"
            )
        return DistributionTransform(cfg.MODEL.GFL.REG_MAX, scales.pop())

    @property
    def output_dims(self) -> list[int]:
        return [self.num_classes, 4 * (self.box2box_transform.reg_max + 1)]

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Quality focal loss over all anchors; GIoU and distribution focal loss over positives, each
        positive weighted by its highest score (detached).

        Divisors are means over processes: the positives, and the sum of the weights.

        Args:
            pred_*: L x (N, Rl, K or 4 * bins); gt_labels, gt_boxes: see label_anchors.
        """
        settings = self.loss_settings
        labels = torch.stack(gt_labels)  # (N, R)
        positive = labels != self.num_classes
        num_positives = process_mean(positive.sum().float()).clamp(min=1)
        logits = torch.cat(pred_logits, dim=1)
        deltas = torch.cat(pred_anchor_deltas, dim=1)[positive]
        positive_anchors = Boxes.cat(anchors).tensor[positive.nonzero()[:, 1]]
        matched_boxes = torch.stack(gt_boxes)[positive]
        pred_boxes = self.box2box_transform.apply_deltas(deltas, positive_anchors)

        quality = torch.zeros_like(logits, dtype=pred_boxes.dtype)
        quality[(*positive.nonzero(as_tuple=True), labels[positive])] = aligned_iou(
            pred_boxes.detach(), matched_boxes
        )
        loss_cls = quality_focal_loss(logits, quality, settings.focal_beta).sum()

        weights = logits.detach()[positive].float().sigmoid().max(dim=1).values
        loss_box = weighted_giou_loss(pred_boxes, matched_boxes, weights)
        distances = self.box2box_transform.get_deltas(positive_anchors, matched_boxes)
        bins = self.box2box_transform.reg_max + 1
        per_side = distribution_focal_loss(deltas.reshape(-1, bins), distances.ravel())
        loss_distribution = (per_side.reshape(-1, 4).mean(dim=1) * weights).sum()
        total_weight = process_mean(weights.sum()).clamp(min=1)
        return {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": settings.box_weight * loss_box / total_weight,
            "loss_distribution": settings.distribution_weight * loss_distribution / total_weight,
        }
