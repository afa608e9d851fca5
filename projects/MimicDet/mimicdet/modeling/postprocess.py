"""Decoding, scoring and NMS: pure functions, no gradients. Shape shorthand: see structures.py."""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

# Boxes that enter a first NMS at least, for each that is wanted of it: see nms_best.
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
def select_proposals(
    boxes: Tensor, logits: Tensor, topk: int, nms_thresh: float = 1.0, pre_nms_topk: int = 0
) -> list[Tensor]:
    """
    Positions of each image's best boxes by objectness, best first.

    In training NMS at 0.8 goes before the cut to 2000 (4.1); at inference there is none (4.2).

    Args:
        boxes: (N, R, 4) XYXY, clipped; empty ones are left out.
        logits: (N, R) objectness.
        topk: how many to keep at most.
        nms_thresh: IoU of the NMS over all levels together; 1: none.
        pre_nms_topk: how many enter the NMS; 0: all.

    Returns:
        N x (at most topk,) int64 in [0, R).
    """
    nonempty = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    logits = logits.masked_fill(~(nonempty & torch.isfinite(logits)), -float("inf"))
    most = topk if nms_thresh >= 1 else pre_nms_topk or logits.shape[1]
    best, order = logits.topk(min(most, logits.shape[1]), dim=1)
    counts = torch.isfinite(best).sum(dim=1).tolist()
    positions = [order[i, :count] for i, count in enumerate(counts)]
    if nms_thresh >= 1:
        return positions
    return [
        chosen[nms_best(b[chosen], x[chosen], torch.zeros_like(chosen), nms_thresh, topk)]
        for chosen, b, x in zip(positions, boxes, logits)
    ]


@torch.no_grad()
def detections(
    proposal_boxes: list[Tensor],
    class_logits: Tensor,
    box_deltas: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    box2box_transform: Box2BoxTransform,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> list[Instances]:
    """
    Second regression, softmax scores, score threshold, NMS class by class, best topk (4.2).

    Args:
        proposal_boxes: N x (Ri, 4) adjusted anchor boxes, XYXY in input pixels.
        class_logits: (B, K + 1); box_deltas: (B, 4), boxes of all images one after another.

    Returns:
        N Instances with pred_boxes, scores, pred_classes, in the size of the network's input.
    """
    sizes = [len(boxes) for boxes in proposal_boxes]
    boxes = box2box_transform.apply_deltas(box_deltas.float(), torch.cat(proposal_boxes))
    scores = class_logits.float().softmax(dim=1)
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    scores = scores[:, :-1] * finite[:, None]  # not above any threshold
    return [
        _detections_per_image(*inputs, score_thresh, nms_thresh, topk)
        for inputs in zip(boxes.split(sizes), scores.split(sizes), image_sizes)
    ]


def _detections_per_image(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> Instances:
    """boxes: (Ri, 4); scores: (Ri, K)."""
    boxes = clip_boxes(boxes, image_size)
    index, classes = best_detections(boxes, scores, score_thresh, nms_thresh, topk)
    result = Instances(image_size)
    result.pred_boxes = Boxes(boxes[index])
    result.scores = scores[index, classes]
    result.pred_classes = classes
    return result


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
    found = scores[index, classes]
    keep = nms_best(boxes[index], found, classes, nms_thresh, topk if topk >= 0 else len(found))
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
    filled = torch.nonzero((boxes[:, 2:] > boxes[:, :2]).all(dim=1)).squeeze(1)
    return Instances(output_size, **fields)[filled]
