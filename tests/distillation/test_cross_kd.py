"""CrossKD against slow loops, which layers it trains, and what it refuses."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from mimicdet import build_distiller
from mimicdet.distillation.methods.cross_kd import CrossKD
from tests.distillation.by_hand import giou, sigmoid
from tests.distillation.tiny_detectors import (
    INPUTS,
    build_tiny,
    distiller_of,
    losses_of,
    taught_cfg,
    write_teacher,
)
from tests.helpers import NUM_CLASSES, make_input

KEYS = "DISTILLATION__CrossKD__"
TOWERS = {
    "RetinaNet": ("cls_subnet", "bbox_subnet", "cls_score", "bbox_pred"),
    "FCOS": ("cls_subnet", "bbox_subnet", "cls_score", "bbox_pred"),
    "ATSS": ("class_tower", "box_tower", "class_logits", "box_values"),
    "GFL": ("class_tower", "box_tower", "class_logits", "box_values"),
}


def crossed_by_hand(family, student, teacher, inputs):
    """
    Rows (scores, box values) of all anchors of all images, of the cross head and of the teacher:
    one convolution a tower, LAST_CONVS 0, layer by layer.
    """
    names, rows = TOWERS[family], ([], [])
    features = [
        [m.backbone(m.preprocess_image(inputs).tensor)[f] for f in m.head_in_features]
        for m in (student, teacher)
    ]
    dims = 68 if family == "GFL" else 4
    for n in range(len(inputs)):
        for level in range(5):
            for row, model in zip(rows, (student, teacher)):
                x = features[model is teacher][level][n : n + 1]
                maps = []
                for tower, output in zip(names[:2], names[2:]):
                    inside = torch.relu(getattr(model.head, tower)[0](x))
                    maps.append(getattr(teacher.head, output)(inside)[0])
                if hasattr(teacher.head, "box_scales"):
                    maps[1] = maps[1] * teacher.head.box_scales[level]
                _, height, width = maps[0].shape
                for y, z in ((y, z) for y in range(height) for z in range(width)):
                    for a in range(len(maps[1]) // dims):
                        scores = maps[0][a * NUM_CLASSES : (a + 1) * NUM_CLASSES, y, z]
                        row.append((scores.tolist(), maps[1][a * dims : (a + 1) * dims, y, z]))
    return rows


def boxes_of(model, rows, inputs):
    sizes = model.backbone(model.preprocess_image(inputs).tensor)
    anchors = model.anchor_generator([sizes[f] for f in model.head_in_features])
    anchors = torch.cat([x.tensor for x in anchors]).repeat(len(inputs), 1)
    return model.box2box_transform.apply_deltas(torch.stack([x for _, x in rows]), anchors).tolist()


def kl_of_edges(student, teacher):
    """Mean over four edges of (68,) values."""
    total = 0.0
    for edge in range(4):
        p, q = (x[edge * 17 : edge * 17 + 17].double().softmax(0) for x in (student, teacher))
        total += sum(b * math.log(b / a) for a, b in zip(p.tolist(), q.tolist()))
    return total / 4


@torch.no_grad()
def by_hand(family, student, teacher, inputs, positives):
    """Both losses as loops over anchors and classes."""
    crossed, own = crossed_by_hand(family, student, teacher, inputs)
    pairs = [boxes_of(teacher, rows, inputs) for rows in (crossed, own)]
    classes = boxes = weights = 0.0
    for i, ((s_logits, s_box), (t_logits, t_box)) in enumerate(zip(crossed, own)):
        for s, t in zip(map(sigmoid, s_logits), map(sigmoid, t_logits)):
            classes -= abs(t - s) * (t * math.log(s) + (1 - t) * math.log(1 - s))
        weight = max(map(sigmoid, t_logits))
        weights += weight
        if family == "GFL":
            boxes += weight * kl_of_edges(s_box, t_box)
        else:
            boxes += weight * (1 - giou(pairs[0][i], pairs[1][i]))
    return classes / positives, boxes / (weights if family == "GFL" else positives)


@pytest.mark.parametrize("family", ["RetinaNet", "ATSS", "GFL"])
def test_losses_are_the_papers_sums(tmp_path, family):
    write_teacher(tmp_path, family)
    changes = {f"{KEYS}LAST_CONVS": 0, f"{KEYS}BOX_WEIGHT": 0.5}
    distiller = distiller_of(taught_cfg(tmp_path, family, ["CrossKD"], **changes))
    student = distiller.student
    for norm in (m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()  # the loop runs it a second time
    inputs = INPUTS[:1]
    with EventStorage():
        _, tensors = distiller.adapter.forward_training(inputs)
    losses = losses_of(distiller, inputs)
    positives = len(tensors.positives.anchors)
    teacher = distiller.teachers[0].model
    classes, boxes = by_hand(family, student, teacher, inputs, positives)
    assert positives > 0 and losses["loss_crosskd_cls"].item() == pytest.approx(classes, rel=1e-3)
    assert losses["loss_crosskd_loc"].item() == pytest.approx(0.5 * boxes, rel=1e-3)


@pytest.mark.parametrize("last, convs", [(0, 2), (1, 2), (2, 2), (1, 1)])
def test_it_trains_what_is_before_the_cut(tmp_path, last, convs):
    """Of two convolutions a tower in the student; the teacher may have fewer."""
    write_teacher(tmp_path, "RetinaNet", RETINANET__NUM_CONVS=convs)
    cfg = taught_cfg(tmp_path, "RetinaNet", ["CrossKD"], RETINANET__NUM_CONVS=2)
    cfg.DISTILLATION.CrossKD.LAST_CONVS = last
    student = build_tiny("RetinaNet", 0, RETINANET__NUM_CONVS=2)
    losses = losses_of(build_distiller(cfg, student).train())
    (losses["loss_crosskd_cls"] + losses["loss_crosskd_loc"]).backward()
    head = {n.rpartition(".")[0] for n, p in student.head.named_parameters() if p.grad is not None}
    kept = [0, 2][: 2 - last]
    assert head == {f"{x}.{i}" for x in ("cls_subnet", "bbox_subnet") for i in kept}
    assert student.backbone.fpn_output3.weight.grad.any()


def test_each_loss_trains_its_own_tower(tmp_path):
    write_teacher(tmp_path, "ATSS")
    for key, tower in (("loss_crosskd_cls", "class_tower"), ("loss_crosskd_loc", "box_tower")):
        cfg = taught_cfg(tmp_path, "ATSS", ["CrossKD"], **{f"{KEYS}LAST_CONVS": 0})
        distiller = distiller_of(cfg)
        losses_of(distiller)[key].backward()
        head = distiller.student.head.named_parameters()
        assert {n.split(".")[0] for n, p in head if p.grad is not None} == {tower}


@pytest.mark.parametrize("family", TOWERS)
def test_with_and_without_objects_and_taught_by_itself(tmp_path, family):
    write_teacher(tmp_path, family)
    distiller = distiller_of(taught_cfg(tmp_path, family, ["CrossKD"]))
    for inputs in (INPUTS, [make_input(boxes=[])]):
        losses = losses_of(distiller, inputs)
        assert all(0 < losses[name] < 1e5 for name in CrossKD.loss_names)
    assert distiller.terms[0].loss_weight == distiller.methods[0].box_weight == 1.0
    assert distiller.methods[0].has_edges == (family == "GFL")
    with torch.no_grad():
        tensors = distiller.teachers[0](INPUTS)
        model = distiller.teachers[0].adapter
        with EventStorage():  # in evaluation mode the teacher is its own student
            _, student = model.forward_training(INPUTS)
        losses = distiller.methods[0](student, tensors)
    assert losses["loss_crosskd_cls"].abs() < 1e-4
    if family != "FCOS":  # many of its untrained boxes have no area, and so no IoU with themselves
        assert losses["loss_crosskd_loc"].abs() < 1e-4


def test_a_gfl_may_teach_by_giou(tmp_path):
    write_teacher(tmp_path, "GFL")
    values = []
    for box_loss in ("kl", "auto", "giou"):
        cfg = taught_cfg(tmp_path, "GFL", ["CrossKD"], **{f"{KEYS}BOX_LOSS": box_loss})
        values.append(losses_of(distiller_of(cfg))["loss_crosskd_loc"].item())
    assert values[0] == values[1] != values[2] > 0


@pytest.mark.parametrize(
    "family, changes, teacher, words",
    [
        ("RetinaNet", {f"{KEYS}BOX_LOSS": "kl"}, {}, "edge_logits, which the teacher RetinaNet"),
        ("RetinaNet", {f"{KEYS}LAST_CONVS": 2}, {}, "LAST_CONVS is 2, the heads' towers have 1 an"),
        (
            "RetinaNet",
            {},
            {"FPN__OUT_CHANNELS": 24},
            "CrossKD: before the last 1 .* 16 channels in the student, 24 in the teacher",
        ),
        ("RetinaNet", {f"{KEYS}LAST_CONVS": -1}, {}, "CrossKD.LAST_CONVS is -1, below 0"),
        ("RetinaNet", {f"{KEYS}BOX_LOSS": "l1"}, {}, "CrossKD.BOX_LOSS must be one of"),
        ("MultiClassRPN", {}, {}, "CrossKD needs tower_features, which the student MultiClassRPN"),
    ],
)
def test_what_it_refuses(tmp_path, family, changes, teacher, words):
    write_teacher(tmp_path, family, **teacher)
    with pytest.raises(ValueError, match=words):
        distiller_of(taught_cfg(tmp_path, family, ["CrossKD"], **changes))
