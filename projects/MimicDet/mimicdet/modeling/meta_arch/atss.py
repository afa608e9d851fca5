"""ATSS: RetinaNet's heads with one anchor a location, adaptive assignment and centre-ness."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from ..boxes import centerness
from ..layers.precision import at_least_float32
from ..losses import weighted_giou_loss
from .adaptive import AdaptiveDetector, process_mean
from .tower_head import TowerHead


@dataclass(frozen=True)
class ATSSLossSettings:
    focal_alpha: float
    focal_gamma: float
    box_weight: float
    centerness_weight: float


@META_ARCH_REGISTRY.register()
class ATSS(AdaptiveDetector):
    """
    Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
    Training Sample Selection, CVPR 2020.
    """

    @classmethod
    def build_loss_settings(cls, cfg):
        retinanet, atss = cfg.MODEL.RETINANET, cfg.MODEL.ATSS
        return ATSSLossSettings(
            retinanet.FOCAL_LOSS_ALPHA,
            retinanet.FOCAL_LOSS_GAMMA,
            atss.BOX_LOSS_WEIGHT,
            atss.CENTERNESS_LOSS_WEIGHT,
        )

    @classmethod
    def build_head(cls, cfg, input_shape):
        return TowerHead(cfg, input_shape, box_dim=4, has_centerness=True)

    @classmethod
    def build_transform(cls, cfg, input_shape):
        return Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)

    @property
    def output_dims(self) -> list[int]:
        return [self.num_classes, 4, 1]

    def scores(self, logits: Tensor, *further: Tensor) -> Tensor:
        """
        Not in the paper: the score is sqrt(class probability * centre-ness), as in Detectron2's
        FCOS; SCORE_THRESH_TEST is a threshold on it.
        """
        (centerness_logits,) = further
        return (logits.sigmoid() * centerness_logits.sigmoid()).sqrt()

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Focal loss over all anchors; GIoU weighted by centre-ness and the centre-ness' binary
        cross-entropy over positives.

        Divisors are means over processes: the positives, and for GIoU the sum of its weights.

        Args:
            pred_*: L x (N, Rl, K, 4 or 1); gt_labels, gt_boxes: see label_anchors.
        """
        settings = self.loss_settings
        labels = torch.stack(gt_labels)  # (N, R)
        positive = labels != self.num_classes
        num_positives = process_mean(positive.sum().float()).clamp(min=1)
        logits = at_least_float32(torch.cat(pred_logits, dim=1))
        one_hot = F.one_hot(labels, self.num_classes + 1)[..., :-1].to(logits.dtype)
        loss_cls = sigmoid_focal_loss(
            logits, one_hot, settings.focal_alpha, settings.focal_gamma, reduction="sum"
        )

        all_anchors = Boxes.cat(anchors)
        anchor_index = positive.nonzero()[:, 1]
        matched_boxes = torch.stack(gt_boxes)[positive]
        targets = centerness(all_anchors.get_centers()[anchor_index], matched_boxes)
        pred_boxes = self.box2box_transform.apply_deltas(
            torch.cat(pred_anchor_deltas, dim=1)[positive], all_anchors.tensor[anchor_index]
        )
        loss_box = weighted_giou_loss(pred_boxes, matched_boxes, targets)
        loss_centerness = F.binary_cross_entropy_with_logits(
            at_least_float32(torch.cat(pred_centerness, dim=1)[positive].squeeze(1)),
            targets,
            reduction="sum",
        )
        total_weight = process_mean(targets.sum()).clamp(min=1)
        return {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": settings.box_weight * loss_box / total_weight,
            "loss_centerness": settings.centerness_weight * loss_centerness / num_positives,
        }
