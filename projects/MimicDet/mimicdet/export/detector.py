"""MimicDet's inference as one graph of tensors: what every export format writes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.meta_arch.mimicdet import MimicDet
from ..modeling.postprocess import has_area
from ..utils.errors import UserError
from .graph_rows import GraphPyramid
from .nms import kept_by_nms
from .optimize import copy_for_inference

INPUT_NAMES = ("images", "image_sizes")
OUTPUT_NAMES = ("boxes", "scores", "classes", "num_detections")


class ExportableDetector(nn.Module):
    """
    The student of a MimicDet in evaluation: image tensors in, detections of fixed shape out.

    The numbers are those of `MimicDet.inference`. It holds a copy of the model without the T-head
    and the pyramid levels that only the T-head reads.
    """

    def __init__(
        self,
        model: MimicDet,
        nms: Callable[..., Tensor] = kept_by_nms,
        precision: str = "float32",
    ):
        """
        Args:
            model: its eval_head must be "student"; UserError otherwise.
            nms: kept_by_nms or an operator of the same arguments.
            precision: "float16" computes the backbone and the refinement module's 3x3 conv in half
                precision. What follows them stays in float32: places need the digits, and it is a
                small part of the work.
        """
        super().__init__()
        if model.eval_head != "student" or model.student_head is None:
            raise UserError(
                "only the student can be exported: MODEL.MIMICDET.EVAL_HEAD is "
                f"{model.eval_head!r}, set it to 'student'"
            )
        self.model = copy_for_inference(model)
        _drop_unused_levels(self.model.backbone)
        std = self.model.pixel_std
        std = std[:1] if (std == std[0]).all() else std  # (1 or 3, 1, 1)
        self.register_buffer("std", std.clone(), persistent=False)
        self.nms = nms
        self.precision = precision
        if precision == "float16":
            self.model.backbone.half()
            self.model.proposal_generator.conv.half()

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) float32, pixels 0..255 in the model's input format, each image in
                the upper left corner of the common canvas; what lies outside it does not matter, as
                long as it is finite.
            image_sizes: (N, 2) int64, (height, width) of each image inside the canvas.

        Returns:
            boxes (N, D, 4) float32, XYXY in pixels of `images`; scores (N, D) float32, best first;
            classes (N, D) int64; num_detections (N,) int64. Rows from num_detections on are zero.
        """
        pixels = self._preprocess(images, image_sizes)
        features = self.model.backbone(pixels.half() if self.precision == "float16" else pixels)
        outputs = self.model.predict(features, image_sizes, GraphPyramid)
        settings = self.model.eval_settings
        proposals = outputs.proposals
        boxes, scores = settings.decode(
            proposals.boxes, outputs.predictions, image_sizes, proposals.valid
        )
        return self._best(boxes, scores, *settings.test_thresholds)

    def _preprocess(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Normalise, clear what lies outside the images, pad to the size divisor."""
        height, width = images.shape[-2:]
        row = torch.arange(height, device=images.device)[:, None]
        column = torch.arange(width, device=images.device)
        inside_height = (row < image_sizes[:, 0, None, None, None]).float()  # (N, 1, H, 1)
        inside_width = (column < image_sizes[:, 1, None, None, None]).float()  # (N, 1, 1, W)
        # A product: the choice of torch.where takes ONNX Runtime three times as long.
        scale = inside_height / self.std * inside_width  # (N, 1 or 3, H, W)
        images = (images - self.model.pixel_mean) * scale
        divisor = max(self.model.backbone.size_divisibility, 1)
        padded = [(size + divisor - 1) // divisor * divisor for size in (height, width)]
        return F.pad(images, (0, padded[1] - width, 0, padded[0] - height))

    def _best(
        self, boxes: Tensor, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
    ) -> tuple[Tensor, ...]:
        """NMS and the best D = topk detections; see postprocess.best_detections."""
        num_classes = scores.shape[2]
        kept = self.nms(boxes, scores, score_thresh, nms_thresh, topk)
        scores = torch.where(kept, scores, -1.0).flatten(1)
        scores = F.pad(scores, (0, max(topk - scores.shape[1], 0)), value=-1.0)
        scores, index = scores.topk(topk, dim=1)
        # Detectron2 drops boxes without area last, after the cut to topk.
        box_index = (index // num_classes).clamp(max=boxes.shape[1] - 1)
        boxes = boxes.gather(1, box_index[..., None].expand(-1, -1, 4))
        scores, order = torch.where(has_area(boxes), scores, -1.0).topk(topk, dim=1)
        filled = scores >= 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        classes = (index % num_classes).gather(1, order)
        return (
            torch.where(filled[..., None], boxes, 0.0),
            torch.where(filled, scores, 0.0),
            torch.where(filled, classes, 0),
            filled.sum(dim=1),
        )


def _drop_unused_levels(backbone: nn.Module) -> None:
    """Remove the pyramid's convolutions of levels that evaluation does not compute (P2)."""
    requested = getattr(backbone, "eval_out_features", None)
    if requested is None:
        return
    for stage in range(min(int(name[1:]) for name in requested)):
        for name in (f"fpn_lateral{stage}", f"fpn_output{stage}"):
            if hasattr(backbone, name):
                delattr(backbone, name)
