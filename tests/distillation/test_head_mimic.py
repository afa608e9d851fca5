"""The mimic loss in the distillation interface: gradients, logs, separate teachers (Table 5)."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from detectron2.utils.events import EventStorage

from mimicdet import DISTILLATION_REGISTRY, DistillationMethod, Distiller, build_distiller
from mimicdet.distillation import FrozenTeacher, Term, build_adapter, build_separate_teacher
from mimicdet.distillation.methods.head_mimic import HeadMimic
from mimicdet.distillation.pairing import check_pair
from mimicdet.modeling.structures import HeadPredictions
from mimicdet.utils.errors import UserError
from tests.helpers import (
    LOSS_KEYS,
    MIMIC_KEYS,
    P3_BOX,
    P4_BOX,
    REPOSITORY,
    gradients_of,
    make_input,
    small_cfg,
    small_model,
)

M = "MODEL.MIMICDET."
TEACHER_OFF = (f"{M}TEACHER.ENABLED", False)
INPUTS = [make_input(boxes=[P3_BOX, P4_BOX]), make_input((61, 97), seed=1)]


def distiller_of(*opts, seed=0):
    return build_distiller(small_cfg(*opts), small_model(*opts, seed=seed)).train()


def head_predictions(seed, boxes=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(boxes, 4), (boxes, 4), (boxes, 9), (boxes, 9)]
    return HeadPredictions(*(torch.randn(s, generator=generator).requires_grad_() for s in shapes))


def losses_of(method, student, teacher):
    """The method on records of head predictions, as an adapter would offer them."""
    query = object()

    def answer(asked):
        assert asked is query
        return teacher

    return method(
        SimpleNamespace(head_predictions=student, box_query=query),
        SimpleNamespace(box_head_predictions_at=answer),
    )


def distiller_with(model, *terms):
    return Distiller(model, terms, build_adapter(model, "BGR")).train()


def plain_cosine_loss(student, teacher):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        dot = sum(a * b for a, b in zip(s, t))
        total += 1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
    return total / len(student)


# ---------------------------------------------------------------- HeadMimic


def test_the_two_terms_are_logits_and_regression_features():
    """Eq. 1: F_c are the (K + 1)-d logits, F_r the features that the deltas come from."""
    student, teacher = head_predictions(1), head_predictions(2)
    losses = losses_of(HeadMimic(dual_path=True), student, teacher)
    assert set(losses) == MIMIC_KEYS
    cls = plain_cosine_loss(student.pred_class_logits, teacher.pred_class_logits)
    loc = plain_cosine_loss(student.box_features, teacher.box_features)
    assert losses["loss_mimic_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["loss_mimic_loc"].item() == pytest.approx(loc, rel=1e-5)


def test_heads_that_are_not_split_have_one_term():
    student, teacher = head_predictions(1), head_predictions(2)
    losses = losses_of(HeadMimic(dual_path=False), student, teacher)
    assert list(losses) == ["loss_mimic_shared"]
    expected = plain_cosine_loss(student.box_features, teacher.box_features)
    assert losses["loss_mimic_shared"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_teacher(detach):
    student, teacher = head_predictions(1), head_predictions(2)
    losses = losses_of(HeadMimic(dual_path=True, detach_teacher=detach), student, teacher)
    sum(losses.values()).backward()
    for value in (teacher.pred_class_logits, teacher.box_features):
        assert (value.grad is None) == detach
    assert student.pred_class_logits.grad.any() and student.box_features.grad.any()
    assert student.class_features.grad is None  # not mimicked: the logits are


def test_metrics_are_computed_for_a_storage_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(HeadMimic, "metrics", lambda self, losses: calls.append(1) or {"x": 1.0})
    distiller = distiller_of()
    distiller(INPUTS)
    assert not calls
    with EventStorage() as storage:
        distiller(INPUTS)
        assert storage.latest()["x"][0] == 1.0 and len(calls) == 1


def test_metrics_are_the_cosines():
    student, teacher = head_predictions(1), head_predictions(2)
    method = HeadMimic(dual_path=True)
    metrics = method.metrics(losses_of(method, student, teacher))
    cosine = 1 - plain_cosine_loss(student.box_features, teacher.box_features)
    assert metrics["mimic/cosine_loc"] == pytest.approx(cosine, rel=1e-4)
    assert set(metrics) == {"mimic/cosine_cls", "mimic/cosine_loc"}


def test_no_boxes_are_a_zero_in_the_graph():
    student, teacher = head_predictions(1, boxes=0), head_predictions(2, boxes=0)
    losses = losses_of(HeadMimic(dual_path=True), student, teacher)
    sum(losses.values()).backward()
    assert [x.item() for x in losses.values()] == [0, 0]
    assert student.box_features.grad is not None


# ---------------------------------------------------------------- in the model


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_of_the_mimic_loss_in_the_model(detach):
    """Detached: the S-head and what it reads learn, the T-head does not."""
    distiller = distiller_of(f"{M}MIMIC.DETACH_TEACHER", detach)
    torch.manual_seed(0)
    losses = distiller(INPUTS)
    sum(losses[key] for key in MIMIC_KEYS).backward()
    model = distiller.student
    reached = {n for n, g in gradients_of(model.roi_heads).items() if g is not None and g.any()}
    # The deltas are not mimicked, only what they are computed from.
    unreachable = {"box_deltas.weight", "box_deltas.bias"}
    everything = {n for n, _ in model.roi_heads.named_parameters()} - unreachable
    assert reached == (set() if detach else everything)
    student = gradients_of(model.student_head)
    assert all(g is not None and g.any() for n, g in student.items() if n not in unreachable)
    assert model.backbone.fpn_output3.weight.grad.any()
    p2 = model.backbone.fpn_output2.weight.grad
    assert (p2 is not None and bool(p2.any())) == (not detach)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_into_the_guidance(detach):
    """Without the detour over the refinement module's hidden layer: its delta layer alone."""
    distiller = distiller_of(f"{M}STUDENT.DETACH_GUIDANCE", detach)
    losses = distiller(INPUTS)
    (losses["loss_student_cls"] + losses["loss_mimic_cls"]).backward()
    grad = distiller.student.proposal_generator.anchor_deltas.weight.grad
    assert (grad is None) == detach
    assert detach or grad.any()


def test_the_mimic_loss_changes_no_other_loss():
    distiller = distiller_of()
    torch.manual_seed(0)  # the same boxes are sampled
    with_mimic = distiller(INPUTS)
    torch.manual_seed(0)
    plain = Distiller(distiller.student).train()(INPUTS)
    assert set(plain) == LOSS_KEYS and set(with_mimic) == LOSS_KEYS | MIMIC_KEYS
    for key, value in plain.items():
        torch.testing.assert_close(with_mimic[key], value)


def test_loss_weight_and_heads_without_two_paths():
    opts = (f"{M}TEACHER.HEAD", "heavy", f"{M}STUDENT.DUAL_PATH", False)
    losses = distiller_of(*opts)(INPUTS)
    assert set(losses) == LOSS_KEYS | {"loss_mimic_shared"}


def test_the_loss_weight():
    plain, heavy = distiller_of(), distiller_of(f"{M}MIMIC.LOSS_WEIGHT", 3.0)
    assert plain.terms[0].method.detach_teacher is True
    torch.manual_seed(0)
    once = plain(INPUTS)
    torch.manual_seed(0)
    thrice = heavy(INPUTS)
    for key in MIMIC_KEYS:
        torch.testing.assert_close(thrice[key], 3 * once[key])


class Doubling(DistillationMethod):
    """A method with a parameter of its own, as an adaptation layer would be."""

    def __init__(self, key):
        super().__init__()
        self.loss_names = (key,)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, student, teacher):
        teacher_deltas = teacher.box_head_predictions_at(student.box_query).pred_box_deltas.detach()
        difference = student.head_predictions.pred_box_deltas - teacher_deltas
        return {self.loss_names[0]: self.scale * difference.abs().mean()}


def test_any_method_fits_the_seam():
    terms = Term(Doubling("loss_other")), Term(HeadMimic(dual_path=True))
    distiller = distiller_with(small_model(), *terms)
    losses = distiller(INPUTS)
    assert set(losses) == LOSS_KEYS | MIMIC_KEYS | {"loss_other"}
    losses["loss_other"].backward()
    assert distiller.methods[0].scale.grad != 0
    assert "methods.0.scale" in dict(distiller.named_parameters())
    with EventStorage() as storage:
        distiller(INPUTS)
        assert "mimic/cosine_loc" in storage.latest()


def test_a_loss_that_is_there_already_is_an_error():
    distiller = distiller_with(small_model(), Term(Doubling("loss_student_cls")))
    with pytest.raises(ValueError, match="Doubling.*loss_student_cls"):
        distiller(INPUTS)
    with pytest.raises(ValueError, match="same loss.*loss_other"):
        distiller_with(small_model(), *[Term(Doubling("loss_other"))] * 2)


def test_a_method_without_forward_says_so():
    with pytest.raises(TypeError, match="DistillationMethod must define forward"):
        DistillationMethod()(None, None)
    assert DISTILLATION_REGISTRY.get("HeadMimic") is HeadMimic


def test_evaluation_is_the_students():
    distiller = distiller_of().eval()
    with torch.no_grad():
        actual, expected = distiller(INPUTS), distiller.student(INPUTS)
    for a, b in zip(actual, expected):
        assert torch.equal(a["instances"].scores, b["instances"].scores)


# ---------------------------------------------------------------- separate teachers


TEACHER_OPTS = [f"{M}STUDENT.ENABLED", False, f"{M}MIMIC.ENABLED", False]
TEACHER_OPTS += [f"{M}EVAL_HEAD", "teacher"]


@pytest.fixture()
def teacher_files(tmp_path):
    """A two-stage teacher's config and checkpoint on disk, as training it would leave them."""
    cfg = small_cfg(*TEACHER_OPTS)
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    model = small_model(*TEACHER_OPTS, seed=5)
    torch.save({"model": model.state_dict()}, tmp_path / "teacher.pth")
    return tmp_path, model


def separate_opts(folder):
    return [
        *TEACHER_OFF,
        f"{M}SEPARATE_TEACHER.CONFIG_FILE",
        str(folder / "teacher.yaml"),
        f"{M}SEPARATE_TEACHER.WEIGHTS",
        str(folder / "teacher.pth"),
    ]


def test_separate_teacher_stays_as_it_was(teacher_files):
    folder, reference = teacher_files
    distiller = distiller_of(*separate_opts(folder))
    teacher = distiller.teachers[0].model
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert before.keys() == reference.state_dict().keys()
    for key, value in reference.state_dict().items():
        assert torch.equal(before[key], value), key
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.1)
    student = [p.detach().clone() for p in distiller.student.parameters()]
    for step in range(2):
        distiller.train()
        losses = distiller([make_input(seed=step)])
        assert set(losses) == {k for k in LOSS_KEYS if "teacher" not in k} | MIMIC_KEYS
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)
        optimizer.step()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    changed = [not torch.equal(a, b) for a, b in zip(student, distiller.student.parameters())]
    assert sum(changed) > 40


def test_separate_teacher_is_no_part_of_the_student(teacher_files):
    folder, _ = teacher_files
    distiller = distiller_of(*separate_opts(folder))
    ids = {id(p) for p in distiller.teachers[0].model.parameters()}
    assert ids and not ids & {id(p) for p in distiller.parameters()}
    assert not [k for k in distiller.state_dict() if "roi_heads" in k or k.startswith("teacher")]
    assert not any(m is distiller.teachers[0].model for m in distiller.modules())


def test_separate_teacher_answers_about_the_students_boxes(teacher_files):
    folder, reference = teacher_files
    distiller = distiller_of(*separate_opts(folder))
    torch.manual_seed(0)
    _, tensors = distiller.student.forward_training(INPUTS)
    assert tensors.teacher is None
    answer = distiller.teachers[0](INPUTS).box_head_predictions_at(tensors.query)
    assert not answer.box_features.requires_grad and not answer.box_features.is_inference()
    # By hand: the reference's features of every level, P2 among them, at the queried boxes. In the
    # teacher's layout: its features reach 1400, where rounding shows.
    reference.to(memory_format=torch.channels_last)
    with torch.no_grad():
        images = reference.eval().preprocess_image(INPUTS)
        features = reference.backbone.train()(images.tensor)
        expected = reference.roi_heads.predict(features, tensors.query.boxes, tensors.query.levels)
    for a, b in zip(vars(answer).values(), vars(expected).values()):
        torch.testing.assert_close(a, b)
    assert len(answer.box_features) == len(tensors.student.box_features) == 32


def test_a_teacher_of_a_mimicdet_can_teach_too():
    """Any model with a T-head is a teacher; what it was trained as does not matter."""
    adapter = build_adapter(small_model(f"{M}EVAL_HEAD", "teacher", seed=3), "BGR")
    student = small_model(*TEACHER_OFF, f"{M}MIMIC.ENABLED", False)
    method = HeadMimic(dual_path=True)
    losses = distiller_with(student, Term(method, FrozenTeacher(adapter)))(INPUTS)
    assert losses.keys() >= MIMIC_KEYS
    student_adapter = build_adapter(student, "BGR")
    check_pair([method], student_adapter, adapter)
    with pytest.raises(ValueError, match="HeadMimic needs box_head_predictions_at.*teacher"):
        check_pair([method], student_adapter, student_adapter)


@pytest.mark.parametrize("missing", ["teacher.yaml", "teacher.pth"])
def test_missing_teacher_files_are_named(teacher_files, missing):
    folder, _ = teacher_files
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"SEPARATE_TEACHER.*{missing}"):
        build_separate_teacher(small_cfg(*separate_opts(folder)))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 7, "MODEL.ROI_HEADS.NUM_CLASSES: 3 here, 7 there"),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "FEATURE_DIM.*24 here, 32 there"),
        (f"{M}TEACHER.HEAD", "heavy", "dual_path.*True here, False there"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5", "p6"], "levels.*5 here, 4 there"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "META_ARCHITECTURE.*'RetinaNet' there"),
        (f"{M}TEACHER.ENABLED", False, "TEACHER.ENABLED: True here, False there"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(teacher_files, key, value, words):
    folder, _ = teacher_files
    content = yaml.safe_load((folder / "teacher.yaml").read_text())
    node = content
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    (folder / "teacher.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=words):
        build_separate_teacher(small_cfg(*separate_opts(folder)))


EXTENDED = ("MODEL.META_ARCHITECTURE", "ExtendedMimicDet")


def test_a_class_that_extends_mimicdet_mimics():
    distiller = distiller_of(*EXTENDED)
    assert type(distiller.student).__name__ == "ExtendedMimicDet"
    assert set(distiller(INPUTS)) == LOSS_KEYS | MIMIC_KEYS


def test_a_class_that_extends_mimicdet_learns_from_a_mimicdet(teacher_files):
    folder, _ = teacher_files
    teacher = build_separate_teacher(small_cfg(*separate_opts(folder), *EXTENDED))
    assert type(teacher.model).__name__ == "MimicDet"


def test_the_zoos_pair_of_configs_fits():
    """Table 5's two commands: the teacher's yaml and the student's, but for the weights."""
    from mimicdet.config import load_config
    from mimicdet.distillation.teacher import check_fit

    folder = REPOSITORY / "configs" / "Ablations"
    students = [p for p in folder.glob("table5_*") if "SEPARATE_TEACHER" in p.read_text()]
    assert students
    for path in students:
        cfg = load_config(str(path))
        teacher = cfg.MODEL.MIMICDET.SEPARATE_TEACHER.CONFIG_FILE
        check_fit(cfg, load_config(str(REPOSITORY / teacher)), teacher)
