"""The pictures of distillation: the numbers behind them by hand, and where they are drawn."""

import math

import numpy as np
import pytest
import torch

from mimicdet.distillation import DetectorTensors, Positives
from mimicdet.distillation.losses import prediction_guided_loss, rank_loss
from mimicdet.visualization.distillation import (
    ObjectRanks,
    RankSignal,
    Region,
    channel_variance,
    difference_maps,
    imitation_regions,
    object_ranks,
    visible,
)
from mimicdet.visualization.distillation_drawing import (
    draw_differences,
    draw_ranks,
    draw_regions,
    draw_variance,
)

STRIDE = 16
SIZE = (32, 40)  # of the image; its map is 2 x 3, and padded to 2 x 4
IMAGE = np.full((*SIZE, 3), 128, np.uint8)


def offering(**offers) -> DetectorTensors:
    """A detector's tensors, told one by one."""
    return type("Told", (DetectorTensors,), offers)()


def square_anchors(rows: int, columns: int) -> torch.Tensor:
    """One anchor a location: the cell itself."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2) * float(STRIDE)
    return torch.cat([corner, corner + STRIDE], dim=1)


def near(*boxes: list[float]) -> DetectorTensors:
    return offering(
        features=[torch.zeros(1, 1, 2, 4)],
        anchors=[square_anchors(2, 4)],
        gt_boxes=[torch.tensor(boxes)],
    )


# ---------------------------------------------------------------- imitation regions


def test_regions_by_hand():
    """8 x 12 pixels in either of two cells: IoU 96 / (256 + 192 - 96) = 0.27 with both."""
    regions = imitation_regions(near([8.0, 0, 24, 12]), SIZE, [STRIDE], [0.0, 0.5, 0.8], [0.5])
    assert [x.label for x in regions] == ["psi 0", "psi 0.5", "psi 0.8", "IoU above 0.5"]
    both = [[True, True, False], [False] * 3]
    assert regions[0].masks[0].tolist() == [[True] * 3] * 2
    assert regions[1].masks[0].tolist() == regions[2].masks[0].tolist() == both
    assert not regions[3].masks[0].any()
    assert regions[1].shares == pytest.approx([2 / 6])  # of the image, not of its padding


def test_a_larger_psi_keeps_less():
    """IoU 1 with cell 0; the second box has 192 / 320 with cell 1 and 64 / 448 with cell 2."""
    boxes = [0.0, 0, 16, 16], [20.0, 0, 36, 16]
    loose, tight = imitation_regions(near(*boxes), SIZE, [STRIDE], [0.2, 0.5])
    assert loose.masks[0].tolist() == [[True, True, True], [False] * 3]
    assert tight.masks[0].tolist() == [[True, True, False], [False] * 3]


def test_a_map_ends_where_its_image_ends():
    assert visible(torch.zeros(3, 8, 8), (33, 32), 16).shape == (3, 3, 2)


# ---------------------------------------------------------------- variance


def test_variance_is_of_all_images_together():
    """Channel 0 is 1, 3 and 5 inside, 2 and 2 outside; channel 1 is 0 inside, 0 and 4 outside."""
    maps = [
        torch.tensor([[[1.0, 3.0, 2.0]], [[0.0, 0.0, 0.0]]]),
        torch.tensor([[[5.0, 2.0]], [[0.0, 4.0]]]),
    ]
    masks = [torch.tensor([[True, True, False]]), torch.tensor([[True, False]])]
    found = channel_variance(maps, masks)
    assert found.inside.tolist() == pytest.approx([8 / 3, 0])
    assert found.outside.tolist() == pytest.approx([0, 4])
    assert found.calmer_inside == 1


def test_variance_without_a_position_is_no_number():
    found = channel_variance([torch.ones(2, 1, 1)], [torch.tensor([[False]])])
    assert all(map(math.isnan, found.inside.tolist()))
    assert found.outside.tolist() == [0, 0] and found.calmer_inside == 0


# ---------------------------------------------------------------- differences


def test_differences_by_hand():
    """Features 0 and 0 against 1 and 3; probabilities 1/2 and 1/2 against 1 and 1/2."""
    student = offering(
        features=[torch.zeros(1, 2, 1, 1)], prediction_maps=[torch.zeros(1, 2, 1, 1)]
    )
    teacher = offering(
        features=[torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)],
        prediction_maps=[torch.tensor([1e4, 0.0]).view(1, 2, 1, 1)],
    )
    maps = difference_maps(student, teacher, (16, 16), [STRIDE])
    assert [x[0].item() for x in (maps.prediction, maps.feature, maps.product)] == [0.125, 5, 0.625]


def test_differences_are_what_the_loss_is_made_of():
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 4, 6), (1, 4, 2, 3))
    draws = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(4)]
    student = offering(features=draws[0], prediction_maps=draws[1])
    teacher = offering(features=draws[2], prediction_maps=draws[3])
    maps = difference_maps(student, teacher, (32, 48), (8, 16))
    probabilities = [(s.sigmoid(), t.sigmoid()) for s, t in zip(draws[1], draws[3])]
    loss = prediction_guided_loss(list(zip(draws[0], draws[2])), probabilities)
    assert sum(x.square().mean() for x in maps.product).item() / 2 == pytest.approx(loss.item())


# ---------------------------------------------------------------- ranks

# Object 0 has one positive, object 1 two, object 2 three.
FOUND = Positives(
    images=torch.zeros(6, dtype=torch.int64),
    anchors=torch.arange(6),
    objects=torch.tensor([0, 1, 1, 2, 2, 2]),
    gt_boxes=torch.tensor([[0.0, 0, 8, 8]] + [[0.0, 0, 10, 10]] * 2 + [[20.0, 0, 40, 20]] * 3),
    gt_classes=torch.tensor([0, 1, 1, 0, 0, 0]),
    num_objects=3,
)


def ranking(logits: list[list[float]], shift: float) -> DetectorTensors:
    """Its boxes are the objects', shifted to the right."""
    return offering(
        positives=FOUND,
        anchors=[square_anchors(2, 3)],
        class_logits_at=lambda self, asked: torch.tensor(logits),
        pred_boxes_at=lambda self, asked: FOUND.gt_boxes + torch.tensor([shift, 0, shift, 0]),
    )


def both_sides() -> tuple[DetectorTensors, DetectorTensors]:
    student = [[0.0, 9.0], [9.0, 0.0], [9.0, 1.0], [0.0, 9.0], [1.0, 9.0], [2.0, 9.0]]
    teacher = [[0.0, 9.0], [9.0, 0.0], [9.0, 1.2], [5.0, 9.0], [1.0, 9.0], [-2.0, 9.0]]
    return ranking(student, 0.0), ranking(teacher, 5.0)


def test_ranks_of_objects_with_candidates():
    """Object 2, whose order the student turns round, comes first; object 0 has nothing to rank."""
    last, middle = object_ranks(*both_sides(), ("sigmoid", "sigmoid"))
    assert last.gt_box.tolist() == [20, 0, 40, 20] and last.gt_class == 0
    assert middle.gt_class == 1 and middle.anchors.tolist() == square_anchors(2, 3)[1:3].tolist()
    expected = torch.tensor([0.0, 1, 2]).sigmoid()
    torch.testing.assert_close(last.class_scores.student, expected)
    torch.testing.assert_close(last.class_scores.teacher, torch.tensor([5.0, 1, -2]).sigmoid())
    assert last.class_scores.divergence > middle.class_scores.divergence > 0
    # The student's boxes are right; the teacher's lie 5 aside: 15 / 25 of 20 pixels, 5 / 15 of 10.
    assert last.ious.student.tolist() == [1, 1, 1]
    assert last.ious.teacher.tolist() == pytest.approx([0.6] * 3)
    assert middle.ious.teacher.tolist() == pytest.approx([1 / 3] * 2)
    assert last.ious.divergence == pytest.approx(0, abs=1e-6)


def test_ranks_are_what_the_loss_is_made_of():
    """Eq. 6 is the mean over all three objects; object 0 adds nothing."""
    signals = [x.class_scores for x in object_ranks(*both_sides(), ("sigmoid", "sigmoid"))]
    sides = [
        side.class_logits_at(FOUND).gather(1, FOUND.gt_classes[:, None])[:, 0].sigmoid()
        for side in both_sides()
    ]
    loss = rank_loss(*sides, FOUND.objects, 3).item()
    assert sum(x.divergence for x in signals) / 3 == pytest.approx(loss)


def test_scores_of_a_softmax_know_the_background():
    """Of two classes and the background at logits 0, 0, log 2 the first has a quarter."""
    side = ranking([[0.0, 0.0, math.log(2)]] * 6, 0.0)
    first, *_ = object_ranks(side, side, ("softmax", "softmax"))
    assert first.class_scores.student.tolist() == pytest.approx([0.25] * len(first.anchors))


# ---------------------------------------------------------------- pictures


def overlays(axes):
    """Extents of what lies over the image."""
    return [tuple(x.get_extent()) for x in axes.get_images()[1:]]


def test_maps_lie_on_their_cells():
    masks = [torch.tensor([[True, False, False]] * 2), torch.tensor([[True, True]])]
    figure = draw_regions(
        IMAGE, torch.tensor([[0.0, 0, 8, 8]]), [Region("psi 0.5", masks)], (16, 32)
    )
    axes = figure.get_axes()
    assert [x.get_title() for x in axes[::2]] == ["objects, stride 16", "objects, stride 32"]
    assert [x.get_title() for x in axes[1::2]] == ["psi 0.5: 33.3%", "psi 0.5: 100.0%"]
    assert overlays(axes[1]) == [(0, 48, 32, 0)] and overlays(axes[3]) == [(0, 64, 32, 0)]
    # Padding and the last cells' overhang are cut off.
    assert (axes[1].get_xlim(), axes[1].get_ylim()) == ((0, 40), (32, 0))


def test_each_difference_has_its_own_scale():
    student = offering(
        features=[torch.zeros(1, 1, 2, 4)], prediction_maps=[torch.zeros(1, 1, 2, 4)]
    )
    teacher = offering(
        features=[torch.full((1, 1, 2, 4), 2.0)], prediction_maps=[torch.zeros(1, 1, 2, 4)]
    )
    maps = difference_maps(student, teacher, SIZE, [STRIDE])
    titles = [
        x.get_title() for x in draw_differences(IMAGE, torch.zeros(0, 4), maps, [16]).get_axes()
    ]
    assert titles[1:] == ["P_dif, up to 0", "F_dif, up to 4", "P_dif x F_dif, up to 0"]


def test_channels_are_in_order_of_the_outer_variance():
    maps = [torch.tensor([[[0.0, 0.0, 0.0, 4.0]], [[0.0, 2.0, 0.0, 2.0]]])]
    found = channel_variance(maps, [torch.tensor([[True, True, False, False]])])
    (axes,) = draw_variance([found], [16]).get_axes()
    outside, inside = (line.get_ydata().tolist() for line in axes.get_lines())
    assert outside == [1, 4] and inside == [1, 0]
    assert "smaller inside in 1 of 2 channels" in axes.get_title(loc="left")
    everywhere = channel_variance(maps, [torch.ones(1, 4, dtype=torch.bool)])
    (axes,) = draw_variance([everywhere], [16]).get_axes()
    assert axes.get_title(loc="left") == "stride 16: no location outside"


def test_anchors_are_in_the_teachers_order():
    ranks = ObjectRanks(
        gt_box=torch.tensor([0.0, 0, 16, 16]),
        gt_class=0,
        anchors=square_anchors(1, 3),
        class_scores=RankSignal(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.1, 0.9])),
        ious=RankSignal(torch.tensor([0.5, 0.6, 0.7]), torch.tensor([0.1, 0.2, 0.3])),
        student_boxes=square_anchors(1, 3),
        teacher_boxes=square_anchors(1, 3),
    )
    axes = draw_ranks(IMAGE, ranks, "cell").get_axes()
    student, teacher = (line.get_ydata().tolist() for line in axes[1].get_lines())
    assert student == pytest.approx([0.3, 0.1, 0.2]) and teacher == pytest.approx([0.9, 0.5, 0.1])
    for side in axes[5].get_lines():  # IoU after the softmax
        assert sum(side.get_ydata()) == pytest.approx(1)
    # Object, first anchor, its box: the teacher's third, at x 32 to 48.
    first = [patch.get_x() for patch in axes[0].patches]
    assert first == [0, 32, 32]
