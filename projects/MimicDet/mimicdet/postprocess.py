"""Decoding, scoring and NMS: pure functions, no gradients. Shape shorthand: see structures.py."""

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor


@torch.no_grad()
def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) XYXY clipped to an image of (height, width), as a new tensor."""
    height, width = image_size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


@torch.no_grad()
def select_proposals(
    boxes: Tensor, logits: Tensor, topk: int, nms_thresh: float = 1.0, pre_nms_topk: int = 0
) -> Tensor:
    """
    Positions of an image's best boxes by objectness, best first.

    In training NMS at 0.8 goes before the cut to 2000 (4.1); at inference there is none (4.2).

    Args:
        boxes: (R, 4) XYXY, clipped; empty ones are left out.
        logits: (R,) objectness.
        topk: how many to keep at most.
        nms_thresh: IoU of the NMS over all levels together; 1: none.
        pre_nms_topk: how many enter the NMS; 0: all.
    """
    nonempty = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    positions = torch.nonzero(nonempty & torch.isfinite(logits)).squeeze(1)
    if nms_thresh >= 1:
        order = logits[positions].topk(min(topk, len(positions))).indices
        return positions[order]
    if pre_nms_topk and len(positions) > pre_nms_topk:
        positions = positions[logits[positions].topk(pre_nms_topk).indices]
    one_class = torch.zeros_like(positions)
    keep = batched_nms(boxes[positions], logits[positions], one_class, nms_thresh)
    return positions[keep[:topk]]


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
    instances, _ = fast_rcnn_inference(
        list(boxes.split(sizes)),
        list(scores.split(sizes)),
        list(image_sizes),
        score_thresh,
        nms_thresh,
        topk,
    )
    return instances
