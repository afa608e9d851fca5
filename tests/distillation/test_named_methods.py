"""DISTILLATION.METHODS: a method named more than once, and one that is a file of a user's own."""

import importlib
import sys

import pytest
import torch
from detectron2.utils.events import EventStorage

from mimicdet import DISTILLATION_REGISTRY
from mimicdet.config import check_config, load_config
from mimicdet.distillation import DistillationState, methods
from tests.distillation.tiny_detectors import (
    INPUTS,
    distiller_of,
    losses_of,
    taught_cfg,
    tiny_cfg,
    write_teacher,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A RetinaNet teacher on disk."""
    path = tmp_path_factory.mktemp("retinanet")
    write_teacher(path, "RetinaNet")
    return path


LABELLED = """
DISTILLATION:
  METHODS: ["FineGrained", "FineGrained:coarse", "FineGrained:fine"]
  FineGrained: {LEVELS: [1], PSI: 0.4}
  LABELS:
    coarse: {LEVELS: [3, 4], LOSS_WEIGHT: 0.5}
    fine: {LEVELS: [0]}
"""


def labelled_cfg(folder, *opts):
    base = taught_cfg(folder, "RetinaNet", []).dump()
    (folder / "base.yaml").write_text(base)
    (folder / "labelled.yaml").write_text(f'_BASE_: "base.yaml"\n{LABELLED}')
    return load_config(str(folder / "labelled.yaml"), opts)


def test_a_method_can_be_named_more_than_once(folder):
    distiller = distiller_of(labelled_cfg(folder, "DISTILLATION.LABELS.fine.LEVELS", "[0, 2]"))
    assert [x.levels for x in distiller.methods] == [[1], [3, 4], [0, 2]]
    assert [x.loss_weight for x in distiller.terms] == [0.01, 0.5, 0.01]
    assert [x.psi for x in distiller.methods] == [0.4] * 3
    losses = losses_of(distiller)
    names = {f"loss_fine_grained{x}" for x in ("", "_coarse", "_fine")}
    assert set(losses) == {"loss_cls", "loss_box_reg"} | names
    assert len({losses[x].item() for x in names}) == 3
    # Each has adaptation layers of its own, in the checkpoint too.
    state = DistillationState(distiller).state_dict()["methods"]
    assert {x.rsplit(".", 1)[0] for x in state} == {
        *("0.adaptation.1", "1.adaptation.3", "1.adaptation.4"),
        *("2.adaptation.0", "2.adaptation.2"),
    }
    # A config that a run has written is read again.
    cfg = labelled_cfg(folder)
    (folder / "dumped.yaml").write_text(cfg.dump())
    assert load_config(str(folder / "dumped.yaml")) == cfg


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("METHODS", ["FineGrained:rough"], "'FineGrained:rough', but there is no node LABELS.rou"),
        ("METHODS", ["FineGrained:fine"] * 2, "names a method twice"),
        ("METHODS", ["SoftLabels:coarse"], "LABELS.coarse, for SoftLabels: .*LEVELS"),
        ("LABELS.coarse.LOSS_WEIGHT", -0.5, "LABELS.coarse.LOSS_WEIGHT is -0.5, below 0"),
    ],
)
def test_labels_that_make_no_sense(folder, key, value, words):
    cfg = labelled_cfg(folder, f"DISTILLATION.{key}", str(value))
    with pytest.raises(ValueError, match=words):
        check_config(cfg)


METHOD = '''
"""One file: a method of its own."""

from detectron2.config import CfgNode

from mimicdet.distillation import DISTILLATION_REGISTRY, DistillationMethod


@DISTILLATION_REGISTRY.register()
class FinestLevelL1(DistillationMethod):
    loss_names = ("loss_finest_l1",)
    needs_student = needs_teacher = frozenset({"features"})
    agrees_on = frozenset({"levels", "channels"})

    def __init__(self, cfg, student, teacher):
        super().__init__()
        self.level = cfg.DISTILLATION.FinestLevelL1.LEVEL

    @classmethod
    def default_config(cls):
        return CfgNode({"LEVEL": 0})

    def forward(self, student, teacher):
        gap = student.features[self.level] - teacher.features[self.level]
        return {"loss_finest_l1": gap.abs().mean()}
'''


@pytest.fixture(params=["own code", "package"])
def own_method(request, tmp_path, monkeypatch):
    """The file above is there and imported; afterwards its method is unknown again."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "finest_level.py").write_text(METHOD)
    if request.param == "package":
        monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "code")])
        methods.__loader__.exec_module(methods)
        name = f"{methods.__name__}.finest_level"
    else:
        monkeypatch.syspath_prepend(tmp_path / "code")
        name = "finest_level"
        importlib.import_module(name)
    yield
    del sys.modules[name]
    DISTILLATION_REGISTRY._obj_map.pop("FinestLevelL1")
    assert "FinestLevelL1" not in tiny_cfg("RetinaNet").DISTILLATION


def test_a_method_is_a_file_and_a_yaml(own_method, folder, tmp_path):
    (tmp_path / "student.yaml").write_text(
        f"""
_BASE_: "{folder / "teacher.yaml"}"
DISTILLATION:
  METHODS: ["FinestLevelL1", "PredictionGuided"]
  TEACHER: {{CONFIG_FILE: "{folder / "plain.yaml"}", WEIGHTS: "{folder / "teacher.pth"}"}}
  FinestLevelL1: {{LEVEL: 1, LOSS_WEIGHT: 0.5}}
"""
    )
    (folder / "plain.yaml").write_text((folder / "teacher.yaml").read_text())
    cfg = load_config(str(tmp_path / "student.yaml"))
    distiller = distiller_of(cfg)
    losses = losses_of(distiller)
    teacher = distiller.teachers[0](INPUTS)
    with EventStorage():
        _, student = distiller_of(cfg).adapter.forward_training(INPUTS)
    expected = (student.features[1] - teacher.features[1]).abs().mean()
    torch.testing.assert_close(losses["loss_finest_l1"], 0.5 * expected)
    for text, words in (("LEVL: 1", "LEVL"), ("LEVEL: one", "Type mismatch.*LEVEL")):
        content = (tmp_path / "student.yaml").read_text().replace("LEVEL: 1", text)
        (tmp_path / "wrong.yaml").write_text(content)
        with pytest.raises(ValueError, match=words):
            load_config(str(tmp_path / "wrong.yaml"))
