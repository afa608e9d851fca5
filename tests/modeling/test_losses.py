"""Losses (losses.py) against their formulas in plain Python, their limits and gradients."""

import math

import pytest
import torch

from mimicdet.modeling.losses import box_l1_loss, classification_loss, mimic_loss, objectness_loss


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_mimic(student, teacher):
    """One branch of Eq. 1: 1/N * sum(1 - cos)."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        dot = sum(a * b for a, b in zip(s, t))
        norms = math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))
        total += 1 - dot / norms
    return total / len(student)


@pytest.mark.parametrize("count, dim", [(1, 4), (7, 16), (30, 81)])
def test_mimic_loss_is_equation_1(count, dim):
    student, teacher = random(count, dim, seed=1), random(count, dim, seed=2)
    assert mimic_loss(student, teacher).item() == pytest.approx(
        plain_mimic(student, teacher), rel=1e-5
    )


def test_mimic_loss_limits():
    x = random(5, 8)
    assert mimic_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    assert mimic_loss(x, -x).item() == pytest.approx(2, abs=1e-6)
    assert mimic_loss(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(1)


def test_mimic_loss_ignores_scale_and_is_symmetric():
    student, teacher = random(6, 12, seed=1), random(6, 12, seed=2)
    scales = torch.tensor([0.01, 0.5, 1.0, 3.0, 40.0, 900.0])[:, None]
    expected = mimic_loss(student, teacher)
    torch.testing.assert_close(mimic_loss(student * scales, teacher), expected)
    torch.testing.assert_close(mimic_loss(student, teacher * scales), expected)
    torch.testing.assert_close(mimic_loss(teacher, student), expected)


def test_mimic_gradient_is_orthogonal_to_the_student():
    """The cosine does not change along the vector itself, so the gradient has no such part."""
    student = random(6, 12, seed=1).requires_grad_()
    mimic_loss(student, random(6, 12, seed=2)).backward()
    assert student.grad.norm() > 0.01
    along = (student.grad * student.detach()).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(6), atol=1e-6, rtol=0)


def test_mimic_loss_is_computed_in_float32():
    """Close vectors: bfloat16 arithmetic has no digit left of 1 - cos; float32 has."""
    base = random(4, 256).bfloat16()
    other = (base.float() + 0.03 * random(4, 256, seed=3)).bfloat16()
    expected = plain_mimic(base.float(), other.float())
    assert 1e-4 < expected < 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mimic_loss(base, other)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_mimic_loss_of_a_zero_vector_is_finite():
    student = torch.zeros(2, 5, requires_grad=True)
    loss = mimic_loss(student, random(2, 5))
    loss.backward()
    assert loss.item() == pytest.approx(1) and torch.isfinite(student.grad).all()


def test_mimic_loss_names_different_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        mimic_loss(torch.ones(3, 4), torch.ones(3, 5))


@pytest.mark.parametrize("normalizer", [1, 7, 40.0])
def test_objectness_loss_is_binary_cross_entropy_of_what_counts(normalizer):
    logits = random(2, 20) * 3
    labels = torch.randint(-1, 2, (2, 20), generator=torch.Generator().manual_seed(1))
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist()):
        p = 1 / (1 + math.exp(-x))
        total -= {1: math.log(p), 0: math.log(1 - p), -1: 0.0}[y]
    loss = objectness_loss(logits, labels, normalizer)
    assert loss.item() == pytest.approx(total / normalizer, rel=1e-5)


def test_ignored_anchors_have_no_gradient():
    logits = random(6).requires_grad_()
    labels = torch.tensor([1, 0, -1, 1, -1, 0])
    objectness_loss(logits, labels, 2.0).backward()
    expected = (logits.detach().sigmoid() - labels) / 2  # d BCE / d logit = p - y
    expected[labels < 0] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_box_loss_is_the_sum_of_absolute_differences():
    pred, gt = random(5, 4, seed=1).requires_grad_(), random(5, 4, seed=2)
    loss = box_l1_loss(pred, gt, 8)
    total = sum(abs(a - b) for a, b in zip(pred.flatten().tolist(), gt.flatten().tolist()))
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(pred.grad, (pred.detach() - gt).sign() / 8)


def test_classification_loss_is_the_mean_of_minus_log_softmax():
    logits = random(6, 4)
    classes = torch.tensor([0, 1, 2, 3, 3, 1])
    total = 0.0
    for row, c in zip(logits.tolist(), classes.tolist()):
        total -= row[c] - math.log(sum(math.exp(v) for v in row))
    assert classification_loss(logits, classes).item() == pytest.approx(total / 6, rel=1e-5)
    uniform = classification_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    assert uniform.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: mimic_loss(x, torch.zeros(0, 4)),
        lambda x: objectness_loss(x, torch.zeros(0, 4, dtype=torch.int64), 3),
        lambda x: box_l1_loss(x, torch.zeros(0, 4), 3),
        lambda x: classification_loss(x, torch.zeros(0, dtype=torch.int64)),
    ],
    ids=["mimic", "objectness", "box", "classification"],
)
def test_loss_of_nothing_is_a_zero_in_the_graph(loss):
    source = torch.ones(3, 4, requires_grad=True)
    value = loss(source[:0])
    assert value.item() == 0
    value.backward()
    assert torch.equal(source.grad, torch.zeros(3, 4))


def test_only_ignored_anchors_is_a_zero_in_the_graph():
    logits = torch.ones(4, requires_grad=True)
    value = objectness_loss(logits, torch.full((4,), -1), 1)
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros(4))
