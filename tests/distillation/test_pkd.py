"""PKD against its formula in plain Python, and what it must not depend on."""

import pytest
import torch

from mimicdet.distillation.losses import correlation_loss, standardised
from tests.distillation.tiny_detectors import distiller_of, losses_of, taught_cfg, write_teacher

SIZES = [(3, 4), (2, 1)]


def maps(seed, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 5, *size, generator=generator, dtype=torch.float64).requires_grad_(grad)
        for size in SIZES
    ]


def channel(x, c):
    """The values of a channel over images, rows and columns."""
    images, _, height, width = x.shape
    return [
        x[n, c, i, j].item() for n in range(images) for i in range(height) for j in range(width)
    ]


def standardised_by_hand(numbers):
    mean = sum(numbers) / len(numbers)
    deviation = (sum((v - mean) ** 2 for v in numbers) / len(numbers)) ** 0.5
    return [(v - mean) / (deviation + 1e-6) for v in numbers]


def test_loss_is_half_the_squared_difference_of_standardised_maps():
    student, teacher = maps(1), maps(2)
    expected = 0.0
    for a, b in zip(student, teacher):
        gaps = []
        for c in range(5):
            pair = (standardised_by_hand(channel(x, c)) for x in (a, b))
            gaps += [(s - t) ** 2 for s, t in zip(*pair)]
        expected += sum(gaps) / len(gaps) / 2
    loss = correlation_loss(list(zip(student, teacher)))
    assert loss.item() == pytest.approx(expected, rel=1e-9) and expected > 0.5


def test_loss_is_one_minus_pearsons_r():
    student, teacher = maps(1)[:1], maps(2)[:1]
    r = [
        torch.corrcoef(torch.tensor([channel(x[0], c) for x in (student, teacher)]))
        for c in range(5)
    ]
    expected = 1 - sum(x[0, 1].item() for x in r) / 5
    loss = correlation_loss(list(zip(student, teacher)))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_shift_and_scale_of_a_channel_do_not_count():
    student, teacher = maps(1), maps(2)
    loss = correlation_loss(list(zip(student, teacher)))
    scale = torch.tensor([2.0, 0.5, 10, 1, 3], dtype=torch.float64).view(1, 5, 1, 1)
    moved = [x * scale + scale.flip(1) for x in student]
    torch.testing.assert_close(correlation_loss(list(zip(moved, teacher))), loss, rtol=1e-5, atol=0)
    assert correlation_loss(list(zip(moved, student))) < 1e-9


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 4, 4)])
def test_channels_of_one_value_have_no_gradient(shape):
    """A map of one location, a dead channel."""
    student = torch.ones(shape, requires_grad=True)
    loss = correlation_loss([(student, torch.randn(shape))])
    loss.backward()
    assert torch.isfinite(loss) and not student.grad.any()


def test_half_precision_is_computed_in_float32():
    x = torch.randn(2, 3, 4, 4)
    assert standardised(x.bfloat16()).dtype == torch.float32
    assert correlation_loss([(x.bfloat16(), x.bfloat16())]) == 0


def test_levels_can_be_chosen(tmp_path):
    write_teacher(tmp_path, "RetinaNet")
    key = "DISTILLATION__PKD__LEVELS"
    alone = [
        losses_of(distiller_of(taught_cfg(tmp_path, "RetinaNet", ["PKD"], **{key: levels})))
        for levels in ([0], [1, 2], [0, 1, 2])
    ]
    first, others, all_three = (x["loss_pkd"].item() for x in alone)
    assert first + others == pytest.approx(all_three) and first > 0 < others
    distiller = distiller_of(taught_cfg(tmp_path, "RetinaNet", ["PKD"], **{key: [0]}))
    assert distiller.terms[0].loss_weight == 6.0
