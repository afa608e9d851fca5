"""ATSS assignment against cases worked out by hand and against a slow loop."""

import pytest
import torch

from mimicdet.modeling.targets import (
    adaptive_thresholds,
    atss_assign,
    centers_inside,
    nearest_candidates,
)


def grid_anchors(stride: int, size: float, rows: int, columns: int) -> torch.Tensor:
    """Square anchors centred at multiples of the stride, row by row."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2) * float(stride)
    return torch.cat([centers - size / 2, centers + size / 2], dim=1)


def slow_assignment(anchors, per_level, boxes, topk):
    """Algorithm 1 of the paper, object by object, anchor by anchor."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        overlap = max(width, 0) * max(height, 0)
        return overlap / sum(((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)), -overlap)

    result, best = [-1] * len(anchors), [-1.0] * len(anchors)
    for g, box in enumerate(boxes):
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for count in per_level:
            level = range(start, start + count)

            def distance(i, center=center):
                x, y = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
                return (x - center[0]) ** 2 + (y - center[1]) ** 2

            candidates += sorted(level, key=distance)[:topk]
            start += count
        ious = [iou(anchors[i], box) for i in candidates]
        mean = sum(ious) / len(ious)
        deviation = (sum((v - mean) ** 2 for v in ious) / (len(ious) - 1)) ** 0.5
        for i, value in zip(candidates, ious):
            x, y = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if value >= mean + deviation and inside and value > best[i]:
                result[i], best[i] = g, value
    return result


def test_threshold_is_mean_plus_standard_deviation():
    # Mean 0.5, deviations -0.3, 0, 0.3: variance 0.18 / 2 = 0.09.
    ious = torch.tensor([[0.2, 0.4], [0.5, 0.4], [0.8, 0.4]])
    torch.testing.assert_close(adaptive_thresholds(ious), torch.tensor([0.8, 0.4]))
    torch.testing.assert_close(adaptive_thresholds(ious[:1]), ious[0])


def test_candidates_are_the_nearest_of_each_level():
    centers = torch.tensor([[0.0, 0.0], [8.0, 0.0], [16.0, 0.0], [0.0, 0.0], [16.0, 0.0]])
    actual = nearest_candidates(centers, torch.tensor([[7.0, 0.0], [17.0, 0.0]]), [3, 2], topk=2)
    assert [sorted(column) for column in actual.T.tolist()] == [[0, 1, 3, 4], [1, 2, 3, 4]]
    actual = nearest_candidates(centers, torch.tensor([[1.0, 0.0]]), [3, 2], topk=9)
    assert sorted(actual[:, 0].tolist()) == [0, 1, 2, 3, 4]


def test_center_on_the_border_is_outside():
    box = torch.tensor([0.0, 0.0, 8.0, 8.0])
    centers = torch.tensor([[4.0, 4.0], [0.0, 4.0], [4.0, 8.0], [7.9, 0.1]])
    assert centers_inside(centers, box).tolist() == [True, False, False, True]


def test_one_object_by_hand():
    # 3 x 3 anchors of side 16 with centres 0, 8, 16; the object is the middle one. IoUs with it:
    # 1; four neighbours shifted by 8: 128 / 384 = 1/3; four diagonals: 64 / 448 = 1/7.
    # Mean (1 + 4/3 + 4/7) / 9 = 0.3228, deviation 0.2702, threshold 0.593.
    anchors = grid_anchors(8, 16, 3, 3)
    ious = torch.tensor([1.0] + [1 / 3] * 4 + [1 / 7] * 4)
    assert adaptive_thresholds(ious[:, None]).item() == pytest.approx(0.593, abs=1e-3)
    matched = atss_assign(anchors, [9], anchors[4:5])
    assert matched.tolist() == [-1] * 4 + [0] + [-1] * 4


def test_contested_anchor_goes_to_the_higher_iou():
    anchors = grid_anchors(8, 16, 5, 5)
    near, exact = anchors[12] + torch.tensor([0.0, 0.0, 4.0, 4.0]), anchors[12]
    assert atss_assign(anchors, [25], torch.stack([near, exact]))[12] == 1
    assert atss_assign(anchors, [25], torch.stack([exact, near]))[12] == 0


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    levels = [grid_anchors(8, 64, 8, 10), grid_anchors(16, 128, 4, 5), grid_anchors(32, 256, 2, 3)]
    per_level = [len(x) for x in levels]
    anchors = torch.cat(levels)
    corners = torch.rand(6, 2, generator=generator) * 50
    sides = 12 + torch.rand(6, 2, generator=generator) * 70
    boxes = torch.cat([corners, corners + sides], dim=1)
    expected = slow_assignment(anchors.tolist(), per_level, boxes.tolist(), topk=9)
    assert atss_assign(anchors, per_level, boxes).tolist() == expected
    assert max(expected) >= 0


def test_no_object_is_all_background():
    assert atss_assign(grid_anchors(8, 64, 2, 2), [4], torch.zeros(0, 4)).tolist() == [-1] * 4
