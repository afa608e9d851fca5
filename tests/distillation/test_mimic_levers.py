"""What MODEL.MIMICDET.MIMIC adds to the paper's mimic loss, in the model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from mimicdet import build_distiller
from mimicdet.checkpoint import load_weights
from mimicdet.checkpoint.student import extract_student
from mimicdet.distillation import build_separate_teacher
from mimicdet.distillation.head_losses import FEATURE_LOSSES, softmax_gap
from mimicdet.engine.averaging import ModelAverage
from mimicdet.export.optimize import copy_for_inference
from mimicdet.modeling.losses import cosine_gap, mimic_loss
from mimicdet.utils.errors import UserError
from tests.helpers import (
    LOSS_KEYS,
    MIMIC_KEYS,
    P3_BOX,
    P4_BOX,
    count_calls,
    gradients_of,
    make_input,
    small_cfg,
    small_model,
)

M = "MODEL.MIMICDET."
TERMS = f"{M}MIMIC.TERMS."
NO_FEATURES = (f"{TERMS}CLS", 0.0, f"{TERMS}LOC", 0.0)
INPUTS = [make_input(boxes=[P3_BOX, P4_BOX]), make_input((61, 97), seed=1)]
EMPTY = [make_input(boxes=[]), make_input((61, 97), boxes=[], seed=1)]


def distiller_of(*opts, seed=0):
    return build_distiller(small_cfg(*opts), small_model(*opts, seed=seed)).train()


def step(distiller, inputs=INPUTS, seed=0):
    """The losses of a step with its own choice of boxes."""
    torch.manual_seed(seed)
    return distiller(inputs)


def mimic_part(losses):
    return {key: value for key, value in losses.items() if key.startswith("loss_mimic_")}


def reached(module):
    """Names of the parameters that have a gradient other than zero."""
    return {name for name, g in gradients_of(module).items() if g is not None and g.any()}


# ---------------------------------------------------------------- terms


def test_the_default_is_equation_1_bit_by_bit():
    distiller = distiller_of()
    losses = step(distiller)
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    assert set(losses) == LOSS_KEYS | MIMIC_KEYS
    for key, output in (("cls", "pred_class_logits"), ("loc", "box_features")):
        pair = (getattr(tensors.student, output), getattr(tensors.teacher, output))
        assert torch.equal(losses[f"loss_mimic_{key}"], mimic_loss(*pair))


@pytest.mark.parametrize("score_loss", ["softmax", "binary"])
@pytest.mark.parametrize("box_loss", ["giou", "smooth_l1"])
def test_outputs_are_mimicked_in_place_of_features(score_loss, box_loss):
    opts = (*NO_FEATURES, f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0)
    opts += (f"{M}MIMIC.SCORE_LOSS", score_loss, f"{M}MIMIC.BOX_LOSS", box_loss)
    distiller = distiller_of(*opts)
    losses = mimic_part(step(distiller))
    assert set(losses) == {"loss_mimic_scores", "loss_mimic_boxes"}
    assert all(value > 0 for value in losses.values())
    sum(losses.values()).backward()
    # Unlike Eq. 1 it teaches the layer of the deltas; the T-head is detached.
    names = {name for name, _ in distiller.student.student_head.named_parameters()}
    assert reached(distiller.student.student_head) == names
    assert not reached(distiller.student.roi_heads)


def test_factors_of_terms():
    once = step(distiller_of(f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0))
    opts = [f"{TERMS}CLS", 2.0, f"{TERMS}LOC", 3.0, f"{TERMS}SCORES", 4.0, f"{TERMS}BOXES", 5.0]
    more = step(distiller_of(*opts))
    assert set(once) == set(more)
    for key, factor in {"cls": 2, "loc": 3, "scores": 4, "boxes": 5}.items():
        torch.testing.assert_close(more[f"loss_mimic_{key}"], factor * once[f"loss_mimic_{key}"])
    for key in LOSS_KEYS:
        assert torch.equal(more[key], once[key])


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_feature_behind_the_logits_is_mimicked(name):
    opts = (*NO_FEATURES, f"{TERMS}CLASS_FEATURES", 2.0, f"{M}MIMIC.FEATURE_LOSS", name)
    distiller = distiller_of(*opts)
    losses = mimic_part(step(distiller))
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    pair = tensors.student.class_features, tensors.teacher.class_features
    expected = 2 * FEATURE_LOSSES[name](*pair).mean()
    torch.testing.assert_close(losses, {"loss_mimic_class_features": expected})
    cosine = distiller.methods[0].metrics({})["mimic/cosine_class_features"]
    assert cosine == pytest.approx(1 - cosine_gap(*pair).mean().item())


def test_boxes_without_an_object_teach_no_box():
    distiller = distiller_of(f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0)
    losses = step(distiller, EMPTY)
    assert set(losses) == set(step(distiller)) and losses["loss_mimic_boxes"] == 0
    assert losses["loss_mimic_scores"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


@pytest.mark.parametrize("score_loss", ["softmax", "binary"])
def test_the_quality_of_the_teachers_boxes_is_a_target_of_scores(score_loss):
    opts = (*NO_FEATURES, f"{TERMS}QUALITY", 1.0, f"{M}MIMIC.SCORE_LOSS", score_loss)
    distiller = distiller_of(*opts)
    losses = step(distiller)
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    labels, transform = tensors.labelled, distiller.methods[0].box2box_transform
    found = transform.apply_deltas(tensors.teacher.pred_box_deltas, labels.boxes)
    gaps, objects = [], 0
    for i, label in enumerate(labels.gt_classes.tolist()):
        scores = tensors.student.pred_class_logits[i].softmax(dim=0)
        target = torch.zeros_like(scores)
        if label < len(scores) - 1:
            target[label] = pairwise_iou(Boxes(found[i : i + 1]), Boxes(labels.gt_boxes[i : i + 1]))
            objects += 1
        target[-1] = 1 - target.sum()
        gaps.append(by_hand(scores, target, score_loss))
    assert objects
    torch.testing.assert_close(losses["loss_mimic_quality"], torch.stack(gaps).mean())
    losses["loss_mimic_quality"].backward()
    assert "class_logits.weight" in reached(distiller.student.student_head)
    assert not reached(distiller.student.roi_heads)


def by_hand(scores, target, score_loss):
    """The gap of one box from (K + 1) probabilities."""
    weights = (target - scores).abs()
    if score_loss == "softmax":
        return -weights.sum() / 2 * (target * scores.log()).sum()
    return -(weights * (target * scores.log() + (1 - target) * (1 - scores).log())).sum()


def test_heads_that_are_not_split_take_the_terms_of_outputs_too():
    opts = (f"{M}TEACHER.HEAD", "heavy", f"{M}STUDENT.DUAL_PATH", False, f"{TERMS}SCORES", 1.0)
    losses = mimic_part(step(distiller_of(*opts)))
    assert set(losses) == {"loss_mimic_shared", "loss_mimic_scores"}


@pytest.fixture()
def teacher_files(tmp_path):
    """A two-stage teacher's config and checkpoint on disk, as training it would leave them."""
    opts = [f"{M}STUDENT.ENABLED", False, f"{M}MIMIC.ENABLED", False, f"{M}EVAL_HEAD", "teacher"]
    (tmp_path / "teacher.yaml").write_text(small_cfg(*opts).dump())
    torch.save({"model": small_model(*opts, seed=5).state_dict()}, tmp_path / "teacher.pth")
    return tmp_path


def separate_opts(folder):
    node = f"{M}SEPARATE_TEACHER."
    files = [f"{node}CONFIG_FILE", str(folder / "teacher.yaml")]
    files += [f"{node}WEIGHTS", str(folder / "teacher.pth")]
    return [f"{M}TEACHER.ENABLED", False, *files]


def test_a_separate_teacher_gives_outputs(teacher_files):
    opts = [*separate_opts(teacher_files), *NO_FEATURES]
    opts += [f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0]
    losses = step(distiller_of(*opts))
    assert losses["loss_mimic_scores"] > 0 and losses["loss_mimic_boxes"] > 0


def test_deltas_of_another_parametrisation_are_refused(teacher_files):
    path = teacher_files / "teacher.yaml"
    content = yaml.safe_load(path.read_text())
    content["MODEL"]["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"] = [1.0, 1.0, 1.0, 1.0]
    path.write_text(yaml.safe_dump(content))
    opts = separate_opts(teacher_files)
    with pytest.raises(UserError, match="BBOX_REG_WEIGHTS"):
        build_separate_teacher(small_cfg(*opts, f"{TERMS}BOXES", 1.0))
    build_separate_teacher(small_cfg(*opts))  # Eq. 1 looks at no delta


# ---------------------------------------------------------------- schedule


def at_iteration(distiller, iteration, inputs=INPUTS):
    with EventStorage(iteration):
        return step(distiller, inputs)


def test_the_mimic_loss_starts_grows_and_stops():
    schedule = (f"{M}MIMIC.START_ITER", 2, f"{M}MIMIC.WARMUP_ITERS", 2, f"{M}MIMIC.STOP_ITER", 5)
    distiller = distiller_of(*schedule, f"{TERMS}SCORES", 1.0)
    full = mimic_part(step(distiller_of(f"{TERMS}SCORES", 1.0)))
    for iteration, share in enumerate([0, 0, 0.5, 1, 1, 0, 0]):
        losses = mimic_part(at_iteration(distiller, iteration))
        assert set(losses) == set(full)
        for key, value in losses.items():
            torch.testing.assert_close(value, share * full[key])


def test_the_mimic_loss_is_weighed_by_its_gradient():
    """A factor that all its terms share, and the more of it the larger the ratio."""
    plain = mimic_part(step(distiller_of()))
    once, twice = (
        mimic_part(step(distiller_of(f"{M}MIMIC.GRADIENT_RATIO", ratio))) for ratio in (1.0, 2.0)
    )
    factors = [once[key] / plain[key] for key in plain]
    assert factors[0] > 1 and set(once) == set(plain)
    torch.testing.assert_close(factors[0], factors[1])
    for key, value in once.items():
        torch.testing.assert_close(twice[key], 2 * value)


def test_the_s_head_starts_later():
    distiller = distiller_of(f"{M}STUDENT.START_ITER", 3)
    keys = {"loss_student_cls", "loss_student_loc"}
    before, after = at_iteration(distiller, 2), at_iteration(distiller, 3)
    assert all(before[key] == 0 and after[key] > 0 for key in keys)
    assert set(before) == set(after) == LOSS_KEYS | MIMIC_KEYS
    for key in before.keys() - keys:
        assert torch.equal(before[key], after[key])
    sum(before[key] for key in keys).backward()
    head = gradients_of(distiller.student.student_head)
    assert all(g is not None and not g.any() for g in head.values())


# ---------------------------------------------------------------- an average of the T-head

EMA = (f"{M}MIMIC.TEACHER_EMA", 0.9)


def test_the_average_follows_the_t_head():
    distiller = distiller_of(*EMA)
    head, averaged = distiller.student.roi_heads, distiller.student.averaged_teacher
    values, expected = [4.0, 8.0, -1.0], 0.0
    for count, value in enumerate(values):
        head.box_deltas.bias.data.fill_(value)
        at_iteration(distiller, count)
        kept = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        expected = kept * expected + (1 - kept) * value
        torch.testing.assert_close(averaged.head.box_deltas.bias, torch.full((4,), expected))
    # A new run, perhaps from weights of an earlier one, begins with the T-head itself.
    at_iteration(distiller, 0)
    assert all(map(torch.equal, averaged.head.parameters(), head.parameters()))


def test_the_average_is_what_is_imitated():
    distiller = distiller_of(*EMA, f"{TERMS}SCORES", 1.0)
    plain = step(distiller_of(f"{TERMS}SCORES", 1.0))
    first = at_iteration(distiller, 0)  # where both are alike
    for key, value in plain.items():
        assert torch.equal(first[key], value), key
    averaged = distiller.student.averaged_teacher
    averaged.decay = 1 - 1e-9
    averaged.steps.fill_(10**12)  # it stays where it is
    for p in distiller.student.roi_heads.parameters():
        p.data.mul_(-0.5)
    later = at_iteration(distiller, 1)
    for key in mimic_part(first):
        torch.testing.assert_close(later[key], first[key])
    assert later["loss_teacher_cls"] != first["loss_teacher_cls"]
    sum(later.values()).backward()
    assert not any(p.requires_grad for p in averaged.parameters())


def test_the_average_is_not_run_before_the_start():
    distiller = distiller_of(*EMA, f"{M}MIMIC.START_ITER", 2)
    averaged = distiller.student.averaged_teacher
    calls = count_calls(averaged.head.class_logits)
    at_iteration(distiller, 0)
    assert calls == [0] and averaged.steps == 1  # it follows all the same
    at_iteration(distiller, 2)
    assert calls == [1]


def test_inference_and_student_files_have_no_average(tmp_path):
    model = small_model(*EMA)
    assert any(key.startswith("averaged_teacher.") for key in model.state_dict())
    assert not [k for k in copy_for_inference(model.eval()).state_dict() if "averaged" in k]
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    target = str(tmp_path / "student.pth")
    extract_student(small_cfg(*EMA), ["a", "b", "c"], str(tmp_path / "model.pth"), target)
    names = torch.load(target, weights_only=True)["model"]
    assert {name.split(".")[0] for name in names} == {
        "backbone",
        "proposal_generator",
        "student_head",
    }
    load_weights(small_model(*EMA), target)  # for inference it is complete


# ---------------------------------------------------------------- which boxes, and their weights


def test_weights_of_boxes_weigh_every_term():
    opts = (f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0)
    distiller = distiller_of(*opts, f"{M}MIMIC.WEIGHTING", ["confidence"])
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    own, target, boxes = tensors.student, tensors.teacher, tensors.labelled
    scores = target.pred_class_logits.softmax(dim=1)
    weights = scores[torch.arange(len(scores)), boxes.gt_classes]
    gap = cosine_gap(own.box_features, target.box_features)
    losses, plain = step(distiller), step(distiller_of(*opts))
    expected = (weights * gap).sum() / weights.sum()
    torch.testing.assert_close(losses["loss_mimic_loc"], expected)
    assert all(losses[key] != plain[key] for key in mimic_part(plain))


def test_without_background():
    distiller = distiller_of(f"{M}MIMIC.MAX_BACKGROUND", 0.0, f"{TERMS}SCORES", 1.0)
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    chosen = tensors.labelled.foreground(3)
    assert 0 < chosen.sum() < len(chosen)
    pair = (x.box_features[chosen] for x in (tensors.student, tensors.teacher))
    losses = step(distiller)
    torch.testing.assert_close(losses["loss_mimic_loc"], mimic_loss(*pair))
    empty = mimic_part(step(distiller, EMPTY))
    assert set(empty) == set(mimic_part(losses)) and not any(empty.values())


@pytest.mark.parametrize("sparse", [True, False])
def test_boxes_of_the_hard_mining_are_mimicked_too(sparse):
    opts = (f"{M}STUDENT.HARD_MINING_TOPK", 20, f"{M}STUDENT.SPARSE", sparse)
    more = distiller_of(*opts, f"{M}MIMIC.SAMPLES", "sampled_and_mined")
    paper = distiller_of(*opts)
    torch.manual_seed(0)
    losses, tensors = more.student.forward_training(INPUTS)
    torch.manual_seed(0)
    plain, sampled = paper.student.forward_training(INPUTS)
    assert set(plain) == set(losses)
    for key, value in plain.items():  # what trains the heads is as before
        torch.testing.assert_close(losses[key], value)
    start = 0
    for boxes, first in zip(tensors.query.boxes, sampled.query.boxes):
        assert len(first) == 16 < len(boxes) <= 36 and torch.equal(boxes[:16], first)
        assert len(boxes.unique(dim=0)) == len(boxes)
        assert torch.equal(tensors.labelled.boxes[start : start + len(boxes)], boxes)
        start += len(boxes)
    assert len(tensors.student.box_features) == len(tensors.teacher.box_features) == start
    # Both heads look at the same boxes, and so does the method.
    model = more.student
    again = model.roi_heads.predict(tensors.maps, tensors.query.boxes, tensors.query.levels)
    torch.testing.assert_close(again.box_features, tensors.teacher.box_features)
    assert set(step(more)) == LOSS_KEYS | MIMIC_KEYS == set(step(more, EMPTY))


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("name", ["standardized", "l2", "smooth_l1"])
def test_features_by_another_loss(name):
    distiller = distiller_of(f"{M}MIMIC.FEATURE_LOSS", name)
    losses = step(distiller)
    assert losses["loss_mimic_loc"] != step(distiller_of())["loss_mimic_loc"]
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    pair = (x.box_features for x in (tensors.student, tensors.teacher))
    torch.testing.assert_close(losses["loss_mimic_loc"], FEATURE_LOSSES[name](*pair).mean())
    assert set(step(distiller, EMPTY)) == LOSS_KEYS | MIMIC_KEYS


def test_a_projector_begins_as_the_identity_and_trains():
    distiller, plain = distiller_of(f"{M}MIMIC.PROJECTOR", True), distiller_of()
    losses, without = step(distiller), step(plain)
    for key, value in without.items():
        torch.testing.assert_close(losses[key], value)
    sum(losses.values()).backward()
    names = {n for n, p in distiller.methods.named_parameters() if p.grad.any()}
    assert names == {f"0.projectors.box_features.{x}" for x in ("weight", "bias")}
    assert distiller.student.state_dict().keys() == plain.student.state_dict().keys()


def test_a_projector_between_features_of_two_widths():
    opts = (f"{M}MIMIC.PROJECTOR", True, f"{M}STUDENT.FEATURE_DIM", 10)
    losses = step(distiller_of(*opts, f"{M}MIMIC.START_ITER", 1))
    assert losses["loss_mimic_loc"] == 0
    sum(losses.values()).backward()
    distiller = distiller_of(*opts)
    losses = step(distiller)
    assert losses["loss_mimic_loc"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


# ---------------------------------------------------------------- cross head

CROSS = (f"{TERMS}CROSS_SCORES", 1.0, f"{TERMS}CROSS_BOXES", 1.0)


def test_features_go_through_the_output_layers_of_the_t_head():
    distiller = distiller_of(*NO_FEATURES, *CROSS)
    losses = mimic_part(step(distiller))
    assert set(losses) == {"loss_mimic_cross_scores", "loss_mimic_cross_boxes"}
    model = distiller.student
    torch.manual_seed(0)
    _, tensors = model.forward_training(INPUTS)
    logits = model.roi_heads.class_logits(tensors.student.class_features)
    expected = softmax_gap(logits, tensors.teacher.pred_class_logits).mean()
    torch.testing.assert_close(losses["loss_mimic_cross_scores"], expected)
    sum(losses.values()).backward()
    # The S-head's features learn, no output layer does.
    outputs = {f"{x}.{y}" for x in ("class_logits", "box_deltas") for y in ("weight", "bias")}
    names = {name for name, _ in model.student_head.named_parameters()}
    assert reached(model.student_head) == names - outputs and not reached(model.roi_heads)


def test_a_separate_teachers_output_layers(teacher_files):
    distiller = distiller_of(*separate_opts(teacher_files), *CROSS)
    losses = step(distiller)
    assert set(mimic_part(losses)) == set(mimic_part(step(distiller, EMPTY)))
    losses["loss_mimic_cross_scores"].backward()
    assert distiller.student.student_head.class_feature.weight.grad.any()


def test_a_cross_head_of_an_average_and_of_another_width():
    opts = (*EMA, f"{M}MIMIC.PROJECTOR", True, f"{M}STUDENT.FEATURE_DIM", 10)
    distiller = distiller_of(*opts, *CROSS)
    sum(step(distiller).values()).backward()
    assert set(distiller.methods[0].projectors) == {"class_features", "box_features"}
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def test_output_layers_are_copied_in_the_first_iteration_of_the_mimic_loss():
    distiller = distiller_of(f"{M}MIMIC.COPY_OUTPUTS", True, f"{M}MIMIC.START_ITER", 2)
    student, teacher = distiller.student.student_head, distiller.student.roi_heads
    for iteration, alike in ((0, False), (1, False), (2, True)):
        at_iteration(distiller, iteration)
        for name in ("class_logits", "box_deltas"):
            weights = getattr(student, name).weight, getattr(teacher, name).weight
            assert torch.equal(*weights) == alike
    student.class_logits.weight.data.zero_()
    at_iteration(distiller, 3)
    assert not student.class_logits.weight.any()  # once


def test_the_average_takes_a_copied_s_head_as_it_is():
    distiller = distiller_of(f"{M}MIMIC.COPY_OUTPUTS", True, f"{M}MIMIC.START_ITER", 2)
    model = distiller.student
    average = ModelAverage(model, 0.5)
    for iteration in range(4):
        at_iteration(distiller, iteration)
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1.01
        average.trainer = SimpleNamespace(iter=iteration)
        average.after_step()
        alike = {
            name
            for name in ("student_head", "roi_heads")
            if average.average.get_submodule(name).class_logits.weight.equal(
                model.get_submodule(name).class_logits.weight
            )
        }
        assert alike == ({"student_head"} if iteration == 2 else set())


BRANCH = (f"{M}MIMIC.COPY_BRANCH", True, f"{M}STUDENT.ALIGNMENT_DIM", 30)
BRANCH += (f"{M}STUDENT.OFFSET_INIT", "box", f"{M}STUDENT.KERNEL_SIZES", [3, 7, 7, 7, 7])


def spread(points, axis):
    """The values at 7 bins of those at points, along an axis."""
    size = points.shape[axis]
    places = [(i + 0.5) / 7 * size - 0.5 for i in range(7)]
    return np.apply_along_axis(lambda x: np.interp(places, range(size), x), axis, points)


LIGHT = (f"{M}STUDENT.DUAL_PATH", False, f"{M}TEACHER.HEAD", "light")


@pytest.mark.parametrize("opts", [(), LIGHT], ids=["class", "light"])
def test_a_branch_is_copied(opts):
    """What lies on k x k points gets what the T-head makes of bins that are read from them."""
    distiller = distiller_of(*BRANCH, *opts, f"{M}MIMIC.START_ITER", 1)
    student, teacher = distiller.student.student_head, distiller.student.roi_heads
    branch = teacher.shared_branch if opts else teacher.class_branch
    kept = student.box_deltas.weight.clone()
    for iteration, alike in ((0, False), (1, True)):
        at_iteration(distiller, iteration)
        for name, alignment in student.alignments.items():
            points = torch.randn(2, 16, int(name[1:]), int(name[1:]))
            aligned = F.relu(F.conv2d(points, alignment.conv.weight, alignment.conv.bias))
            own = student.predict(aligned.flatten(1))
            feature = branch(torch.tensor(spread(spread(points, 2), 3)).float())
            logits, deltas = teacher.class_logits(feature), teacher.box_deltas(feature)
            assert torch.allclose(own.pred_class_logits, logits, atol=1e-4) == alike
            if opts:
                assert torch.allclose(own.pred_box_deltas, deltas, atol=1e-4) == alike
    assert torch.equal(student.box_deltas.weight, kept) == (not opts)
    student.class_logits.weight.data.zero_()
    at_iteration(distiller, 2)
    assert not student.class_logits.weight.any()  # once


def test_both_heads_train_the_same_output_layers():
    distiller = distiller_of(f"{M}MIMIC.SHARE_OUTPUTS", True)
    model = distiller.student
    assert model.student_head.class_logits is model.roi_heads.class_logits
    losses = step(distiller)
    weight = model.student_head.box_deltas.weight
    for name in ("loss_student_loc", "loss_teacher_loc"):
        (gradient,) = torch.autograd.grad(losses[name], weight, retain_graph=True)
        assert gradient.any()
    groups = get_default_optimizer_params(model)
    assert sum(weight is p for group in groups for p in group["params"]) == 1
    average = ModelAverage(model, 0.5)
    average.trainer = SimpleNamespace(iter=100)
    with torch.no_grad():
        weight += 1
    average.after_step()
    torch.testing.assert_close(average.average.student_head.box_deltas.weight, weight - 0.5)
    assert {"student_head.box_deltas.weight", "roi_heads.box_deltas.weight"} <= set(
        model.state_dict()
    )
