"""Every yaml of configs/Distillation that names a teacher: both fit, the files are there."""

import functools
from collections import Counter

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mimicdet import DISTILLATION_REGISTRY, model_zoo
from mimicdet.config import load_config
from mimicdet.data.catalog import set_num_classes
from mimicdet.distillation import DetectorAdapter, build_adapter
from mimicdet.distillation.pairing import check_pair
from tests.config.test_configs import flatten
from tests.helpers import REPOSITORY, one_of_each

CONFIGS = {
    name.removesuffix(".yaml"): model_zoo.get_config(name) for name in model_zoo.list_configs()
}
PAIRS = [
    name
    for name, cfg in CONFIGS.items()
    if name.startswith("Distillation/") and cfg.DISTILLATION.METHODS
]
RM, PFI = "Distillation/rank_mimicking_pfi/", ("RankMimicking", "PredictionGuided")
FGFI = "Distillation/fine_grained/"
METHODS = [name for name, x in DISTILLATION_REGISTRY if x.default_config() is not None]
_ADAPTERS: dict[str, DetectorAdapter] = {}


def without_teaching(cfg: CfgNode) -> dict[str, object]:
    """What is left of a config without its node DISTILLATION and its output folder."""
    return {
        key: value
        for key, value in flatten(cfg).items()
        if not key.startswith("DISTILLATION.") and key != "OUTPUT_DIR"
    }


@functools.cache
def settings_alone() -> list[dict[str, object]]:
    """The settings of every config without a teacher."""
    return [without_teaching(cfg) for cfg in CONFIGS.values() if not cfg.DISTILLATION.METHODS]


def teaching(name: str) -> tuple[tuple[str, ...], dict[str, object]]:
    """The methods of a pair, and the settings of these that are not the defaults."""
    node, default = CONFIGS[name].DISTILLATION, load_config("").DISTILLATION
    changed = {
        f"{method}.{key}": value
        for method in METHODS
        for key, value in node[method].items()
        if value != default[method][key]
    }
    return tuple(node.METHODS), changed


def teacher_of(name: str) -> CfgNode:
    """The config of a pair's teacher; it is one of this repository."""
    file = CONFIGS[name].DISTILLATION.TEACHER.CONFIG_FILE
    assert (REPOSITORY / file).is_file(), name
    return CONFIGS[file.removeprefix("configs/").removesuffix(".yaml")]


def family(name: str) -> tuple[str, ...]:
    """The kinds of a pair's student and teacher."""
    pair = (CONFIGS[name].MODEL, teacher_of(name).MODEL)
    return tuple(x for keys in pair for x in (keys.META_ARCHITECTURE, keys.BACKBONE.NAME))


def adapter_of(cfg: CfgNode) -> DetectorAdapter:
    """The detector's adapter, shallow: depth beyond 50 and the width of its head fit any other."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = min(cfg.MODEL.RESNETS.DEPTH, 50)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.MIMICDET.STUDENT.FEATURE_DIM = 8
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        set_num_classes(cfg, 3)
    key = cfg.MODEL.dump() + cfg.INPUT.FORMAT
    if key not in _ADAPTERS:
        _ADAPTERS[key] = build_adapter(build_model(cfg), cfg.INPUT.FORMAT)
    return _ADAPTERS[key]


def test_every_row_of_the_papers_is_there():
    rows = Counter(name.removeprefix(RM).split("_")[0] for name in PAIRS if RM in name)
    # Tables 1 and 2; RetinaNet also Tables 3 (2 x 3), 4 (1), 6 (5) and 7 (3), GFL also Table 5 (4).
    assert rows == {"retinanet": 4 + 6 + 1 + 5 + 3, "fcos": 4, "atss": 3, "gfl": 4 + 4}
    rows = Counter(name.removeprefix(FGFI).split("_")[0] for name in PAIRS if FGFI in name)
    # Table 1 (2 of -I, 4 more at 0.25x), Fig. 3's thresholds; Tables 2-5. Fig. 6 (a) is a sweep.
    assert rows == {"shuffledet": 6 + 2, "faster": 5}


@pytest.mark.parametrize(
    "name, methods, settings",
    [
        (f"{RM}retinanet_R_50_teaches_R_18_rm_pfi_1x", PFI, {}),
        (f"{RM}fcos_R_50_teaches_R_18_rm_1x", PFI[:1], {}),
        (f"{RM}atss_R_50_teaches_R_18_pfi_1x", PFI[1:], {}),
        (f"{RM}gfl_R_50_teaches_R_18_soft_labels_1x", ("SoftLabels",), {}),
        (
            f"{RM}retinanet_R_50_teaches_R_18_rm_cls_1x",
            PFI[:1],
            {"RankMimicking.BOX_RANK": False},
        ),
        (f"{RM}gfl_R_50_teaches_R_18_whole_map_1x", ("FeatureImitation",), {}),
        (
            f"{RM}gfl_R_50_teaches_R_18_gt_mask_1x",
            ("FeatureImitation",),
            {"FeatureImitation.MASK": "boxes"},
        ),
        (f"{FGFI}shuffledet_1x_teaches_0.25x_imitation_kitti", ("FineGrained",), {}),
        (
            f"{FGFI}shuffledet_1x_teaches_0.25x_iou_0.8_kitti",
            ("FineGrained",),
            {"FineGrained.REGION": "iou_threshold", "FineGrained.IOU_THRESHOLD": 0.8},
        ),
        (
            f"{FGFI}shuffledet_1x_teaches_0.25x_imitation_soft_labels_kitti",
            ("FineGrained", "SoftLabels"),
            {},
        ),
    ],
)
def test_a_row_teaches_by_its_methods(name, methods, settings):
    assert teaching(name) == (methods, settings)


def test_the_student_trains_as_it_does_alone():
    """Data, schedule and model are those of a config without a teacher."""
    for name in PAIRS:
        assert without_teaching(CONFIGS[name]) in settings_alone(), name


def test_no_run_writes_over_another():
    folders = Counter(CONFIGS[name].OUTPUT_DIR for name in PAIRS)
    assert max(folders.values()) == 1


def test_two_commands_fit_together():
    """The teacher's run leaves its weights where the student's run looks for them."""
    for name in PAIRS:
        cfg, teacher_cfg = CONFIGS[name], teacher_of(name)
        assert cfg.DISTILLATION.TEACHER.WEIGHTS == f"{teacher_cfg.OUTPUT_DIR}/model_final.pth", name
        assert cfg.OUTPUT_DIR != teacher_cfg.OUTPUT_DIR, name
        assert cfg.INPUT.FORMAT == teacher_cfg.INPUT.FORMAT, name
        assert cfg.DATASETS == teacher_cfg.DATASETS, name


@pytest.mark.parametrize("name", one_of_each(PAIRS, family))
def test_methods_of_a_family_fit_its_models(name):
    adapters = [adapter_of(x) for x in (CONFIGS[name], teacher_of(name))]
    layouts = [x.layout for x in adapters]
    for other in (x for x in PAIRS if family(x) == family(name)):
        cfg = CONFIGS[other]
        methods = [DISTILLATION_REGISTRY.get(x)(cfg, *layouts) for x in cfg.DISTILLATION.METHODS]
        check_pair(methods, *adapters)
