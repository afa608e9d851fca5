"""CWD against its formula in plain Python, and what it must not depend on."""

import math

import pytest
import torch

from mimicdet.distillation.losses import channel_distribution_loss
from tests.distillation.tiny_detectors import distiller_of, losses_of, taught_cfg, write_teacher

SIZES = [(3, 4), (2, 1)]


def maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 5, *size, generator=generator, dtype=torch.float64) * 3 for size in SIZES
    ]


def distribution(channel, temperature):
    exps = [math.exp(v / temperature) for row in channel.tolist() for v in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_is_the_divergence_of_each_channels_distribution(temperature):
    student, teacher = maps(1), maps(2)
    expected = 0.0
    for a, b in zip(student, teacher):
        terms = []
        for n in range(2):
            for c in range(5):
                s, t = (distribution(x[n, c], temperature) for x in (a, b))
                terms.append(sum(q * math.log(q / p) for p, q in zip(s, t)))
        expected += temperature**2 * sum(terms) / len(terms)
    loss = channel_distribution_loss(list(zip(student, teacher)), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9) and expected > 0.5


def test_a_shift_of_a_channel_does_not_count():
    student, teacher = maps(1), maps(2)
    loss = channel_distribution_loss(list(zip(student, teacher)), 1.0)
    moved = [x + torch.arange(5.0).view(1, 5, 1, 1) * 300 for x in student]
    again = channel_distribution_loss(list(zip(moved, teacher)), 1.0)
    torch.testing.assert_close(again, loss)
    assert channel_distribution_loss(list(zip(moved, student)), 1.0).abs() < 1e-12


def test_half_precision_and_certain_channels_are_finite():
    x = (torch.randn(1, 2, 4, 4) * 300).bfloat16().requires_grad_()
    loss = channel_distribution_loss([(x, -x.detach())], 1.0)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(x.grad).all()


def test_maps_of_other_sizes_are_an_error():
    with pytest.raises(ValueError, match="differ in shape"):
        channel_distribution_loss([(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))], 1.0)


def test_a_wider_teacher_needs_an_adaptation_layer(tmp_path):
    write_teacher(tmp_path, "RetinaNet", FPN__OUT_CHANNELS=24)
    with pytest.raises(ValueError, match="CWD: channels .*ADAPTATION True"):
        distiller_of(taught_cfg(tmp_path, "RetinaNet", ["CWD"]))
    adapted = {"DISTILLATION__CWD__ADAPTATION": True, "DISTILLATION__CWD__LEVELS": [1, 2]}
    distiller = distiller_of(taught_cfg(tmp_path, "RetinaNet", ["CWD"], **adapted))
    losses_of(distiller)["loss_cwd"].backward()
    layers = distiller.methods[0].adaptation
    assert set(layers) == {"1", "2"} and all(x.weight.grad.any() for x in layers.values())
    assert distiller.terms[0].loss_weight == 10.0
