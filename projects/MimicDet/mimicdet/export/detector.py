"""MimicDet's inference as one graph of tensors: what every export format writes."""

import copy
from collections.abc import Callable

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.meta_arch.mimicdet import MimicDet
from .nms import kept_by_nms
from .sampling import Atlas, MapPlaces, align_at, all_places

INPUT_NAMES = ("images", "image_sizes")
OUTPUT_NAMES = ("boxes", "scores", "classes", "num_detections")


class ExportableDetector(nn.Module):
    """
    The student of a MimicDet in evaluation: image tensors in, detections of fixed shape out.

    The numbers are those of `MimicDet.inference`. It holds copies of the backbone, the refinement
    module and the S-head; the T-head and the pyramid levels that only it reads are left behind.
    """

    def __init__(
        self,
        model: MimicDet,
        nms: Callable[..., Tensor] = kept_by_nms,
        precision: str = "float32",
    ):
        """
        Args:
            model: its eval_head must be "student"; ValueError otherwise.
            nms: kept_by_nms or an operator of the same arguments.
            precision: "float16" computes the backbone and the refinement module's 3x3 conv in half
                precision. What follows them stays in float32: places need the digits, and it is a
                small part of the work.
        """
        super().__init__()
        if model.eval_head != "student" or model.student_head is None:
            raise ValueError(
                "only the student can be exported: MODEL.MIMICDET.EVAL_HEAD is "
                f"{model.eval_head!r}, set it to 'student'"
            )
        self.size_divisor = model.backbone.size_divisibility
        self.backbone = _without_unused_levels(copy.deepcopy(model.backbone).eval())
        self.refinement = copy.deepcopy(model.proposal_generator).eval()
        self.student_head = copy.deepcopy(model.student_head).eval()
        self.register_buffer("pixel_mean", model.pixel_mean.clone(), persistent=False)
        self.register_buffer("pixel_std", model.pixel_std.clone(), persistent=False)
        self.nms = nms
        self.precision = precision
        if precision == "float16":
            self.backbone.half()
            self.refinement.conv.half()
        self.requires_grad_(False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) float32, pixels 0..255 in the model's input format, each image in
                the upper left corner of the common canvas; what lies outside it does not matter.
            image_sizes: (N, 2) int64, (height, width) of each image inside the canvas.

        Returns:
            boxes (N, D, 4) float32, XYXY in pixels of `images`; scores (N, D) float32, best first;
            classes (N, D) int64; num_detections (N,) int64. Rows from num_detections on are zero.
        """
        pixels = self._preprocess(images, image_sizes)
        features = self.backbone(pixels.half() if self.precision == "float16" else pixels)
        maps = [features[f] for f in self.refinement.in_features]
        logits, deltas, _ = self.refinement.predict_maps(maps)
        anchors = Boxes.cat(self.refinement.anchor_generator(maps)).tensor
        maps = [x.float() for x in maps]
        limits = torch.stack([image_sizes[:, 1], image_sizes[:, 0]] * 2, dim=1)[:, None].float()
        proposals, positions, deltas, valid = self._propose(logits, deltas, anchors, limits)
        places = all_places(maps).at(positions)
        predictions = self.student_head.predict(F.relu(self._align(maps, places, deltas)))
        return self._detect(
            proposals, valid, predictions.pred_class_logits, predictions.pred_box_deltas, limits
        )

    def _preprocess(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Normalise, clear what lies outside the images, pad to the size divisor."""
        height, width = images.shape[-2:]
        row = torch.arange(height, device=images.device)[None, :, None]
        column = torch.arange(width, device=images.device)[None, None]
        inside = (row < image_sizes[:, 0, None, None]) & (column < image_sizes[:, 1, None, None])
        images = (images - self.pixel_mean) / self.pixel_std
        images = torch.where(inside[:, None], images, 0.0)
        divisor = max(self.size_divisor, 1)
        padded = [(size + divisor - 1) // divisor * divisor for size in (height, width)]
        return F.pad(images, (0, padded[1] - width, 0, padded[0] - height))

    def _propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        The M = MODEL.RPN.POST_NMS_TOPK_TEST best adjusted anchors of each image.

        Returns:
            boxes (N, M, 4), positions (N, M), deltas (N, M, 4), valid (N, M): False on filling.
        """
        topk = self.refinement.post_nms_topk[False]
        deltas, logits = deltas.float(), logits.float()
        boxes = _apply_deltas(self.refinement.box2box_transform, deltas, anchors)
        boxes = _clip(boxes, limits)
        usable = _nonempty(boxes) & torch.isfinite(logits)
        logits = torch.where(usable, logits, -torch.inf)
        # Small images have fewer positions: filled up, so that topk is a constant.
        best, positions = F.pad(logits, (0, topk), value=-torch.inf).topk(topk, dim=1)
        valid = best > -torch.inf
        positions = torch.where(valid, positions, 0)
        wanted = positions[..., None].expand(-1, -1, 4)
        return boxes.gather(1, wanted), positions, deltas.gather(1, wanted), valid

    def _align(self, maps: list[Tensor], places: MapPlaces, deltas: Tensor) -> Tensor:
        """The alignment layer's output at each place, before the activation: (N, M, O)."""
        head = self.student_head
        aligned = None
        for kernel in sorted(set(head.kernel_sizes)):
            levels = [i for i, k in enumerate(head.kernel_sizes) if k == kernel]
            layer = head.alignments[f"k{kernel}"]
            found = align_at(layer, Atlas(maps, levels), places, deltas)
            if aligned is None:
                aligned = found
                continue
            here = torch.stack([places.levels == i for i in levels]).any(dim=0)
            aligned = torch.where(here[..., None], found, aligned)
        return aligned

    def _detect(
        self, proposals: Tensor, valid: Tensor, logits: Tensor, deltas: Tensor, limits: Tensor
    ) -> tuple[Tensor, ...]:
        """Second regression, scores, NMS, best D; see postprocess.detections."""
        settings = self.student_head.settings
        score_thresh, nms_thresh, topk = settings.test_thresholds
        boxes = _apply_deltas(settings.box2box_transform, deltas, proposals)
        scores = logits.softmax(dim=2)
        usable = valid & torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores).all(dim=2)
        boxes = torch.where(usable[..., None], _clip(boxes, limits), 0.0)
        scores = torch.where(usable[..., None], scores[..., :-1], 0.0)
        kept = self.nms(boxes, scores, score_thresh, nms_thresh, topk)
        scores = torch.where(kept, scores, -1.0).flatten(1)
        scores = F.pad(scores, (0, max(topk - scores.shape[1], 0)), value=-1.0)
        scores, index = scores.topk(topk, dim=1)
        # Detectron2 drops boxes without area last, after the cut to topk.
        box_index = (index // settings.num_classes).clamp(max=boxes.shape[1] - 1)
        boxes = boxes.gather(1, box_index[..., None].expand(-1, -1, 4))
        scores, order = torch.where(_nonempty(boxes), scores, -1.0).topk(topk, dim=1)
        found = scores >= 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        classes = (index % settings.num_classes).gather(1, order)
        return (
            torch.where(found[..., None], boxes, 0.0),
            torch.where(found, scores, 0.0),
            torch.where(found, classes, 0),
            found.sum(dim=1),
        )


def _without_unused_levels(backbone: nn.Module) -> nn.Module:
    """Remove the pyramid's convolutions of levels that evaluation does not compute (P2)."""
    wanted = getattr(backbone, "eval_out_features", None)
    if wanted is None:
        return backbone
    stages = [int(name[1:]) for name in wanted]
    for stage in range(min(stages)):
        for name in (f"fpn_lateral{stage}", f"fpn_output{stage}"):
            if hasattr(backbone, name):
                delattr(backbone, name)
    return backbone


def _apply_deltas(transform, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Box2BoxTransform.apply_deltas of (N, M, 4) deltas and (N, M, 4) or (M, 4) boxes."""
    boxes = boxes.expand_as(deltas).reshape(-1, 4)
    return transform.apply_deltas(deltas.reshape(-1, 4), boxes).reshape(deltas.shape)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (N, M, 4) clipped to images; limits: (N, 1, 4) of (width, height) twice."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _nonempty(boxes: Tensor) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)
