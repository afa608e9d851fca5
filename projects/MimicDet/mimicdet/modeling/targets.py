"""
Assignment, labelling and sampling: pure functions without gradients.

Boxes are XYXY in input pixels. Shape shorthand: see structures.py; G: ground-truth boxes of one
image, C: crowd boxes of one image; R: anchors of all levels.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor


def responsible_levels(scales: Tensor, base_scales: Tensor, scale_range: Sequence[float]) -> Tensor:
    """
    Which levels are responsible for boxes of given scales (3.2).

    Args:
        scales: (G,) sqrt(width * height) of each box, input pixels.
        base_scales: (L,) ascending S_l, input pixels.
        scale_range: (eta1, eta2); level l covers [S_l * eta1, S_l * eta2], both ends included.

    Returns:
        (L, G) bool. Smaller scales than any level's go to the first level, larger to the last.
    """
    low = base_scales[:, None] * scale_range[0]
    high = base_scales[:, None] * scale_range[1]
    responsible = (scales[None] >= low) & (scales[None] <= high)
    responsible[0] |= scales < low[0]
    responsible[-1] |= scales > high[-1]
    return responsible


@torch.no_grad()
def assign_anchors(
    anchors: Tensor,
    anchor_levels: Tensor,
    gt_boxes: Tensor,
    crowd_boxes: Tensor,
    base_scales: Tensor,
    scale_range: Sequence[float] = (1.0, 2.0),
    center_ratio: float = 0.3,
    match_nearest: bool = False,
) -> tuple[Tensor, Tensor]:
    """
    Label the anchors of one image by scale and centre, not by IoU (3.2).

    An anchor is positive for a box when its level is responsible for the box and its centre lies
    in the box shrunk to center_ratio about its centre. Not in the paper: of several such boxes the
    smallest is taken; a box without area, whose deltas would be infinite, has no positive anchor;
    anchors whose centre lies in a crowd box and that are not positive are ignored; match_nearest
    gives a box without any positive anchor the nearest one of its levels that lies inside it.

    Args:
        anchors: (R, 4); anchor_levels: (R,) int64; gt_boxes: (G, 4); crowd_boxes: (C, 4).
        base_scales: (L,) S_l in input pixels; scale_range: (eta1, eta2).

    Returns:
        labels: (R,) int64, 1 positive, 0 negative, -1 ignored.
        matched_idxs: (R,) int64, the box of each positive anchor; 0 elsewhere.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    matched_idxs = torch.zeros_like(labels)
    if len(gt_boxes):
        sizes = gt_boxes[:, 2:] - gt_boxes[:, :2]
        areas = sizes.prod(dim=1).clamp(min=0)
        responsible = responsible_levels(areas.sqrt(), base_scales, scale_range)[anchor_levels]
        responsible &= (sizes > 0).all(dim=1)
        offsets = (centers[:, None] - (gt_boxes[None, :, :2] + gt_boxes[None, :, 2:]) / 2).abs()
        candidates = responsible & (offsets <= center_ratio * sizes / 2).all(dim=2)
        if match_nearest:
            inside = responsible & (offsets <= sizes / 2).all(dim=2)
            candidates |= _nearest_candidates(offsets, inside) & ~candidates.any(dim=0)
        # The smallest candidate box of each anchor; infinite where there is none.
        cost = torch.where(candidates, areas, areas.new_tensor(float("inf")))
        best, matched = cost.min(dim=1)
        positive = torch.isfinite(best)
        labels[positive] = 1
        matched_idxs[positive] = matched[positive]
    if len(crowd_boxes):
        inside = (centers[:, None] >= crowd_boxes[None, :, :2]) & (
            centers[:, None] <= crowd_boxes[None, :, 2:]
        )
        labels[inside.all(dim=2).any(dim=1) & (labels == 0)] = -1
    return labels, matched_idxs


def _nearest_candidates(offsets: Tensor, allowed: Tensor) -> Tensor:
    """The allowed anchor nearest to each box's centre, as an (R, G) mask; none where none is."""
    distances = offsets.square().sum(dim=2).masked_fill(~allowed, float("inf"))
    nearest = distances.argmin(dim=0)
    mask = torch.zeros_like(allowed)
    mask[nearest, torch.arange(allowed.shape[1], device=allowed.device)] = True
    return mask & allowed


@torch.no_grad()
def sample(indices: Tensor, at_most: int) -> Tensor:
    """At most `at_most` of the indices, at random without replacement: (min(n, at_most),)."""
    return indices[torch.randperm(len(indices), device=indices.device)[:at_most]]


@torch.no_grad()
def mine_hard(losses: Tensor, topk: int) -> Tensor:
    """Indices of the topk highest losses of one image (3.3, 4.1); all where there are fewer."""
    return losses.topk(min(topk, len(losses))).indices


# Adaptive training sample selection: Zhang et al., Bridging the Gap Between Anchor-based and
# Anchor-free Detection via Adaptive Training Sample Selection, CVPR 2020, Algorithm 1.


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
