"""What ATSS and GFL share: anchors, assignment, labels and inference."""

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ...utils.errors import UserError, check_choices
from ..assignment import atss_assign


def process_mean(x: Tensor) -> Tensor:
    """Mean of a tensor without gradient over all processes; itself where there is one."""
    if comm.get_world_size() == 1:
        return x
    total = x.detach().clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


def log_positives(gt_labels: list[Tensor], num_classes: int) -> None:
    """num_pos_anchors for the logs, an image, as Detectron2's RetinaNet and FCOS write it."""
    if has_event_storage():
        positives = sum(int(((x >= 0) & (x < num_classes)).sum()) for x in gt_labels)
        get_event_storage().put_scalar("num_pos_anchors", positives / len(gt_labels))


class AdaptiveDetector(DenseDetector):
    """
    A dense detector with one square anchor a location and ATSS assignment.

    Like Detectron2's RetinaNet and FCOS it has anchor_generator, box2box_transform, label_anchors,
    losses, forward_inference and inference_single_image; beyond them match_anchors (which object
    an anchor is a positive of).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Any,
        num_classes: int,
        assignment_topk: int,
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float,
        max_detections_per_image: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone, head, head_in_features, pixel_mean, pixel_std: see DenseDetector.
            anchor_generator: must give one anchor a location.
            box2box_transform: apply_deltas(values, anchors) gives the predicted boxes.
            assignment_topk: candidates a level for each object.
            test_score_thresh, test_topk_candidates, test_nms_thresh, max_detections_per_image: as
                in RetinaNet.

        Raises:
            UserError: several anchors a location.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        if any(count != 1 for count in anchor_generator.num_anchors):
            raise UserError(
                "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS must give one anchor a location, "
                f"got {anchor_generator.num_anchors}"
            )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.assignment_topk = assignment_topk
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        keys = cfg.MODEL.RETINANET
        check_choices("MODEL.RETINANET.IN_FEATURES", keys.IN_FEATURES, backbone.output_shape())
        shapes = [backbone.output_shape()[name] for name in keys.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": cls.build_head(cfg, shapes),
            "head_in_features": keys.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": cls.build_transform(cfg, shapes),
            "num_classes": keys.NUM_CLASSES,
            "assignment_topk": cfg.MODEL.ATSS.TOPK,
            "test_score_thresh": keys.SCORE_THRESH_TEST,
            "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": keys.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def build_head(cls, cfg, input_shape):
        """The head for levels of these shapes."""
        raise TypeError(f"{cls.__name__} must define build_head")

    @classmethod
    def build_transform(cls, cfg, input_shape):
        """What makes boxes of the head's box values."""
        raise TypeError(f"{cls.__name__} must define build_transform")

    @torch.no_grad()
    def match_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> list[Tensor]:
        """
        The positives of each object.

        Returns:
            N x (R,) int64: index of the object in the image's gt_instances, -1 for background.
        """
        all_anchors = Boxes.cat(anchors).tensor
        counts = [len(x) for x in anchors]
        return [
            atss_assign(all_anchors, counts, x.gt_boxes.tensor, self.assignment_topk)
            for x in gt_instances
        ]

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """
        As RetinaNet.label_anchors, without ignored anchors.

        Returns:
            N x (R,) classes, num_classes for background; N x (R, 4) boxes of the matched objects,
            meaningless for background.
        """
        labels, boxes = [], []
        for matched, instances in zip(self.match_anchors(anchors, gt_instances), gt_instances):
            background = matched < 0
            if len(instances) == 0:
                labels.append(torch.full_like(matched, self.num_classes))
                boxes.append(instances.gt_boxes.tensor.new_zeros(len(matched), 4))
                continue
            object_ids = matched.clamp(min=0)
            labels.append(
                instances.gt_classes[object_ids].masked_fill(background, self.num_classes)
            )
            boxes.append(instances.gt_boxes.tensor[object_ids])
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
        candidates = self._decode_multi_level_predictions(
            anchors,
            scores,
            deltas,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.test_nms_thresh,
        )
        return candidates[keep[: self.max_detections_per_image]]
