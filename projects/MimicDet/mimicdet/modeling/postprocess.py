"""Decoding, scoring and NMS: pure functions, no gradients. Shape shorthand: see structures.py."""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from .structures import HeadPredictions

# Boxes that enter a first NMS at least, for each that is requested of it: see nms_best.
NMS_PREFIX = 2


@torch.no_grad()
def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) XYXY clipped to an image of (height, width), as a new tensor."""
    height, width = image_size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


@torch.no_grad()
def nms_best(boxes: Tensor, scores: Tensor, groups: Tensor, iou_thresh: float, topk: int) -> Tensor:
    """
    The topk best boxes that greedy NMS inside each group keeps, best first.

    Whether NMS keeps a box depends on better boxes alone, so that NMS over the best few gives the
    first of what it gives over all: it runs over a prefix of the boxes, which grows until topk are
    kept. NMS over all boxes costs the square of their number.

    Args:
        boxes: (M, 4) XYXY; scores: (M,); groups: (M,) int64, class or image of each box.
        iou_thresh: a box goes when its IoU with a kept box of its group is above.

    Returns:
        indices into boxes: (at most topk,).
    """
    order = scores.argsort(descending=True, stable=True)
    # Groups are moved apart; float64, since a thousand classes move boxes by a million pixels.
    apart = boxes.double()
    if len(boxes):
        apart = apart + (groups * (boxes.max() - boxes.min() + 1).double())[:, None]
    size, kept = NMS_PREFIX * topk, order[:0]
    while True:
        prefix = order[:size]
        # Equal scores would let nms order the boxes by itself: ranks are never equal.
        ranks = torch.arange(len(prefix), 0, -1, device=boxes.device, dtype=apart.dtype)
        kept = prefix[nms(apart[prefix], ranks, iou_thresh)]
        if len(kept) >= topk or size >= len(order):
            return kept[:topk]
        size *= 2


@torch.no_grad()
def clip_to_images(boxes: Tensor, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
    """
    Boxes (N, M, 4) XYXY clipped to their images, as a new tensor.

    Args:
        image_sizes: N x (height, width), or an (N, 2) int64 tensor where a graph takes them as an
            input.
    """
    if isinstance(image_sizes, Tensor):
        limits = torch.stack([image_sizes[:, 1], image_sizes[:, 0]] * 2, dim=1)
        return torch.minimum(boxes.mT.clamp(min=0), limits[..., None].to(boxes.dtype)).mT
    return torch.stack([clip_boxes(x, size) for x, size in zip(boxes, image_sizes)])


def has_area(boxes: Tensor) -> Tensor:
    """(..., M) bool of boxes (..., M, 4) XYXY."""
    low, high = boxes.mT.split(2, dim=-2)
    return (high > low).all(dim=-2)


@torch.no_grad()
def rank_proposals(
    boxes: Tensor, logits: Tensor, topk: int, fixed_size: bool = False
) -> tuple[Tensor, Tensor]:
    """
    Each image's best boxes by objectness, best first.

    Args:
        boxes: (N, R, 4) XYXY, clipped; those without area are left out. logits: (N, R).
        topk: how many to take.
        fixed_size: M is topk also where it is more than R, as graphs of fixed shape need it.

    Returns:
        locations (N, M) int64 in [0, R) and valid (N, M) bool, False on fillers, which come last;
        M = min(topk, R).
    """
    usable = has_area(boxes) & torch.isfinite(logits)
    logits = torch.where(usable, logits, -torch.inf)
    if fixed_size:
        logits = F.pad(logits, (0, topk), value=-torch.inf)
    else:
        topk = min(topk, logits.shape[1])
    best, locations = logits.topk(topk, dim=1)
    valid = best > -torch.inf
    return torch.where(valid, locations, 0), valid


@torch.no_grad()
def select_proposals(
    boxes: Tensor, logits: Tensor, topk: int, nms_thresh: float, pre_nms_topk: int = 0
) -> list[Tensor]:
    """
    Locations of each image's proposal set in training: NMS over all levels together, then the best
    by objectness (4.1).

    Args:
        boxes, logits: see rank_proposals.
        topk: how many to keep at most; nms_thresh: IoU.
        pre_nms_topk: how many enter the NMS; 0: all.

    Returns:
        N x (at most topk,) int64 in [0, R), best first.
    """
    locations, valid = rank_proposals(boxes, logits, pre_nms_topk or logits.shape[1])
    counts = valid.sum(dim=1).tolist()
    selected = []
    for i, count in enumerate(counts):
        own = locations[i, :count]
        same_group = torch.zeros_like(own)
        kept = nms_best(boxes[i, own], logits[i, own], same_group, nms_thresh, topk)
        selected.append(own[kept])
    return selected


@torch.no_grad()
def decode_predictions(
    proposal_boxes: Tensor,
    predictions: HeadPredictions,
    image_sizes: Sequence[tuple[int, int]] | Tensor,
    box2box_transform: Box2BoxTransform,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Second regression and softmax scores (4.2).

    Args:
        proposal_boxes: (N, M, 4) adjusted anchor boxes; predictions: (N, M, ...).
        image_sizes: see clip_to_images; valid: (N, M) bool, False on fillers; None: all are.

    Returns:
        boxes (N, M, 4) XYXY, clipped; scores (N, M, K), background left out, zero on fillers and
        where a prediction is not finite.
    """
    deltas = predictions.pred_box_deltas.float()
    boxes = apply_deltas(box2box_transform, deltas, proposal_boxes)
    scores = predictions.pred_class_logits.float().softmax(dim=-1)
    usable = torch.isfinite(boxes).all(dim=-1) & torch.isfinite(scores).all(dim=-1)
    usable = (usable if valid is None else usable & valid)[..., None]
    boxes = torch.where(usable, clip_to_images(boxes, image_sizes), 0.0)
    return boxes, torch.where(usable, scores[..., :-1], 0.0)


def apply_deltas(transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
    """
    What transform.apply_deltas gives, of (..., M, 4) deltas and (..., M, 4) or (M, 4) boxes.

    With rows of x and y, where Detectron2 has columns of one number, over which ONNX Runtime takes
    several times as long.
    """
    low, high = boxes.mT.split(2, dim=-2)  # (..., 2, M)
    sizes = high - low
    shifts, growth = deltas.mT.split(2, dim=-2)
    shifts = _divide_rows(shifts, transform.weights[:2])
    growth = _divide_rows(growth, transform.weights[2:])
    centers = shifts * sizes + (low + 0.5 * sizes)
    halves = 0.5 * (growth.clamp(max=transform.scale_clamp).exp() * sizes)
    return torch.cat([centers - halves, centers + halves], dim=-2).mT


def _divide_rows(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """(..., 2, M) rows by two numbers: in one step where they are equal, as they mostly are."""
    if weights[0] == weights[1]:
        return rows / weights[0]
    return torch.stack([x / weight for x, weight in zip(rows.unbind(-2), weights)], dim=-2)


@torch.no_grad()
def detections(
    boxes: Tensor,
    scores: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> list[Instances]:
    """
    Final detections (4.2) from what decode_predictions gives; see best_detections.

    Returns:
        N Instances with pred_boxes, scores, pred_classes, in the size of the network's input.
    """
    results = []
    for own_boxes, own_scores, size in zip(boxes, scores, image_sizes):
        index, classes = best_detections(own_boxes, own_scores, score_thresh, nms_thresh, topk)
        result = Instances(size)
        result.pred_boxes = Boxes(own_boxes[index])
        result.scores = own_scores[index, classes]
        result.pred_classes = classes
        results.append(result)
    return results


@torch.no_grad()
def best_detections(
    boxes: Tensor, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[Tensor, Tensor]:
    """
    Score threshold, NMS class by class and the best topk of one image (4.2).

    Args:
        boxes: (R, 4) XYXY, clipped; scores: (R, K), background left out. topk: -1 for all.

    Returns:
        box in [0, R) and class in [0, K) of each detection, best first, both (at most topk,).
    """
    index, classes = torch.nonzero(scores > score_thresh, as_tuple=True)
    above = scores[index, classes]
    topk = topk if topk >= 0 else len(above)
    keep = nms_best(boxes[index], above, classes, nms_thresh, topk)
    return index[keep], classes[keep]


@torch.no_grad()
def rescale_detections(detections: Instances, output_size: tuple[int, int]) -> Instances:
    """
    Bring detections to an image of (height, width); boxes that are empty there are left out.

    Detectron2's detector_postprocess for boxes, in other steps: there the CPU waits for a GPU once
    for each field and once for a check, here once.
    """
    height, width = output_size
    scale = width / detections.image_size[1], height / detections.image_size[0]
    boxes = detections.pred_boxes.tensor
    boxes = clip_boxes(torch.stack([boxes[:, i] * scale[i % 2] for i in range(4)], 1), output_size)
    fields = {**detections.get_fields(), "pred_boxes": Boxes(boxes)}
    filled = torch.nonzero(has_area(boxes)).squeeze(1)
    return Instances(output_size, **fields)[filled]
