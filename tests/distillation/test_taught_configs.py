"""Every yaml of configs/Distillation that names a teacher: both fit, the files are there."""

import pytest
from detectron2.modeling import build_model

from mimicdet import DISTILLATION_REGISTRY, model_zoo
from mimicdet.data.datasets import set_num_classes
from mimicdet.distillation import build_adapter, check_distillation_config
from mimicdet.distillation.pairing import check_pair
from tests.helpers import REPOSITORY

PAIRS = [
    name
    for name in model_zoo.list_configs()
    if name.startswith("Distillation/") and model_zoo.get_config(name).DISTILLATION.METHODS
]


def test_there_are_pairs():
    assert len(PAIRS) >= 3


@pytest.mark.parametrize("name", PAIRS)
def test_two_commands_fit_together(name):
    """The teacher's config is in this repository and leaves its weights where the student looks."""
    cfg = model_zoo.get_config(name)
    check_distillation_config(cfg)
    teacher = cfg.DISTILLATION.TEACHER
    assert (REPOSITORY / teacher.CONFIG_FILE).is_file()
    teacher_cfg = model_zoo.get_config(teacher.CONFIG_FILE.removeprefix("configs/"))
    assert teacher.WEIGHTS == f"{teacher_cfg.OUTPUT_DIR}/model_final.pth"
    assert cfg.OUTPUT_DIR != teacher_cfg.OUTPUT_DIR
    assert cfg.INPUT.FORMAT == teacher_cfg.INPUT.FORMAT
    adapters = []
    for part in (cfg, teacher_cfg):
        part.MODEL.DEVICE = "cpu"
        if part.MODEL.ROI_HEADS.NUM_CLASSES == 0:
            set_num_classes(part, 3)
        adapters.append(build_adapter(build_model(part), part.INPUT.FORMAT))
    layouts = [x.layout for x in adapters]
    methods = [DISTILLATION_REGISTRY.get(x)(cfg, *layouts) for x in cfg.DISTILLATION.METHODS]
    check_pair(methods, *adapters)
