"""What MODEL.MIMICDET.MIMIC adds to the paper's mimic loss, in the model."""

import pytest
import torch
import yaml

from mimicdet import build_distiller
from mimicdet.distillation import build_separate_teacher
from mimicdet.modeling.losses import mimic_loss
from mimicdet.utils.errors import UserError
from tests.helpers import (
    LOSS_KEYS,
    MIMIC_KEYS,
    P3_BOX,
    P4_BOX,
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


def test_boxes_without_an_object_teach_no_box():
    distiller = distiller_of(f"{TERMS}SCORES", 1.0, f"{TERMS}BOXES", 1.0)
    losses = step(distiller, EMPTY)
    assert set(losses) == set(step(distiller)) and losses["loss_mimic_boxes"] == 0
    assert losses["loss_mimic_scores"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


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
