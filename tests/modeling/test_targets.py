"""Assignment, sampling and mining (targets.py) against plain Python and hand-made cases."""

import math
import random

import pytest
import torch

from mimicdet.modeling.heads.labels import BoxSampling
from mimicdet.modeling.targets import assign_anchors, mine_hard, responsible_levels, sample

STRIDES = (8, 16, 32)
BASE_SCALES = [4.0 * s for s in STRIDES]  # 32, 64, 128


def make_anchors(height, width):
    """One square anchor a location on three levels, centres at (i + 0.5) * stride."""
    anchors, levels = [], []
    for level, stride in enumerate(STRIDES):
        half = 2.0 * stride
        for y in range(-(-height // stride)):
            for x in range(-(-width // stride)):
                cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                anchors.append([cx - half, cy - half, cx + half, cy + half])
                levels.append(level)
    return torch.tensor(anchors), torch.tensor(levels)


def is_responsible(scale, level, scale_range):
    first, last = BASE_SCALES[0] * scale_range[0], BASE_SCALES[-1] * scale_range[1]
    if scale < first:
        return level == 0
    if scale > last:
        return level == len(BASE_SCALES) - 1
    return BASE_SCALES[level] * scale_range[0] <= scale <= BASE_SCALES[level] * scale_range[1]


def slow_assign(anchors, levels, boxes, crowds, scale_range, ratio, match_nearest):
    """Section 3.2 read aloud: loops over anchors and boxes, nothing shared with the package."""
    centers = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
    candidates = {r: [] for r in range(len(anchors))}
    for g, (x0, y0, x1, y1) in enumerate(boxes):
        scale = math.sqrt((x1 - x0) * (y1 - y0))
        cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        hit, nearest = False, None
        for r, (ax, ay) in enumerate(centers):
            if not is_responsible(scale, levels[r], scale_range):
                continue
            if abs(ax - cx) <= ratio * w / 2 and abs(ay - cy) <= ratio * h / 2:
                candidates[r].append(g)
                hit = True
            if x0 <= ax <= x1 and y0 <= ay <= y1:
                distance = (ax - cx) ** 2 + (ay - cy) ** 2
                if nearest is None or distance < nearest[0]:
                    nearest = (distance, r)
        if match_nearest and not hit and nearest is not None:
            candidates[nearest[1]].append(g)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
    labels, matched = [], []
    for r, (ax, ay) in enumerate(centers):
        if candidates[r]:
            labels.append(1)
            matched.append(min(candidates[r], key=lambda g: (areas[g], g)))
            continue
        inside = any(x0 <= ax <= x1 and y0 <= ay <= y1 for x0, y0, x1, y1 in crowds)
        labels.append(-1 if inside else 0)
        matched.append(0)
    return labels, matched


def random_boxes(rng, count, height, width):
    """From 3 px, smaller than any level's scales, to 400 px, larger; quarters of pixels are exact
    in float32, so that both versions see the same borders."""
    boxes = []
    for _ in range(count):
        w, h = (math.exp(rng.uniform(math.log(3), math.log(400))) for _ in range(2))
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        boxes.append([round(v * 4) / 4 for v in box])
    return boxes


@pytest.mark.parametrize("match_nearest", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_assignment_agrees_with_plain_python(seed, match_nearest):
    rng = random.Random(seed)
    height, width = rng.choice([(96, 160), (70, 90), (128, 128)])
    anchors, levels = make_anchors(height, width)
    boxes = random_boxes(rng, rng.choice([0, 1, 5, 25]), height, width)
    crowds = random_boxes(rng, rng.choice([0, 2]), height, width)
    scale_range = rng.choice([(1.0, 2.0), (0.75, 2.5), (1.0, 1.5)])
    ratio = rng.choice([0.3, 0.5, 1.0])
    labels, matched = assign_anchors(
        anchors,
        levels,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(crowds).reshape(-1, 4),
        torch.tensor(BASE_SCALES),
        scale_range,
        ratio,
        match_nearest,
    )
    expected = slow_assign(
        anchors.tolist(), levels.tolist(), boxes, crowds, scale_range, ratio, match_nearest
    )
    assert labels.tolist() == expected[0]
    assert matched.tolist() == expected[1]


def assign(boxes, crowds=(), **options):
    anchors, levels = make_anchors(96, 96)
    labels, matched = assign_anchors(
        anchors,
        levels,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(crowds).reshape(-1, 4),
        torch.tensor(BASE_SCALES),
        **options,
    )
    locations = torch.nonzero(labels == 1).squeeze(1)
    return {int(r): int(matched[r]) for r in locations}, labels, levels


def test_anchor_centre_on_the_border_of_the_central_area_is_positive():
    # The box's central area, 0.5 of 32 px, spans 8 px on each side: it ends on the neighbours.
    box = [12.0, 12.0, 44.0, 44.0]
    positives, _, levels = assign([box], center_ratio=0.5)
    assert len(positives) == 9
    assert all(levels[r] == 0 for r in positives)
    positives, _, _ = assign([[12.125, 12.0, 44.125, 44.0]], center_ratio=0.5)
    assert len(positives) == 6  # an eighth of a pixel to the right leaves one column behind


@pytest.mark.parametrize("match_nearest", [False, True])
@pytest.mark.parametrize("size", [(0, 0), (32, 0), (0, 32), (-8, -8)])
def test_a_box_without_area_has_no_positive_anchor(size, match_nearest):
    x, y = 28.0, 28.0  # the centre of an anchor
    box = [x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2]
    positives, labels, _ = assign([box], match_nearest=match_nearest)
    assert not positives and not labels.any()
    # Neither does it take an anchor from a box that has an area.
    other = [12.0, 12.0, 44.0, 44.0]
    positives, _, _ = assign([box, other], match_nearest=match_nearest)
    assert positives and set(positives.values()) == {1}


def test_scale_on_the_border_of_two_levels_belongs_to_both():
    positives, _, levels = assign([[16.0, 16.0, 80.0, 80.0]])  # 64 px: P3 ends, P4 begins
    assert {int(levels[r]) for r in positives} == {0, 1}


def test_smallest_box_wins():
    large, small = [6.0, 6.0, 66.0, 66.0], [20.0, 20.0, 52.0, 52.0]  # one centre, both on P3
    alone, _, _ = assign([large])
    both, _, _ = assign([large, small])
    assert set(both.values()) == {0, 1}
    inner, _, _ = assign([small])
    assert {r for r, g in both.items() if g == 1} == set(inner)
    assert set(both) == set(alone) | set(inner)
    swapped, _, _ = assign([small, large])
    assert {r: 1 - g for r, g in swapped.items()} == both


def test_crowd_ignores_negatives_and_leaves_positives():
    box = [12.0, 12.0, 44.0, 44.0]
    without, plain, _ = assign([box])
    positives, labels, _ = assign([box], crowds=[[0.0, 0.0, 60.0, 60.0]])
    assert positives == without and without
    anchors, _ = make_anchors(96, 96)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = (centers <= 60).all(dim=1)
    assert torch.equal(labels[inside & (plain != 1)].unique(), torch.tensor([-1]))
    assert torch.equal(labels[~inside], plain[~inside])


def test_match_nearest_rescues_a_small_box_but_never_from_outside():
    between = [30.5, 30.5, 36.5, 37.5]  # 7 px between the anchor centres 28 and 36
    assert not assign([between])[0]
    rescued, _, levels = assign([between], match_nearest=True)
    assert len(rescued) == 1
    location = next(iter(rescued))
    assert levels[location] == 0 and location == 4 * 12 + 4  # the centre (36, 36)
    outside = [29.0, 29.0, 35.0, 35.0]  # no centre of P3 lies inside
    assert not assign([outside], match_nearest=True)[0]


def test_match_nearest_leaves_boxes_alone_that_have_positives():
    """16 x 256, P3's and P4's scale: three positives on P4, the nearest anchor on P3."""
    box = [0.0, -112.0, 16.0, 144.0]
    plain, _, levels = assign([box])
    assert len(plain) == 3 and {int(levels[r]) for r in plain} == {1}
    assert assign([box], match_nearest=True)[0] == plain


def test_no_boxes_no_positives():
    positives, labels, _ = assign([])
    assert not positives and not labels.any()


@pytest.mark.parametrize(
    "scale, levels",
    [
        (1.0, {0}),
        (31.9, {0}),
        (32.0, {0}),
        (50.0, {0}),
        (64.0, {0, 1}),
        (64.1, {1}),
        (128.0, {1, 2}),
        (256.0, {2}),
        (256.1, {2}),
        (5000.0, {2}),
    ],
)
def test_responsible_levels_of_hand_picked_scales(scale, levels):
    actual = responsible_levels(torch.tensor([scale]), torch.tensor(BASE_SCALES), (1.0, 2.0))
    assert actual.shape == (3, 1)
    assert set(torch.nonzero(actual[:, 0]).squeeze(1).tolist()) == levels


def test_a_gap_between_levels_is_nobodys():
    actual = responsible_levels(torch.tensor([60.0]), torch.tensor(BASE_SCALES), (1.0, 1.5))
    assert not actual.any()


# ---------------------------------------------------------------- samplers


def sample_labels(classes, num_samples, positive_fraction, num_classes):
    sampling = BoxSampling(None, num_classes, num_samples, positive_fraction)
    return sampling.sample([classes])[0]


def classes_with(positives, negatives, ignored, num_classes=4):
    classes = [i % num_classes for i in range(positives)]
    classes += [num_classes] * negatives + [-1] * ignored
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(7))
    return torch.tensor(classes, dtype=torch.int64)[order]


@pytest.mark.parametrize(
    "positives, negatives, expected",
    [
        (50, 500, (32, 96)),  # the paper's 1:3
        (5, 500, (5, 123)),  # negatives fill the places of positives
        (50, 20, (32, 20)),  # positives do not fill those of negatives
        (0, 500, (0, 128)),
        (50, 0, (32, 0)),
        (3, 4, (3, 4)),
        (0, 0, (0, 0)),
    ],
)
def test_sample_counts(positives, negatives, expected):
    classes = classes_with(positives, negatives, ignored=9)
    torch.manual_seed(0)
    sampled = sample_labels(classes, 128, 0.25, 4)
    assert len(sampled.unique()) == len(sampled) == sum(expected)
    chosen = classes[sampled]
    assert ((chosen[: expected[0]] >= 0) & (chosen[: expected[0]] < 4)).all()
    assert (chosen[expected[0] :] == 4).all()


def test_samplers_follow_the_seed():
    classes = classes_with(60, 300, ignored=0)

    def labelled(seed):
        torch.manual_seed(seed)
        return sample_labels(classes, 64, 0.25, 4)

    assert torch.equal(labelled(3), labelled(3))
    assert not torch.equal(labelled(3), labelled(4))
    indices = torch.arange(100) * 3

    def some(seed):
        torch.manual_seed(seed)
        return sample(indices, 10)

    assert torch.equal(some(1), some(1))
    assert not torch.equal(some(1), some(2))


def test_every_positive_is_sampled_as_often():
    """60 of 100 samples each, on average: a sampler that prefers the first ones fails."""
    classes = torch.tensor([0] * 10 + [4] * 10)
    torch.manual_seed(0)
    counts = torch.zeros(20)
    for _ in range(1000):
        counts[sample_labels(classes, 12, 0.5, 4)] += 1
    assert counts.sum() == 12000
    assert (counts - 600).abs().max() < 80  # five standard deviations


def test_sample_takes_from_the_given_indices_without_repeating():
    indices = torch.tensor([5, 17, 2, 90])
    sampled = sample(indices, 3)
    assert len(sampled.unique()) == 3 and set(sampled.tolist()) <= set(indices.tolist())
    assert sorted(sample(indices, 10).tolist()) == [2, 5, 17, 90]
    assert len(sample(indices[:0], 3)) == 0


def test_hard_mining_takes_the_highest_losses():
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0))
    mined = mine_hard(losses, 30)
    ranked = sorted(range(200), key=lambda i: -float(losses[i]))
    assert set(mined.tolist()) == set(ranked[:30])
    assert sorted(mine_hard(losses[:5], 30).tolist()) == [0, 1, 2, 3, 4]
    assert len(mine_hard(losses[:0], 30)) == 0
