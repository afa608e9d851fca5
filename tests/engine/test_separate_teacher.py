"""Separate backbones (Table 5) by two commands: train the teacher, train the student."""

import math

import pytest
import tiny_run
import torch

from mimicdet.commands.train import main
from mimicdet.engine import MimicTrainer, setup_cfg

TEACHER = [
    *("MODEL.MIMICDET.STUDENT.ENABLED", "False", "MODEL.MIMICDET.MIMIC.ENABLED", "False"),
    *("MODEL.MIMICDET.EVAL_HEAD", "teacher"),
]


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Output folder of the first command."""
    output = tmp_path_factory.mktemp("teacher")
    opts = [*TEACHER, *tiny_run.SHORT, "OUTPUT_DIR", str(output)]
    with tiny_run.loggers_restored():
        assert main(["--config-file", str(data.config), *opts]) == 0
    yield output
    tiny_run.remove(output)


def student_opts(teacher, output):
    key = "MODEL.MIMICDET.SEPARATE_TEACHER"
    return [
        *("MODEL.MIMICDET.TEACHER.ENABLED", "False", "OUTPUT_DIR", str(output)),
        *(f"{key}.CONFIG_FILE", str(teacher / "config.yaml")),
        *(f"{key}.WEIGHTS", str(teacher / "model_final.pth")),
    ]


def test_the_teacher_trains_and_evaluates_alone(teacher):
    last = tiny_run.metrics(teacher)[0]
    assert "loss_teacher_cls" in last and "loss_student_cls" not in last
    assert not [key for key in last if "mimic" in key]
    keys = tiny_run.state(teacher / "model_final.pth")["model"]
    assert any(key.startswith("roi_heads.") for key in keys)
    assert not any(key.startswith("student_head.") for key in keys)


def test_the_student_trains_without_keeping_the_teacher(data, teacher, tmp_path):
    opts = [*student_opts(teacher, tmp_path), *tiny_run.SHORT]
    assert main(["--config-file", str(data.config), *opts]) == 0
    first = tiny_run.metrics(tmp_path)[0]
    assert math.isfinite(first["loss_mimic_cls"]) and first["loss_mimic_loc"] > 0
    assert "loss_student_cls" in first and "loss_teacher_cls" not in first
    saved = tiny_run.state(tmp_path / "model_final.pth")
    parts = {key.split(".")[0] for key in saved["model"]}
    assert parts == {"backbone", "proposal_generator", "student_head"}
    # Neither does the optimizer know a parameter of it.
    groups = saved["trainer"]["_trainer"]["optimizer"]["param_groups"]
    cfg = setup_cfg(str(data.config), ["MODEL.MIMICDET.TEACHER.ENABLED", "False"] + NO_MIMIC)
    alone = MimicTrainer.build_model(cfg)
    assert sum(len(g["params"]) for g in groups) == len(list(alone.parameters()))
    tiny_run.remove(tmp_path)


NO_MIMIC = ["MODEL.MIMICDET.MIMIC.ENABLED", "False"]


def test_training_leaves_the_teacher_as_it_is(data, teacher, tmp_path):
    """Neither its parameters nor its batch norms' statistics move, and its layers stay in eval."""
    cfg = setup_cfg(str(data.config), [*student_opts(teacher, tmp_path), *tiny_run.SHORT])
    trainer = MimicTrainer(cfg)
    model = trainer.model.teachers[0].model
    loaded = tiny_run.state(teacher / "model_final.pth")["model"]
    trainer.train()
    assert not any(module.training for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    tiny_run.remove(tmp_path)


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], ["MODEL.ROI_HEADS.NUM_CLASSES: 3 here, 2 there"]),
        (
            ["MODEL.MIMICDET.STUDENT.FEATURE_DIM", "64"],
            ["MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.MIMICDET.STUDENT.FEATURE_DIM", "64", "32 there"],
        ),
        (["MODEL.MIMICDET.STUDENT.DUAL_PATH", "False"], ["STUDENT.DUAL_PATH", "False here"]),
    ],
)
def test_a_teacher_that_does_not_fit(data, teacher, tmp_path, capfd, opts, named):
    config = data.config
    if "MODEL.ROI_HEADS.NUM_CLASSES" in opts:
        content = tiny_run.coco_content()
        content["categories"].append({"id": 3, "name": "cross"})
        address = tiny_run.write_coco(tmp_path / "more", content)
        config = tiny_run.write_config(tmp_path / "more.yaml", address)
    arguments = ["--config-file", str(config), *student_opts(teacher, tmp_path / "output"), *opts]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    for name in [*named, str(teacher / "config.yaml")]:
        assert name in error


def test_a_teacher_that_is_missing(data, teacher, tmp_path, capfd):
    opts = student_opts(teacher, tmp_path / "output")
    opts[-1] = "none/such.pth"
    assert main(["--config-file", str(data.config), *opts]) == 2
    error = capfd.readouterr().err
    assert "MODEL.MIMICDET.SEPARATE_TEACHER.WEIGHTS" in error and "none/such.pth" in error
