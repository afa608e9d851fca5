"""The masks of feature imitation against slow loops."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from mimicdet.distillation.masks import box_masks, location_masks, near_object_masks
from mimicdet.distillation.tensors import Locations

SIZE, STRIDE = (5, 7), 16
NONE = torch.zeros(0, 4)
BOXES = [
    torch.tensor([[10.0, 6, 60, 70], [80, 40, 100, 62], [5, 60, 21, 79]]),
    NONE,
    torch.tensor([[30.0, 20, 50, 40]]),
]


def anchors():
    generator = DefaultAnchorGenerator(
        sizes=[[24, 48]], aspect_ratios=[[0.5, 1.0]], strides=[STRIDE]
    )
    return generator([torch.zeros(1, 1, *SIZE)])[0].tensor


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return overlap / (sum(areas) - overlap)


def near_by_hand(boxes, threshold_of):
    """3.1 as loops: threshold_of(largest IoU) is F."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    rows = anchors().view(*SIZE, 4, 4).tolist()
    for box in boxes.tolist():
        table = [[[iou(box, a) for a in cell] for cell in row] for row in rows]
        largest = max(v for row in table for cell in row for v in cell)
        for y, row in enumerate(table):
            for x, cell in enumerate(row):
                if any(v > threshold_of(largest) for v in cell):
                    mask[y, x] = True
    return mask


@pytest.mark.parametrize("psi", [0.2, 0.5, 0.8])
def test_near_object_masks_by_hand(psi):
    actual = near_object_masks(anchors(), BOXES, SIZE, psi)
    expected = torch.stack([near_by_hand(b, lambda m: psi * m) for b in BOXES])
    assert torch.equal(actual, expected)
    assert expected[0].any() and not expected[0].all()


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_a_constant_threshold_by_hand(threshold):
    actual = near_object_masks(anchors(), BOXES, SIZE, None, threshold)
    assert torch.equal(actual, torch.stack([near_by_hand(b, lambda m: threshold) for b in BOXES]))


def test_psi_0_keeps_all_and_psi_1_none():
    everything = near_object_masks(anchors(), BOXES, SIZE, 0.0)
    assert everything[[0, 2]].all() and not everything[1].any()  # no object, nothing near one
    assert not near_object_masks(anchors(), BOXES, SIZE, 1.0).any()


def test_masks_shrink_with_psi():
    masks = [near_object_masks(anchors(), BOXES, SIZE, psi) for psi in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    counts = [int(x.sum()) for x in masks]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 4
    assert all(not (small & ~large).any() for large, small in zip(masks, masks[1:]))


def test_a_constant_threshold_misses_small_objects_and_psi_does_not():
    """What Fig. 3 shows."""
    small = [torch.tensor([[40.0, 40, 48, 48]])]
    assert not near_object_masks(anchors(), small, SIZE, None, 0.5).any()
    assert near_object_masks(anchors(), small, SIZE, 0.5).any()


def test_box_masks_by_hand():
    actual = box_masks(BOXES, SIZE, STRIDE)
    expected = torch.zeros(3, *SIZE, dtype=torch.bool)
    for n, boxes in enumerate(BOXES):
        for x0, y0, x1, y1 in boxes.tolist():
            for y in range(SIZE[0]):
                for x in range(SIZE[1]):
                    wide = x0 < (x + 1) * STRIDE and x1 > x * STRIDE
                    high = y0 < (y + 1) * STRIDE and y1 > y * STRIDE
                    expected[n, y, x] |= wide and high
    assert torch.equal(actual, expected) and expected.any()
    # A box without area and one that ends on a border cover one location each.
    edges = [torch.tensor([[17.0, 17, 17, 17]]), torch.tensor([[16.0, 16, 32, 32]])]
    covered = box_masks(edges, SIZE, STRIDE)
    assert covered.flatten(1).sum(1).tolist() == [1, 1] and covered[:, 1, 1].all()


def test_location_masks_put_anchors_where_they_are():
    sizes, per_location = [(3, 4), (2, 2)], [2, 3]
    # Level 0: anchors 0..23; level 1: 24..35. Anchor 13 is at location 6, row 1, column 2.
    locations = Locations(torch.tensor([0, 0, 1]), torch.tensor([13, 35, 24]))
    first, second = location_masks(locations, 2, sizes, per_location)
    assert torch.nonzero(first).tolist() == [[0, 1, 2]]
    assert torch.nonzero(second).tolist() == [[0, 1, 1], [1, 0, 0]]
