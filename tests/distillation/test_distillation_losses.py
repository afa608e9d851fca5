"""The methods' losses against their equations in plain Python, and what they must not depend on."""

import math

import pytest
import torch

from mimicdet.distillation import losses as L
from mimicdet.distillation.tensors import Locations, gather_at, scores


def draw(*shape, seed=0, grad=False):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return value.requires_grad_(grad)


def softmax(values):
    exps = [math.exp(v) for v in values]
    return [e / sum(exps) for e in exps]


# ---------------------------------------------------------------- rank mimicking

OBJECTS = torch.tensor([2, 0, 2, 0, 0, 2, 3])  # object 1 has no positive, object 3 a single one


def rank_by_hand(student, teacher, objects, num_objects):
    total = 0.0
    for j in range(num_objects):
        mine = [i for i, k in enumerate(objects) if k == j]
        s, t = softmax([student[i] for i in mine]), softmax([teacher[i] for i in mine])
        total -= sum(b * math.log(a / b) for a, b in zip(s, t))
    return total / num_objects


def test_rank_loss_is_equations_5_and_6():
    student, teacher = draw(7, seed=1), draw(7, seed=2)
    expected = rank_by_hand(student.tolist(), teacher.tolist(), OBJECTS.tolist(), 4)
    assert expected > 0.05
    assert L.rank_loss(student, teacher, OBJECTS, 4).item() == pytest.approx(expected, rel=1e-9)


def test_rank_loss_knows_ranks_alone():
    student, teacher = draw(7, seed=1), draw(7, seed=2)
    loss = L.rank_loss(student, teacher, OBJECTS, 4)
    shift = torch.tensor([3.0, 0.0, -200.0, 1e3], dtype=torch.float64)[OBJECTS]
    torch.testing.assert_close(L.rank_loss(student + shift, teacher, OBJECTS, 4), loss)
    torch.testing.assert_close(L.rank_loss(student, teacher - shift, OBJECTS, 4), loss)
    assert L.rank_loss(student + 5, student, OBJECTS, 4).abs() < 1e-12
    # The order of the anchors does not matter, whose they are does.
    order = torch.tensor([6, 3, 0, 5, 1, 4, 2])
    again = L.rank_loss(student[order], teacher[order], OBJECTS[order], 4)
    torch.testing.assert_close(again, loss)
    assert not torch.isclose(L.rank_loss(student, teacher, OBJECTS.flip(0), 4), loss)


def test_rank_loss_has_the_gradient_of_a_softmax():
    """d KL / d s_i = (s'_i - t'_i) / M."""
    student, teacher = draw(3, seed=1, grad=True), draw(3, seed=2)
    L.rank_loss(student, teacher, torch.zeros(3, dtype=torch.int64), 2).backward()
    torch.testing.assert_close(student.grad, (student.softmax(0) - teacher.softmax(0)).detach() / 2)


@pytest.mark.parametrize("num_objects", [0, 3])
def test_no_positives_are_a_zero_in_the_graph(num_objects):
    student = torch.zeros(0, requires_grad=True)
    loss = L.rank_loss(student, torch.zeros(0), torch.zeros(0, dtype=torch.int64), num_objects)
    loss.backward()
    assert loss == 0 and student.grad is not None


# ---------------------------------------------------------------- features

SIZES = [(3, 4), (2, 1)]


def levels(channels, seed, grad=False, batch=2):
    return [draw(batch, channels, *size, seed=seed + i, grad=grad) for i, size in enumerate(SIZES)]


def locations(x):
    n, _, height, width = x.shape
    return [(i, y, z) for i in range(n) for y in range(height) for z in range(width)]


def squares(a, b, at):
    i, y, x = at
    return [(p - q) ** 2 for p, q in zip(a[i, :, y, x].tolist(), b[i, :, y, x].tolist())]


def test_prediction_guided_loss_is_equations_7_to_9():
    student, teacher = levels(5, seed=1), levels(5, seed=11)
    p_student = [x.sigmoid() for x in levels(6, seed=21)]
    p_teacher = [x.sigmoid() for x in levels(6, seed=31)]
    expected = 0.0
    for fs, ft, ps, pt in zip(student, teacher, p_student, p_teacher):
        total = 0.0
        for at in locations(fs):
            total += (sum(squares(ps, pt, at)) / 6 * sum(squares(fs, ft, at)) / 5) ** 2
        n, _, height, width = fs.shape
        expected += total / (height * width) / n / 2
    pairs = list(zip(student, teacher)), list(zip(p_student, p_teacher))
    assert L.prediction_guided_loss(*pairs).item() == pytest.approx(expected, rel=1e-9)


def test_prediction_guided_loss_is_zero_where_either_agrees():
    student, teacher = levels(5, seed=1, grad=True), levels(5, seed=11)
    p_student, p_teacher = levels(6, seed=21), levels(6, seed=31)
    for level in (0, 1):
        p_student[level][:, :, :1] = p_teacher[level][:, :, :1]
    loss = L.prediction_guided_loss(list(zip(student, teacher)), list(zip(p_student, p_teacher)))
    loss.backward()
    assert loss > 0
    for x in student:  # the first row agrees in its predictions, whatever its features
        assert not x.grad[:, :, 0].any()
    assert student[0].grad[:, :, 1:].any()
    same = list(zip(p_teacher, p_teacher))
    assert L.prediction_guided_loss(list(zip(student, teacher)), same) == 0
    agreeing = list(zip(teacher, teacher))
    assert L.prediction_guided_loss(agreeing, list(zip(p_student, p_teacher))) == 0


def masks_of(seed):
    return [x[:, 0] > 0 for x in levels(1, seed=seed)]


@pytest.mark.parametrize("masked", [False, True])
def test_masked_feature_loss_is_equation_4(masked):
    student, teacher = levels(5, seed=1), levels(5, seed=11)
    masks = masks_of(7) if masked else [None, None]
    expected = 0.0
    for fs, ft, mask in zip(student, teacher, masks):
        kept = [at for at in locations(fs) if mask is None or mask[at]]
        expected += sum(sum(squares(fs, ft, at)) for at in kept) / len(kept) / 2
    loss = L.masked_feature_loss(list(zip(student, teacher)), masks)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert L.masked_feature_loss(list(zip(teacher, teacher)), masks) == 0


def test_all_positions_as_a_mask_are_no_mask():
    pairs = list(zip(levels(5, seed=1), levels(5, seed=11)))
    ones = [torch.ones_like(a[:, 0], dtype=torch.bool) for a, _ in pairs]
    plain = L.masked_feature_loss(pairs, [None, None])
    torch.testing.assert_close(L.masked_feature_loss(pairs, ones), plain)


def test_fine_grained_loss_is_equation_2():
    student, teacher, masks = levels(5, seed=1), levels(5, seed=11), masks_of(7)
    expected = 0.0
    for fs, ft, mask in zip(student, teacher, masks):
        kept = [at for at in locations(fs) if mask[at]]
        expected += sum(sum(squares(fs, ft, at)) for at in kept) / (2 * len(kept))
    loss = L.fine_grained_loss(list(zip(student, teacher)), masks)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert L.fine_grained_loss(list(zip(teacher, teacher)), masks) == 0


@pytest.mark.parametrize("loss", [L.masked_feature_loss, L.fine_grained_loss])
def test_an_empty_mask_is_a_zero_in_the_graph(loss):
    student = levels(5, seed=1, grad=True)
    nothing = [torch.zeros_like(x[:, 0], dtype=torch.bool) for x in student]
    value = loss(list(zip(student, levels(5, seed=11))), nothing)
    value.backward()
    assert value == 0 and all(x.grad is not None and not x.grad.any() for x in student)


def test_maps_are_never_resized():
    pairs = [(draw(1, 2, 4, 4), draw(1, 2, 2, 2))]
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) and \(1, 2, 2, 2\)"):
        L.masked_feature_loss(pairs, [None])


# ---------------------------------------------------------------- soft labels


def test_soft_labels_of_a_softmax_are_equations_2_and_3():
    student, teacher, t = draw(4, 3, seed=1), draw(4, 3, seed=2), 2.5
    expected = 0.0
    for a, b in zip(student.tolist(), teacher.tolist()):
        s, q = softmax([x / t for x in a]), softmax([x / t for x in b])
        expected -= sum(y * math.log(x / y) for x, y in zip(s, q))
    loss = L.soft_label_loss(student, teacher, t, "softmax", 4)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-9)
    assert L.soft_label_loss(student, student, t, "softmax", 4).abs() < 1e-12
    shifted = L.soft_label_loss(student + 9, teacher, t, "softmax", 4)
    torch.testing.assert_close(shifted, loss)


@pytest.mark.parametrize("reading", ["sigmoid", "joint"])
def test_soft_labels_of_sigmoids_are_a_divergence_a_class(reading):
    student, teacher, t = draw(4, 3, seed=1), draw(4, 3, seed=2), 2.5
    expected = 0.0
    for a, b in zip(student.ravel().tolist(), teacher.ravel().tolist()):
        s, q = (1 / (1 + math.exp(-x / t)) for x in (a, b))
        expected += q * math.log(q / s) + (1 - q) * math.log((1 - q) / (1 - s))
    loss = L.soft_label_loss(student, teacher, t, reading, 7)
    assert loss.item() == pytest.approx(expected / 7, rel=1e-9)
    assert L.soft_label_loss(student, student, t, reading, 7) == 0
    certain = torch.full((2, 3), 200.0, requires_grad=True)
    L.soft_label_loss(certain, -certain.detach(), 1.0, reading, 1).backward()
    assert torch.isfinite(certain.grad).all()


# ---------------------------------------------------------------- reading


def test_scores_are_of_the_foreground_classes():
    logits = draw(2, 4)
    torch.testing.assert_close(scores(logits, "softmax"), logits.softmax(1)[:, :3])
    torch.testing.assert_close(scores(logits, "joint"), logits.sigmoid())


def test_gather_at_is_detectron2s_order():
    from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K

    maps = [draw(2, 3 * 5, *size, seed=i) for i, size in enumerate([(4, 3), (2, 2)])]
    rows = torch.cat([permute_to_N_HWA_K(x, 5) for x in maps], dim=1)
    images = torch.tensor([0, 0, 0, 1, 1, 1])
    anchors = torch.tensor([47, 3, 36, 0, 35, 40])
    actual = gather_at(maps, 5, Locations(images, anchors))
    assert torch.equal(actual, rows[images, anchors])
    none = torch.zeros(0, dtype=torch.int64)
    assert gather_at(maps, 5, Locations(none, none)).shape == (0, 5)
