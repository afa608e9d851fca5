"""DISTILLATION.INHERIT: what a student takes over from its teacher, and when it does not."""

import logging

import pytest
import torch

from mimicdet.distillation.inherit import inherit
from mimicdet.utils.errors import UserError
from tests.distillation.tiny_detectors import build_tiny, distiller_of, taught_cfg, write_teacher

BELOW = "backbone.bottom_up."


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", ["RetinaNet", "GFL", "GeneralizedRCNN", "MimicDet"])
def test_all_but_the_network_below_the_pyramid(family, caplog):
    norm = {"FPN__NORM": "BN"}
    student, teacher = build_tiny(family, 0, **norm), build_tiny(family, 5, **norm)
    for name, buffer in teacher.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(1)
    own, given = values(student), values(teacher)
    with caplog.at_level(logging.INFO):
        names = inherit(student, teacher, "teacher.yaml")
    after = values(student)
    assert set(names) == {name for name in own if not name.startswith(BELOW)}
    assert any(name.endswith("running_mean") for name in names)  # the pyramid's norms
    for name, value in after.items():
        assert torch.equal(value, (own if name.startswith(BELOW) else given)[name]), name
    assert all(torch.equal(value, given[name]) for name, value in teacher.state_dict().items())
    count = sum(name.startswith("backbone.fpn_output3.") for name in own)
    assert f"{len(names)} of the student's {len(own)} tensors" in caplog.text
    assert "those of the teacher teacher.yaml: backbone." in caplog.text
    assert f" backbone.fpn_output3 {count}" in caplog.text


def test_other_shapes_stay_and_are_listed(caplog):
    student = build_tiny("RetinaNet", 0, RETINANET__NUM_CLASSES=2, RETINANET__NUM_CONVS=2)
    teacher = build_tiny("RetinaNet", 5)
    own = values(student)
    with caplog.at_level(logging.INFO):
        names = inherit(student, teacher, "teacher.yaml")
    stays = {
        x for x in own if x.startswith(("head.cls_score.", "head.cls_subnet.2.", "head.bbox_"))
    }
    stays -= {x for x in own if x.startswith(("head.bbox_subnet.0.", "head.bbox_pred."))}
    assert {x for x in own if not x.startswith(BELOW)} - set(names) == stays
    assert all(torch.equal(student.state_dict()[name], own[name]) for name in stays)
    assert torch.equal(student.head.cls_subnet[0].weight, teacher.head.cls_subnet[0].weight)
    listed = "head.bbox_subnet 2, head.cls_score 2, head.cls_subnet 2"
    assert f"without a counterpart there: {listed}" in caplog.text


def test_a_teacher_that_has_nothing_in_common_is_an_error():
    student = build_tiny("RetinaNet")
    teacher = build_tiny("GeneralizedRCNN", FPN__OUT_CHANNELS=24)
    with pytest.raises(UserError, match="INHERIT: nothing of the teacher a.yaml fits .*bottom_up"):
        inherit(student, teacher, "a.yaml")


def test_without_a_pyramid_the_whole_backbone_stays():
    student, teacher = torch.nn.Module(), torch.nn.Module()
    for seed, model in enumerate((student, teacher)):
        torch.manual_seed(seed)
        model.backbone, model.roi_heads = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert inherit(student, teacher, "") == ["roi_heads.weight", "roi_heads.bias"]
    assert not torch.equal(student.backbone.weight, teacher.backbone.weight)


def test_a_distiller_is_built_without_methods(tmp_path):
    write_teacher(tmp_path, "RetinaNet")
    cfg = taught_cfg(tmp_path, "RetinaNet", [], DISTILLATION__INHERIT=True)
    assert distiller_of(cfg).terms == ()
