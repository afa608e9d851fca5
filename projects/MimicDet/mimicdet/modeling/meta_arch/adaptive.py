"""What ATSS, GFL and MultiClassRPN share: data flow and labels; ATSS and GFL: assignment too."""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ...utils.errors import UserError
from ..backbone.pyramid import level_shapes
from ..targets import atss_assign


def process_mean(x: Tensor) -> Tensor:
    """Mean of a tensor without gradient over all processes; itself where there is one."""
    if comm.get_world_size() == 1:
        return x
    total = x.detach().clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


def detector_parts(cfg, section: str) -> tuple[list[ShapeSpec], dict[str, Any]]:
    """Shapes of the levels MODEL.section.IN_FEATURES, and what DenseDetector takes but the head."""
    backbone, names = build_backbone(cfg), cfg.MODEL[section].IN_FEATURES
    shapes = level_shapes(f"MODEL.{section}.IN_FEATURES", names, backbone.output_shape())
    return shapes, {
        "backbone": backbone,
        "head_in_features": names,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


@dataclass(frozen=True)
class DetectionSettings:
    """What becomes a detection; the names are those of Detectron2's dense detectors."""

    test_score_thresh: float
    test_topk_candidates: int  # of each level, before NMS
    test_nms_thresh: float
    max_detections_per_image: int

    @classmethod
    def of_retinanet(cls, cfg) -> "DetectionSettings":
        keys = cfg.MODEL.RETINANET
        return cls(
            keys.SCORE_THRESH_TEST,
            keys.TOPK_CANDIDATES_TEST,
            keys.NMS_THRESH_TEST,
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )


class AnchorDetector(DenseDetector):
    """
    A dense detector that says which object an anchor is a positive of (match_anchors), how many
    numbers its head gives for an anchor (output_dims), and how they are read: by scores, and by
    losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, further outputs...).

    Like Detectron2's RetinaNet and FCOS it has anchor_generator, box2box_transform, label_anchors,
    losses, forward_inference and inference_single_image.
    """

    output_dims: list[int]  # of classes, box and what else the head gives

    def __init__(
        self,
        *,
        anchor_generator: nn.Module,
        box2box_transform: Any,
        num_classes: int,
        detection: DetectionSettings,
        loss_settings: Any,
        **kwargs,
    ):
        """
        Args:
            loss_settings: the numbers that the detector's losses need.
            box2box_transform: apply_deltas(values, anchors) gives the predicted boxes.
            kwargs: see DenseDetector.
        """
        super().__init__(**kwargs)
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.detection = detection
        self.loss_settings = loss_settings

    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[Tensor]:
        """
        The positives of each object.

        Returns:
            N x (R,) int64: index of the object in the image's gt_instances, -1 for background, -2
            for ignored anchors.
        """
        raise TypeError(f"{type(self).__name__} must define match_anchors")

    def scores(self, logits: Tensor, *further: Tensor) -> Tensor:
        """Scores (N, Rl, K) in [0, 1] from a level's outputs without its boxes."""
        return logits.sigmoid()

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch."""
        logits, deltas, *further = self._transpose_dense_predictions(predictions, self.output_dims)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes, *further)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detections of N images in the size of the network's input."""
        logits, deltas, *further = self._transpose_dense_predictions(predictions, self.output_dims)
        anchors = self.anchor_generator(features)
        scores = [self.scores(*level) for level in zip(logits, *further)]
        return [
            self.inference_single_image(
                anchors, [x[i] for x in scores], [x[i] for x in deltas], image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """
        As RetinaNet.label_anchors: N x (R,) classes, num_classes for background, -1 for ignored
        anchors; N x (R, 4) boxes of the matched objects, meaningless elsewhere. Logs
        num_pos_anchors, an image, as RetinaNet's losses do.
        """
        labels, boxes = [], []
        for matched, instances in zip(self.match_anchors(anchors, gt_instances), gt_instances):
            if len(instances) == 0:
                labels.append(torch.full_like(matched, self.num_classes))
                boxes.append(instances.gt_boxes.tensor.new_zeros(len(matched), 4))
                continue
            object_ids = matched.clamp(min=0)
            classes = instances.gt_classes[object_ids].masked_fill(matched == -1, self.num_classes)
            labels.append(classes.masked_fill(matched == -2, -1))
            boxes.append(instances.gt_boxes.tensor[object_ids])
        if has_event_storage():
            positives = sum(int(((x >= 0) & (x < self.num_classes)).sum()) for x in labels)
            get_event_storage().put_scalar("num_pos_anchors", positives / len(labels))
        return labels, boxes

    def inference_single_image(
        self,
        anchors: list[Boxes],
        scores: list[Tensor],
        deltas: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """
        Best candidates of each level, NMS class by class, best of all.

        Args:
            scores: L x (Rl, K) in [0, 1]; deltas: L x (Rl, values a box).
        """
        settings = self.detection
        candidates = self._decode_multi_level_predictions(
            anchors,
            scores,
            deltas,
            settings.test_score_thresh,
            settings.test_topk_candidates,
            image_size,
        )
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            settings.test_nms_thresh,
        )
        return candidates[keep[: settings.max_detections_per_image]]


class AdaptiveDetector(AnchorDetector):
    """
    A dense detector with one square anchor a location and ATSS assignment.

    A subclass builds its parts from the config and the levels' shapes: build_head(cfg, shapes),
    build_transform(cfg, shapes), which makes boxes of the head's box values, and
    build_loss_settings(cfg).
    """

    @configurable
    def __init__(self, *, assignment_topk: int, **kwargs):
        """
        Args:
            assignment_topk: candidates a level for each object.
            kwargs: see AnchorDetector.

        Raises:
            ValueError: several anchors a location.
        """
        super().__init__(**kwargs)
        if any(count != 1 for count in self.anchor_generator.num_anchors):
            raise UserError(
                "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS must give one anchor a location, "
                f"got {self.anchor_generator.num_anchors}"
            )
        self.assignment_topk = assignment_topk

    @classmethod
    def from_config(cls, cfg):
        shapes, parts = detector_parts(cfg, "RETINANET")
        return {
            **parts,
            "head": cls.build_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": cls.build_transform(cfg, shapes),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "assignment_topk": cfg.MODEL.ATSS.TOPK,
            "detection": DetectionSettings.of_retinanet(cfg),
            "loss_settings": cls.build_loss_settings(cfg),
        }

    @torch.no_grad()
    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[Tensor]:
        """See AnchorDetector; no anchor is ignored."""
        all_anchors = Boxes.cat(anchors).tensor
        counts = [len(x) for x in anchors]
        return [
            atss_assign(all_anchors, counts, x.gt_boxes.tensor, self.assignment_topk)
            for x in gt_instances
        ]
