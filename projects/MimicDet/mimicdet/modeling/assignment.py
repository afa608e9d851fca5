"""
Adaptive training sample selection (ATSS): pure functions without gradients.

Shapes: G ground-truth boxes of one image, R anchors of all levels, L levels. Boxes are XYXY in
input pixels.

Source: Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection, CVPR 2020, Algorithm 1.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor


@torch.no_grad()
def nearest_candidates(
    centers: Tensor, gt_centers: Tensor, anchors_per_level: Sequence[int], topk: int
) -> Tensor:
    """
    The anchors whose centres are nearest to each object's, level by level (Algorithm 1, line 4).

    Args:
        centers: (R, 2), levels one after another; gt_centers: (G, 2).
        anchors_per_level: L numbers that add up to R.
        topk: of each level; a smaller level gives all it has.

    Returns:
        (C, G) int64 indices of anchors, C = sum over levels of min(topk, anchors of it).
    """
    distances = torch.cdist(centers, gt_centers, compute_mode="donot_use_mm_for_euclid_dist")
    candidates, start = [], 0
    for part in distances.split(list(anchors_per_level)):
        nearest = part.topk(min(topk, len(part)), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += len(part)
    return torch.cat(candidates)


@torch.no_grad()
def adaptive_thresholds(candidate_ious: Tensor) -> Tensor:
    """
    Mean + standard deviation of each object's candidates' IoUs (Algorithm 1, lines 7 to 9).

    Args:
        candidate_ious: (C, G).

    Returns:
        (G,). Not in the paper: the standard deviation divides by C - 1, and is 0 for C = 1.
    """
    if len(candidate_ious) < 2:
        return candidate_ious.mean(dim=0)
    return candidate_ious.mean(dim=0) + candidate_ious.std(dim=0)


@torch.no_grad()
def centers_inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Whether centres (..., 2) lie strictly inside boxes (..., 4): (...) bool."""
    return ((centers > boxes[..., :2]) & (centers < boxes[..., 2:])).all(dim=-1)


@torch.no_grad()
def atss_assign(
    anchors: Tensor, anchors_per_level: Sequence[int], gt_boxes: Tensor, topk: int = 9
) -> Tensor:
    """
    The object that each anchor of an image is a positive of (Algorithm 1).

    A candidate is positive when its IoU with the object is at least the object's threshold and its
    centre lies inside the object. An anchor that is positive for several objects goes to the one
    of highest IoU.

    Args:
        anchors: (R, 4); anchors_per_level: L numbers that add up to R.
        gt_boxes: (G, 4); topk: candidates a level.

    Returns:
        (R,) int64, an index in [0, G), or -1 for background.
    """
    if len(gt_boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    ious = pairwise_iou(Boxes(anchors), Boxes(gt_boxes))  # (R, G)
    centers, gt_centers = Boxes(anchors).get_centers(), Boxes(gt_boxes).get_centers()
    candidates = nearest_candidates(centers, gt_centers, anchors_per_level, topk)
    candidate_ious = ious.gather(0, candidates)
    positive = candidate_ious >= adaptive_thresholds(candidate_ious)
    positive &= centers_inside(centers[candidates], gt_boxes)
    # The IoU where an anchor is a positive of an object, -1 elsewhere.
    claims = torch.full_like(ious, -1.0)
    claims.scatter_(0, candidates, candidate_ious.masked_fill(~positive, -1.0))
    best_iou, matched_idxs = claims.max(dim=1)
    return matched_idxs.masked_fill(best_iou < 0, -1)
