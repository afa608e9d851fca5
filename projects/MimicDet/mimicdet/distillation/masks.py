"""
Which locations of a map or which anchors are imitated: pure functions, without gradients.

Boxes and anchors are XYXY in input pixels; a mask of locations is (N, Hl, Wl) bool.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from ..modeling.boxes import distance_iou
from .tensors import Locations, Positives


@torch.no_grad()
def near_object_masks(
    anchors: Tensor,
    gt_boxes: Sequence[Tensor],
    size: tuple[int, int],
    psi: float | None = 0.5,
    iou_threshold: float = 0.5,
) -> Tensor:
    """
    FGFI's imitation region of one level (3.1): locations where some anchor's IoU with some object
    exceeds F = psi * M, M the object's largest IoU with an anchor of the level.

    psi 1 keeps nothing, as nothing exceeds M. psi 0 keeps every location of an image that has an
    object: the paper says so, and its comparison alone would leave out where no anchor overlaps.

    Args:
        anchors: (Hl * Wl * A, 4) of the level, in Detectron2's order.
        gt_boxes: N x (Gi, 4).
        size: (Hl, Wl).
        psi: 0 to 1; None: F is iou_threshold for every object (Hard-thresh, 4.4.1).

    Returns:
        (N, Hl, Wl) bool.
    """
    height, width = size
    per_location = len(anchors) // (height * width)
    masks = []
    for boxes in gt_boxes:
        iou = pairwise_iou(Boxes(boxes), Boxes(anchors))
        iou = iou.view(len(boxes), height * width, per_location)
        if psi == 0:
            near = torch.ones_like(iou, dtype=torch.bool)
        elif psi is None:
            near = iou > iou_threshold
        else:
            near = iou > psi * iou.amax(dim=(1, 2), keepdim=True)
        masks.append(near.any(dim=2).any(dim=0).view(height, width))
    return torch.stack(masks)


@torch.no_grad()
def box_masks(gt_boxes: Sequence[Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """
    Locations whose cell of stride x stride pixels overlaps an object: boxes scaled onto the map
    (FGFI's -G, RM+PFI's "GT mask"). Every box covers one location at least of each level.

    Args:
        gt_boxes: N x (Gi, 4); size: (Hl, Wl).
    """
    height, width = size
    masks = []
    for boxes in gt_boxes:
        # A box that ends on the border of two cells does not cover the second.
        first = torch.floor(boxes[:, :2] / stride)
        last = torch.maximum(torch.ceil(boxes[:, 2:] / stride) - 1, first)
        x = torch.arange(width, device=boxes.device)
        y = torch.arange(height, device=boxes.device)
        inside_x = (x >= first[:, :1]) & (x <= last[:, :1])
        inside_y = (y >= first[:, 1:]) & (y <= last[:, 1:])
        masks.append((inside_y[:, :, None] & inside_x[:, None, :]).any(dim=0))
    return torch.stack(masks)


@torch.no_grad()
def location_masks(
    locations: Locations,
    num_images: int,
    sizes: Sequence[tuple[int, int]],
    anchors_per_location: Sequence[int],
) -> list[Tensor]:
    """Locations of every level that hold one of the anchors; sizes: L x (Hl, Wl)."""
    counts = [h * w * a for (h, w), a in zip(sizes, anchors_per_location)]
    flat = torch.zeros((num_images, sum(counts)), dtype=torch.bool, device=locations.anchors.device)
    flat[locations.images, locations.anchors] = True
    return [
        level.view(num_images, height, width, -1).any(dim=3)
        for level, (height, width) in zip(flat.split(counts, dim=1), sizes)
    ]


@torch.no_grad()
def valuable_region(
    anchors: Tensor, gt_boxes: Sequence[Tensor], positives: Positives, gamma: float
) -> Tensor:
    """
    LD's valuable localisation region: anchors that are no positives and whose
    distance-IoU with some object is between gamma * F and F.

    F is the least distance-IoU of the object's positives. In the paper it is the threshold of the
    assignment, which not every assignment has. An object without positives has no region.

    Args:
        anchors: (R, 4) of all levels; gt_boxes: N x (Gi, 4).

    Returns:
        (N, R) bool.
    """
    counts = [len(boxes) for boxes in gt_boxes]
    values = distance_iou(anchors[positives.anchors], positives.gt_boxes)
    least = values.new_full((sum(counts),), float("nan"))  # nothing is at least that
    least = least.scatter_reduce(0, positives.objects, values, "amin", include_self=False)
    region = torch.zeros((len(counts), len(anchors)), dtype=torch.bool, device=anchors.device)
    for n, (boxes, limits) in enumerate(zip(gt_boxes, least.split(counts))):
        near = distance_iou(anchors[:, None], boxes[None])
        region[n] = ((near >= gamma * limits) & (near <= limits)).any(dim=1)
    region[positives.images, positives.anchors] = False
    return region
