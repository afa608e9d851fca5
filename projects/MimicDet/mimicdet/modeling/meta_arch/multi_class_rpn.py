"""FGFI's lightweight detector: a region proposal network that tells classes apart (its 4.1)."""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from ..heads.labels import BoxSampling
from ..layers.precision import at_least_float32
from .adaptive import AnchorDetector, DetectionSettings, detector_parts, process_mean


class MultiClassRPNHead(nn.Module):
    """
    A 3x3 conv for the classes and one for the boxes, no hidden layer.

    Not in the paper, which says that the head is fully convolutional: the size of the convs.
    """

    def __init__(self, in_channels: int, num_anchors: int, num_classes: int):
        super().__init__()
        self.class_logits = nn.Conv2d(in_channels, num_anchors * (num_classes + 1), 3, padding=1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        for layer in (self.class_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """L x (N, C, H, W) -> logits L x (N, A * (K + 1), H, W), deltas L x (N, A * 4, H, W)."""
        return [
            [self.class_logits(x) for x in features],
            [self.anchor_deltas(x) for x in features],
        ]


@META_ARCH_REGISTRY.register()
class MultiClassRPN(AnchorDetector):
    """
    One map, several anchors a location, softmax over classes and background.

    Not in the paper: labels, sampling and losses, which are Faster R-CNN's RPN's with
    cross-entropy over K + 1 classes (MODEL.RPN and MODEL.ROI_HEADS keys).
    """

    @configurable
    def __init__(self, *, sampling: BoxSampling, **kwargs):
        """
        Args:
            sampling: of the anchors that the loss is computed for; its matcher labels them.
            kwargs: see AnchorDetector; loss_settings is the weight of the box loss.
        """
        super().__init__(**kwargs)
        self.sampling = sampling

    @classmethod
    def from_config(cls, cfg):
        shapes, parts = detector_parts(cfg, "RPN")
        rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
        anchor_generator = build_anchor_generator(cfg, shapes)
        head = MultiClassRPNHead(
            shapes[0].channels, anchor_generator.num_anchors[0], heads.NUM_CLASSES
        )
        return {
            **parts,
            "head": head,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "sampling": BoxSampling(
                Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
                heads.NUM_CLASSES,
                rpn.BATCH_SIZE_PER_IMAGE,
                rpn.POSITIVE_FRACTION,
            ),
            "num_classes": heads.NUM_CLASSES,
            "loss_settings": rpn.BBOX_REG_LOSS_WEIGHT,
            "detection": DetectionSettings(
                heads.SCORE_THRESH_TEST,
                rpn.PRE_NMS_TOPK_TEST,
                heads.NMS_THRESH_TEST,
                cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
        }

    @property
    def output_dims(self) -> list[int]:
        return [self.num_classes + 1, 4]

    def scores(self, logits: Tensor, *further: Tensor) -> Tensor:
        return at_least_float32(logits).softmax(dim=-1)[..., :-1]

    @torch.no_grad()
    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[Tensor]:
        """
        See AnchorDetector; anchors between the two thresholds are ignored, and a box without area
        has no positives.
        """
        all_anchors = Boxes.cat(anchors)
        matched = []
        for instances in gt_instances:
            # The matcher gives each box its best anchors, one without area all of them.
            kept = instances.gt_boxes.nonempty().nonzero().squeeze(1)
            ious = pairwise_iou(instances.gt_boxes[kept], all_anchors)
            object_ids, labels = self.sampling.matcher(ious)
            object_ids = kept[object_ids] if len(kept) else object_ids
            object_ids = object_ids.masked_fill(labels == 0, -1)
            matched.append(object_ids.masked_fill(labels == -1, -2))
        return matched

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Cross-entropy over a sample of each image's anchors, L1 over its positives, both divided by
        the number of sampled anchors (mean over processes).

        Args:
            pred_*: L x (N, Rl * A, K + 1 or 4); gt_labels, gt_boxes: see label_anchors.
        """
        labels = torch.full_like(torch.stack(gt_labels), -1)  # (N, R): what is not sampled
        for own, classes, chosen in zip(labels, gt_labels, self.sampling.sample(gt_labels)):
            own[chosen] = classes[chosen]
        sampled = labels >= 0
        positive = sampled & (labels != self.num_classes)
        normalizer = process_mean(sampled.sum().float()).clamp(min=1)
        logits = at_least_float32(torch.cat(pred_logits, dim=1)[sampled])
        loss_cls = F.cross_entropy(logits, labels[sampled], reduction="sum")
        gt_deltas = self.box2box_transform.get_deltas(
            Boxes.cat(anchors).tensor[positive.nonzero()[:, 1]], torch.stack(gt_boxes)[positive]
        )
        pred_deltas = at_least_float32(torch.cat(pred_anchor_deltas, dim=1)[positive])
        loss_box = F.l1_loss(pred_deltas, gt_deltas, reduction="sum")
        return {
            "loss_cls": loss_cls / normalizer,
            "loss_box_reg": self.loss_settings * loss_box / normalizer,
        }
