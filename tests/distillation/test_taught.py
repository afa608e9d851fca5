"""Students taught by teachers of their family: config to gradients, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from mimicdet import build_distiller
from mimicdet.distillation import DistillationState, Term
from mimicdet.distillation.balance import GradientBalance
from mimicdet.distillation.methods.rank_mimicking import RankMimicking
from mimicdet.utils.errors import UserError
from tests.distillation.tiny_detectors import (
    INPUTS,
    build_tiny,
    distiller_of,
    losses_of,
    taught_cfg,
    write_teacher,
)
from tests.helpers import LOSS_KEYS, MIMIC_KEYS, count_calls, make_input

EVERY_METHOD = [
    "RankMimicking",
    "PredictionGuided",
    "SoftLabels",
    "FeatureImitation",
    "FineGrained",
    "PKD",
    "CWD",
]
# Of detectors with class scores and boxes everywhere.
EVERYWHERE = [*EVERY_METHOD, "BCKD", "CrossKD"]
EVERYWHERE_KEYS = {f"loss_{x}_{y}" for x in ("bckd", "crosskd") for y in ("cls", "loc")}
WHOLE_MAPS = {"loss_pfi", "loss_feature", "loss_pkd", "loss_cwd"}
TAUGHT_KEYS = WHOLE_MAPS | {
    *("loss_rank_cls", "loss_rank_loc", "loss_soft_labels", "loss_fine_grained"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A RetinaNet teacher on disk."""
    path = tmp_path_factory.mktemp("retinanet")
    write_teacher(path, "RetinaNet")
    return path


def reached(module):
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}


# ---------------------------------------------------------------- methods together


def test_all_methods_at_once(folder):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", EVERY_METHOD))
    teacher = distiller.teachers[0]
    calls = count_calls(teacher.model.backbone), count_calls(teacher.model.head)
    with EventStorage() as storage:
        losses = distiller(INPUTS)
        assert storage.latest()["num_pos_anchors"][0] > 0
    assert set(losses) == {"loss_cls", "loss_box_reg"} | TAUGHT_KEYS
    assert all(math.isfinite(x.item()) for x in losses.values())
    assert all(losses[key] > 0 for key in TAUGHT_KEYS)
    assert [len(distiller.teachers), *calls] == [1, [1], [1]]  # one forward, however many methods


def test_the_teacher_comes_out_of_training_as_it_went_in(folder):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", EVERY_METHOD))
    model = distiller.teachers[0].model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    saved = torch.load(folder / "teacher.pth")["model"]
    assert all(torch.equal(before[k], v) for k, v in saved.items())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    old = {k: v.clone() for k, v in distiller.state_dict().items()}
    for _ in range(2):
        distiller.train()
        optimizer.zero_grad()
        sum(losses_of(distiller).values()).backward()
        assert all(p.grad is not None for p in distiller.parameters())
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    # What did train: the student and the five adaptation layers, and nothing else is there.
    changed = {k for k, v in distiller.state_dict().items() if not torch.equal(v, old[k])}
    layers = {f"methods.4.adaptation.{i}.{w}" for i in range(5) for w in ("weight", "bias")}
    assert layers == {k for k in distiller.state_dict() if k.startswith("methods.")} <= changed
    assert {k.split(".")[0] for k in distiller.state_dict()} == {"student", "methods"}
    ids = {id(p) for p in distiller.parameters()}
    assert not ids & {id(p) for p in model.parameters()}


def test_a_method_pays_for_nothing_that_it_does_not_use(folder):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", ["FeatureImitation"]))
    calls = count_calls(distiller.teachers[0].model.head)
    student = distiller.student
    actual = []
    label_anchors = student.label_anchors
    student.label_anchors = lambda *x: actual.append(1) or label_anchors(*x)
    losses_of(distiller)
    assert calls == [0] and actual == [1]


# ---------------------------------------------------------------- gradients, term by term


def gradients(folder, method, key, **changes):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", [method], **changes))
    losses_of(distiller)[key].backward()
    return distiller, reached(distiller.student)


def test_pfi_trains_features_and_not_the_head(folder):
    _, actual = gradients(folder, "PredictionGuided", "loss_pfi")
    assert not {n for n in actual if n.startswith("head.")}
    assert any(n.startswith("backbone.fpn_output3") for n in actual)
    _, actual = gradients(
        folder,
        "PredictionGuided",
        "loss_pfi",
        DISTILLATION__PredictionGuided__DETACH_WEIGHT=False,
    )
    assert "head.cls_score.weight" in actual and "head.bbox_pred.weight" not in actual


@pytest.mark.parametrize(
    "key, layer, other",
    [("loss_rank_cls", "cls_score", "bbox_pred"), ("loss_rank_loc", "bbox_pred", "cls_score")],
)
def test_each_rank_trains_its_own_branch(folder, key, layer, other):
    _, actual = gradients(folder, "RankMimicking", key)
    assert f"head.{layer}.weight" in actual and f"head.{other}.weight" not in actual


def test_adaptation_layers_train_and_levels_can_be_chosen(folder):
    distiller, actual = gradients(
        folder, "FineGrained", "loss_fine_grained", DISTILLATION__FineGrained__LEVELS=[0, 1]
    )
    assert reached(distiller.methods) == {f"0.adaptation.{i}.{w}" for i in (0, 1) for w in WB}
    assert any("fpn_output4" in n for n in actual) and not any("top_block" in n for n in actual)


WB = ("weight", "bias")


@pytest.mark.parametrize("mask", ["positives", "negatives", "boxes"])
def test_masks_split_the_map(folder, mask):
    """Positives and negatives are a partition; an image without objects has no positive or box."""
    name = "DISTILLATION__FeatureImitation__MASK"
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", ["FeatureImitation"], **{name: mask}))
    with EventStorage():
        _, tensors = distiller.adapter.forward_training(INPUTS)
    masks = distiller.methods[0]._masks(tensors)
    assert [x.shape[1:] for x in masks] == [x.shape[2:] for x in tensors.features]
    assert all(x[1].all() if mask == "negatives" else not x[1].any() for x in masks)
    assert 0 < masks[0][0].sum() < masks[0][0].numel()
    assert losses_of(distiller)["loss_feature"] > 0


def test_images_without_objects_teach_by_whole_maps_alone(folder):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", EVERY_METHOD))
    losses = losses_of(distiller, [make_input(boxes=[]), make_input((61, 97), boxes=[], seed=1)])
    assert {k for k in TAUGHT_KEYS if losses[k] == 0} == TAUGHT_KEYS - WHOLE_MAPS
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters())


# ---------------------------------------------------------------- weights over time


def test_weight_over_time():
    method = RankMimicking(
        class_rank=True, box_rank=False, class_scores="logit", student="sigmoid", teacher="sigmoid"
    )
    term = Term(method, None, loss_weight=4.0, warmup_iters=4, stop_iter=6)
    assert [term.share(i) for i in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert [Term(method).share(i) for i in (0, 10**6)] == [1.0, 1.0]
    later = Term(method, None, loss_weight=4.0, start_iter=2, warmup_iters=2, stop_iter=5)
    assert [later.share(i) for i in range(6)] == [0.0, 0.0, 0.5, 1.0, 1.0, 0.0]


def test_warm_up_and_stop_follow_the_trainers_iteration(folder):
    keys = "DISTILLATION__FineGrained__"
    schedule = {f"{keys}WARMUP_ITERS": 4, f"{keys}STOP_ITER": 10, f"{keys}LOSS_WEIGHT": 2.0}
    cfg = taught_cfg(folder, "RetinaNet", ["FineGrained"], **schedule)
    values = {}
    for iteration in (1, 3, 9, 10):
        distiller = distiller_of(cfg)
        calls = count_calls(distiller.teachers[0].model.backbone)
        losses = losses_of(distiller, iteration=iteration)
        values[iteration] = losses["loss_fine_grained"].item()
    assert values[3] == pytest.approx(values[9]) == pytest.approx(2 * values[1]) and values[1] > 0
    # Stopped: no teacher, and still a gradient for DistributedDataParallel to wait for.
    assert values[10] == 0 and calls == [0]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters())


def test_a_weight_by_the_size_of_the_gradient(folder, monkeypatch):
    """On the maps the methods' gradients have the norm of the student's own, times the ratio."""
    ratios = {"PredictionGuided": 0.5, "RankMimicking": 2.0}
    keys = {f"DISTILLATION__{k}__GRADIENT_RATIO": x for k, x in ratios.items()}
    keys["DISTILLATION__RankMimicking__WARMUP_ITERS"] = 4
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", list(ratios), **keys))
    kept = []
    forward_training = distiller.adapter.forward_training

    def keep(inputs):
        kept.append(forward_training(inputs))
        return kept[-1]

    distiller.adapter.forward_training = keep
    grad, calls = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or grad(*a, **k))
    with EventStorage(1) as storage:
        losses = distiller(INPUTS)
    assert len(calls) == 1 + len(ratios)  # the student's own gradient once
    (_, tensors), parts = kept[0], {"loss_rank_cls", "loss_rank_loc"}

    def norm(names):
        loss = sum(losses[name] for name in names)
        grads = torch.autograd.grad(loss, tensors.features, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None]).norm().item()

    own = norm({"loss_cls", "loss_box_reg"})
    assert norm({"loss_pfi"}) == pytest.approx(0.5 * own, rel=1e-4)
    assert norm(parts) == pytest.approx(2.0 * 2 / 4 * own, rel=1e-4)  # half of the warm-up is over
    plain = losses_of(distiller_of(taught_cfg(folder, "RetinaNet", ["PredictionGuided"])))
    weight = storage.latest()["weight/PredictionGuided"][0]
    assert losses["loss_pfi"].item() == pytest.approx(weight / 1.5 * plain["loss_pfi"].item())
    # The measuring left no gradient in a parameter.
    assert all(p.grad is None for p in distiller.parameters())
    sum(losses.values()).backward()


def test_a_loss_without_gradient_weighs_nothing(folder):
    """Without objects nothing is ranked; a student that is frozen below its head has no maps."""
    key = {"DISTILLATION__RankMimicking__GRADIENT_RATIO": 1.0}
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", ["RankMimicking"], **key))
    losses = losses_of(distiller, [make_input(boxes=[])])
    assert losses["loss_rank_cls"] == losses["loss_rank_loc"] == 0
    distiller.student.backbone.requires_grad_(False)
    with pytest.raises(UserError, match="GRADIENT_RATIO: the student's maps have no gradient"):
        losses_of(distiller)


def test_the_norms_of_small_gradients_in_half_precision():
    """1e-8 is none in float16."""
    x = torch.ones(1, 2, 3, 3, dtype=torch.float16, requires_grad=True)
    total = x.float().sum()
    balance = GradientBalance(2e-8 * total, SimpleNamespace(features=[x]))
    assert balance.weight(1e-8 * total).item() == pytest.approx(2, rel=0.01)


# ---------------------------------------------------------------- other families


@pytest.mark.parametrize("family", ["FCOS", "ATSS", "GFL"])
def test_dense_detectors_are_taught_by_every_method(tmp_path, family):
    write_teacher(tmp_path, family)
    distiller = distiller_of(taught_cfg(tmp_path, family, EVERYWHERE))
    losses = losses_of(distiller)
    keys = TAUGHT_KEYS | EVERYWHERE_KEYS
    assert keys < set(losses) and all(losses[key] > 0 for key in keys)
    sum(losses.values()).backward()
    assert not [n for n, p in distiller.named_parameters() if p.grad is None]


def test_the_lightweight_detector_is_taught_by_imitation_and_distillation(tmp_path):
    """FGFI's -ID; a detector whose classes share a softmax."""
    write_teacher(tmp_path, "MultiClassRPN", FPN__OUT_CHANNELS=24)
    methods = ["FineGrained", "SoftLabels", "RankMimicking"]
    losses = losses_of(distiller_of(taught_cfg(tmp_path, "MultiClassRPN", methods)))
    assert losses["loss_fine_grained"] > 0 and losses["loss_soft_labels"] > 0
    cfg = taught_cfg(tmp_path, "MultiClassRPN", ["PredictionGuided"])
    with pytest.raises(ValueError, match="needs prediction_maps, which the student MultiClassRPN"):
        distiller_of(cfg)


def test_gfl_does_not_teach_atss(tmp_path):
    """One says class and quality at once, the other the class alone."""
    write_teacher(tmp_path, "GFL")
    with pytest.raises(ValueError, match="class_scores 'sigmoid' of the student, 'joint' of the"):
        distiller_of(taught_cfg(tmp_path, "ATSS", ["RankMimicking"]))
    distiller = distiller_of(taught_cfg(tmp_path, "ATSS", ["FeatureImitation"]))
    assert losses_of(distiller)["loss_feature"] > 0


@pytest.mark.parametrize("methods", [["FineGrained"], ["FeatureImitation", "FineGrained"]])
def test_faster_rcnn_is_taught_by_a_wider_one(tmp_path, methods):
    write_teacher(tmp_path, "GeneralizedRCNN", FPN__OUT_CHANNELS=24)
    adapted = {"DISTILLATION__FeatureImitation__ADAPTATION": True}
    cfg = taught_cfg(tmp_path, "GeneralizedRCNN", methods, **adapted)
    distiller = distiller_of(cfg)
    losses = losses_of(distiller)
    assert {"loss_rpn_cls", "loss_box_reg", "loss_fine_grained"} <= set(losses)
    losses["loss_fine_grained"].backward()
    conv = distiller.methods[-1].adaptation["4"]
    assert conv.weight.shape == (24, 16, 3, 3) and conv.weight.grad is not None


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "GFL", "MimicDet"])
def test_mixed_precision(tmp_path, family, bfloat16_cpu):
    """bfloat16 in student and teacher; the losses stay in float32 and near those in full."""
    write_teacher(tmp_path, family)
    half = {"SOLVER__AMP__ENABLED": True, "DISTILLATION__TEACHER__AMP": True}
    methods = EVERY_METHOD if family == "MimicDet" else EVERYWHERE
    distiller = distiller_of(taught_cfg(tmp_path, family, methods, **half))
    losses = losses_of(distiller)
    full = losses_of(distiller_of(taught_cfg(tmp_path, family, methods)))
    for key in TAUGHT_KEYS | (set() if family == "MimicDet" else EVERYWHERE_KEYS):
        assert losses[key].dtype == torch.float32
        assert losses[key].item() == pytest.approx(full[key].item(), rel=0.5, abs=0.05), key
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def test_a_mimicdet_is_taught_by_a_mimicdet(tmp_path):
    """RM and PFI from outside beside its own mimic loss: two teachers, one mechanism."""
    write_teacher(tmp_path, "MimicDet")
    distiller = distiller_of(
        taught_cfg(tmp_path, "MimicDet", ["RankMimicking", "PredictionGuided"])
    )
    losses = losses_of(distiller)
    assert set(losses) == LOSS_KEYS | MIMIC_KEYS | {"loss_rank_cls", "loss_rank_loc", "loss_pfi"}
    (losses["loss_rank_cls"] + losses["loss_rank_loc"]).backward()
    actual = reached(distiller.student)
    assert {"student_head.class_logits.weight", "student_head.box_deltas.weight"} <= actual
    assert not {n for n in actual if n.startswith("roi_heads.")}


def test_a_mimicdet_taught_by_itself_has_nothing_to_learn(tmp_path):
    write_teacher(tmp_path, "MimicDet", seed=0)
    cfg = taught_cfg(
        tmp_path, "MimicDet", EVERY_METHOD, DISTILLATION__FineGrained__ADAPTATION=False
    )
    losses = losses_of(distiller_of(cfg, seed=0))
    for key in TAUGHT_KEYS:  # frozen batch norms: student and teacher are the same function
        assert losses[key].item() == pytest.approx(0, abs=1e-6), key


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    "methods, student, teacher, words",
    [
        (["RankMimicking"], {"RETINANET__NUM_CLASSES": 2}, {}, "num_classes 2 .*, 3 of the"),
        (
            ["RankMimicking"],
            {"ANCHOR_GENERATOR__ASPECT_RATIOS": [[1.0]]},
            {},
            r"RankMimicking: anchors_per_location \(1, 1, 1, 1, 1\) of the student, \(2",
        ),
        (
            ["PredictionGuided", "RankMimicking"],
            {"ANCHOR_GENERATOR__SIZES": [[24], [64], [128], [256], [512]]},
            {},
            "PredictionGuided: cell_anchors(.|\n)*RankMimicking: cell_anchors",
        ),
        (["FeatureImitation"], {}, {"FPN__OUT_CHANNELS": 24}, r"channels \(16.*ADAPTATION True"),
        (["PredictionGuided"], {}, {"FPN__OUT_CHANNELS": 24}, "PredictionGuided: channels"),
        (
            ["FineGrained"],
            {"RETINANET__IN_FEATURES": ["p3", "p4", "p5"], "ANCHOR_GENERATOR__SIZES": [[32]] * 3},
            {},
            r"FineGrained: strides \(8, 16, 32\) of the student, \(8, 16, 32, 64, 128\)",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_error(tmp_path, methods, student, teacher, words):
    write_teacher(tmp_path, "RetinaNet", **teacher)
    cfg = taught_cfg(tmp_path, "RetinaNet", methods, **student)
    with pytest.raises(ValueError, match=f"student RetinaNet .* RetinaNet of .*(.|\n)*{words}"):
        build_distiller(cfg, build_tiny("RetinaNet", **student))


def test_what_a_detector_lacks_is_named(tmp_path):
    write_teacher(tmp_path, "GeneralizedRCNN")
    cfg = taught_cfg(tmp_path, "RetinaNet", ["RankMimicking", "FeatureImitation"])
    with pytest.raises(ValueError) as error:
        build_distiller(cfg, build_tiny("RetinaNet"))
    text = str(error.value)
    assert "needs class_logits_at, pred_boxes_at, which the teacher GeneralizedRCNN does" in text
    assert "FeatureImitation: strides (8, 16, 32, 64, 128) of the student, (4, 8," in text
    write_teacher(tmp_path, "RetinaNet")
    cfg = taught_cfg(tmp_path, "GeneralizedRCNN", ["SoftLabels"])
    with pytest.raises(ValueError, match="positives, which the student GeneralizedRCNN does not"):
        build_distiller(cfg, build_tiny("GeneralizedRCNN"))


def test_scores_that_are_read_otherwise_do_not_compare(tmp_path):
    write_teacher(tmp_path, "MimicDet")
    cfg = taught_cfg(tmp_path, "RetinaNet", ["PredictionGuided", "RankMimicking"])
    with pytest.raises(ValueError) as error:
        build_distiller(cfg, build_tiny("RetinaNet"))
    assert "map_scores 'sigmoid' of the student, 'objectness' of the teacher" in str(error.value)
    assert "class_scores 'sigmoid' of the student, 'softmax' of the teacher" in str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"METHODS": ["HeadMimic"]}, "'HeadMimic', which is none of .*FeatureImitation, Fine"),
        ({"METHODS": ["SoftLabels", "SoftLabels"]}, "names a method twice"),
        ({"METHODS": []}, "TEACHER is set, but METHODS is empty and INHERIT is False"),
        ({"METHODS": ["INHERIT"]}, "'INHERIT', which is none of"),
        ({"TEACHER__WEIGHTS": ""}, "METHODS needs TEACHER.CONFIG_FILE and TEACHER.WEIGHTS"),
        (
            {"METHODS": [], "INHERIT": True, "TEACHER__WEIGHTS": ""},
            "INHERIT needs TEACHER.CONFIG_FILE and TEACHER.WEIGHTS",
        ),
        ({"SoftLabels__STOP_ITER": -1}, "SoftLabels.STOP_ITER is -1, below 0"),
        ({"SoftLabels__GRADIENT_RATIO": -1.0}, "SoftLabels.GRADIENT_RATIO is -1.0, below 0"),
        ({"SoftLabels__STOP_ITER": 3, "SoftLabels__START_ITER": 3}, "STOP_ITER 3 must be above"),
        ({"SoftLabels__TEMPERATURE": 0.0}, "SoftLabels.TEMPERATURE must be above 0"),
        ({"SoftLabels__SAMPLES": "some"}, "SoftLabels.SAMPLES must be one of positives, all"),
    ],
)
def test_settings_that_make_no_sense(folder, changes, words):
    changes = {f"DISTILLATION__{key}": value for key, value in changes.items()}
    methods = changes.pop("DISTILLATION__METHODS", ["SoftLabels"])
    cfg = taught_cfg(folder, "RetinaNet", methods, **changes)
    with pytest.raises(ValueError, match=words):
        build_distiller(cfg, build_tiny("RetinaNet"))


@pytest.mark.parametrize(
    "method, key, value, words",
    [
        ("RankMimicking", "CLASS_SCORES", "rank", "CLASS_SCORES must be one of"),
        ("FeatureImitation", "MASK", "some", "FeatureImitation.MASK must be one of"),
        ("FeatureImitation", "LEVELS", [5], "LEVELS \\[5\\] must be different numbers from 0 to 4"),
        ("CWD", "TEMPERATURE", 0.0, "CWD.TEMPERATURE must be above 0"),
        ("FineGrained", "REGION", "some", "FineGrained.REGION must be one of"),
        ("FineGrained", "PSI", 1.5, "FineGrained.PSI must be 0 to 1"),
        ("FineGrained", "ADAPTATION_KERNEL", 2, "ADAPTATION_KERNEL must be odd"),
    ],
)
def test_settings_of_a_method_are_checked(folder, method, key, value, words):
    changes = {f"DISTILLATION__{method}__{key}": value}
    with pytest.raises(ValueError, match=words):
        distiller_of(taught_cfg(folder, "RetinaNet", [method], **changes))


def test_both_ranks_off_is_an_error(folder):
    name = "DISTILLATION__RankMimicking__"
    off = {f"{name}CLASS_RANK": False, f"{name}BOX_RANK": False}
    with pytest.raises(ValueError, match="CLASS_RANK and BOX_RANK are both False"):
        distiller_of(taught_cfg(folder, "RetinaNet", ["RankMimicking"], **off))


@pytest.mark.parametrize("name, key", [("teacher.yaml", "CONFIG_FILE"), ("teacher.pth", "WEIGHTS")])
def test_files_that_are_missing(tmp_path, name, key):
    write_teacher(tmp_path, "RetinaNet")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"DISTILLATION.TEACHER.{key}.*{name}"):
        distiller_of(taught_cfg(tmp_path, "RetinaNet", ["SoftLabels"]))


# ---------------------------------------------------------------- checkpoints, announced losses


def test_the_state_that_a_resumed_run_needs(folder, tmp_path):
    cfg = taught_cfg(folder, "RetinaNet", ["FineGrained"])
    first, second = distiller_of(cfg), distiller_of(cfg)
    second.methods[0].adaptation["0"].weight.data.add_(1)
    state = DistillationState(first).state_dict()
    torch.save(state, tmp_path / "state.pth")
    DistillationState(second).load_state_dict(torch.load(tmp_path / "state.pth"))
    for a, b in zip(first.methods.parameters(), second.methods.parameters()):
        assert torch.equal(a, b)
    write_teacher(tmp_path, "RetinaNet", seed=6)
    (tmp_path / "teacher.pth").replace(folder / "other.pth")
    cfg.DISTILLATION.TEACHER.WEIGHTS = str(folder / "other.pth")
    with pytest.raises(ValueError, match="weights of the teacher .*teacher.yaml are not those"):
        DistillationState(distiller_of(cfg)).load_state_dict(state)


def test_losses_that_were_not_announced_are_an_error(folder):
    distiller = distiller_of(taught_cfg(folder, "RetinaNet", ["SoftLabels"]))
    distiller.methods[0].loss_names = ("loss_soft",)
    with pytest.raises(
        ValueError, match=r"SoftLabels returned .*loss_soft_labels.*\['loss_soft'\]"
    ):
        losses_of(distiller)


def test_distillation_does_not_change_the_students_own_losses(folder):
    taught = losses_of(distiller_of(taught_cfg(folder, "RetinaNet", EVERY_METHOD)))
    alone = losses_of(build_tiny("RetinaNet", 0))
    for key, value in alone.items():
        torch.testing.assert_close(taught[key], value)
