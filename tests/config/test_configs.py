"""Every yaml of configs/: sound, and what it is meant to be; one of each structure trains."""

import math
import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mimicdet import build_distiller, model_zoo
from mimicdet.config import check_config
from mimicdet.data.catalog import set_num_classes
from mimicdet.model_zoo.convert import detectron2_key
from tests.helpers import REPOSITORY, one_of_each

# The detectors that distillation compares are tested in modeling/meta_arch.
CONFIGS = [x for x in model_zoo.list_configs() if not x.startswith("Distillation/")]
ONE_X = "COCO-Detection/mimicdet_R_50_FPN_1x"
COCO_TRAIN_IMAGES = 118287


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, name + ".") if isinstance(value, CfgNode) else {name: value})
    return flat


def differences(name: str, reference: str) -> dict[str, object]:
    """What the config `name` sets otherwise than `reference`, but for the output folder."""
    other = flatten(model_zoo.get_config(reference))
    return {
        key: value
        for key, value in flatten(model_zoo.get_config(name)).items()
        if value != other[key] and key != "OUTPUT_DIR"
    }


def reduced(name: str) -> CfgNode:
    """The config's structure at a size that a CPU trains in a moment."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"]
        + ["MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 64]
        + ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3]
        + ["MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
        + ["MODEL.MIMICDET.STUDENT.FEATURE_DIM", 32, "MODEL.MIMICDET.STUDENT.ALIGNMENT_DIM", 16]
        + ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 60, "MODEL.RPN.POST_NMS_TOPK_TEST", 60]
    )
    return cfg


def random_input(height: int = 96, width: int = 128) -> dict[str, object]:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 56.0, 60.0], [30.0, 4.0, 120.0, 90.0]]))
    instances.gt_classes = torch.tensor([0, 2])
    return {"image": torch.randint(0, 256, (3, height, width)).float(), "instances": instances}


def structure(name: str) -> str:
    """What makes the reduced model one of its own: all but its weights and pixel values."""
    cfg = reduced(name)
    separate = cfg.MODEL.MIMICDET.SEPARATE_TEACHER
    separate.CONFIG_FILE = separate.WEIGHTS = str(bool(separate.CONFIG_FILE))
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = []
    return cfg.MODEL.dump()


STRUCTURES = one_of_each(CONFIGS, structure)


# ---------------------------------------------------------------- what they say


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_config_is_sound(name):
    """Detectron2 refuses unknown keys as it loads them; check_config contradictions."""
    cfg = model_zoo.get_config(name)
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:  # taken from the data
        set_num_classes(cfg, 3)
    check_config(cfg)


def test_all_rows_of_the_paper_are_there():
    rows = {1: 3, 2: 4, 3: 3, 4: 2, 5: 6}  # Table 5's separated rows are two configs each
    for table, count in rows.items():
        found = [name for name in CONFIGS if name.startswith(f"Ablations/table{table}_")]
        assert len(found) == count, found
    assert sum(name.startswith("COCO-Detection/") for name in CONFIGS) == 9


def test_base_holds_the_papers_settings():
    cfg = model_zoo.get_config(ONE_X)
    assert cfg.MODEL.META_ARCHITECTURE == "MimicDet"
    assert cfg.MODEL.RPN.NMS_THRESH == 0.8 and cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 2000
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 1000
    assert cfg.MODEL.RPN.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert cfg.MODEL.ROI_HEADS.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 128
    assert cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION == 0.25
    assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.6]
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.005
    assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.6
    assert cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT is False
    assert cfg.MODEL.MIMICDET.STUDENT.KERNEL_SIZES == [3, 5, 5, 5, 5]
    assert cfg.MODEL.MIMICDET.STUDENT.HARD_MINING_TOPK == 128
    assert cfg.MODEL.MIMICDET.STUDENT.MAX_REG_POSITIVES == 64
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (32, 0.04)
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == (0.9, 1e-4)
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM) == (2, "FrozenBN")


@pytest.mark.parametrize(
    "pattern, epochs, drops",
    [
        (r"COCO-Detection/.*_1x", 13, (8, 11)),
        (r"COCO-Detection/.*_2x", 24, (16, 22)),
        (r"COCO-Detection/.*_3x", 36, (24, 33)),
        (r"Ablations/table[1-4]_", 13, (8, 11)),
        (r"Ablations/table5_", 24, (16, 22)),
    ],
)
def test_schedules_are_epochs_of_coco(pattern, epochs, drops):
    names = [name for name in CONFIGS if re.match(pattern, name)]
    assert names
    for name in names:
        solver = model_zoo.get_config(name).SOLVER
        assert solver.MAX_ITER == round(epochs * COCO_TRAIN_IMAGES / 32), name
        assert solver.STEPS == tuple(round(e * COCO_TRAIN_IMAGES / 32) for e in drops), name


M = "MODEL.MIMICDET."
FIVES = {M + "STUDENT.KERNEL_SIZES": [5, 5, 5, 5, 5]}


@pytest.mark.parametrize(
    "row, expected",
    [
        ("table1_without_teacher", {M + "TEACHER.ENABLED": False, M + "MIMIC.ENABLED": False}),
        ("table1_without_mimic", {M + "MIMIC.ENABLED": False}),
        ("table1_with_mimic", {}),
        ("table2_a_conv", {M + "STUDENT.ALIGNMENT": "conv", **FIVES}),
        ("table2_b_deform", {M + "STUDENT.ALIGNMENT": "deform", **FIVES}),
        ("table2_c_guided", FIVES),
        ("table2_d_guided_3x3_on_p3", {}),
        ("table3_light_head", {M + "STUDENT.DUAL_PATH": False, M + "TEACHER.HEAD": "light"}),
        ("table3_heavy_head", {M + "STUDENT.DUAL_PATH": False, M + "TEACHER.HEAD": "heavy"}),
        ("table3_dual_path", {}),
        (
            "table4_not_staggered",
            {
                "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
                "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            },
        ),
        ("table4_staggered", {}),
    ],
)
def test_ablations_change_only_their_row(row, expected):
    assert differences(f"Ablations/{row}", ONE_X) == expected


@pytest.mark.parametrize("depth", [50, 101])
def test_table5_pairs_a_teacher_with_a_student(depth):
    shared = f"COCO-Detection/mimicdet_R_{depth}_FPN_2x"
    teacher, student = (
        f"Ablations/table5_R_{depth}_separate_{role}" for role in ("teacher", "student")
    )
    assert differences(f"Ablations/table5_R_{depth}_shared", shared) == {}
    assert differences(teacher, shared) == {
        M + "EVAL_HEAD": "teacher",
        M + "STUDENT.ENABLED": False,
        M + "MIMIC.ENABLED": False,
    }
    assert differences(student, shared) == {
        M + "TEACHER.ENABLED": False,
        M + "SEPARATE_TEACHER.CONFIG_FILE": f"configs/{teacher}.yaml",
        M + "SEPARATE_TEACHER.WEIGHTS": f"{model_zoo.get_config(teacher).OUTPUT_DIR}"
        "/model_final.pth",
    }
    assert (REPOSITORY / "configs" / f"{teacher}.yaml").is_file()
    assert model_zoo.get_config(student).OUTPUT_DIR != model_zoo.get_config(teacher).OUTPUT_DIR


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("size, longest", [(400, 667), (600, 1000), (800, 1333)])
def test_table6_trains_and_tests_at_one_size(depth, size, longest):
    suffix = "" if size == 800 else f"_{size}px"
    cfg = model_zoo.get_config(f"COCO-Detection/mimicdet_R_{depth}_FPN{suffix}_2x")
    assert cfg.INPUT.MIN_SIZE_TRAIN == (size,) and cfg.INPUT.MIN_SIZE_TEST == size
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == longest
    assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth}.pkl" in cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("backbone", ["R_101", "X_101_64x4d"])
def test_table7_jitters_the_scale(backbone):
    cfg = model_zoo.get_config(f"COCO-Detection/mimicdet_{backbone}_FPN_jitter_3x")
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 800) and cfg.INPUT.MIN_SIZE_TEST == 800
    assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    assert (cfg.INPUT.FORMAT == "RGB") == (backbone == "X_101_64x4d")


def test_x101_fits_torchvisions_weights():
    cfg = model_zoo.get_config("COCO-Detection/mimicdet_X_101_64x4d_FPN_jitter_3x")
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * x for x in (0.485, 0.456, 0.406)])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * x for x in (0.229, 0.224, 0.225)])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        backbone = build_model(cfg).backbone.bottom_up
        source = torchvision.models.resnext101_64x4d(weights=None)
    expected = {
        detectron2_key(key): value.shape
        for key, value in source.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    assert {key: value.shape for key, value in backbone.state_dict().items()} == expected


def test_the_pages_list_every_config():
    """MODEL_ZOO.md all but the taught detectors, whose tables are in docs/distillation.md."""
    linked = set()
    for page in ("MODEL_ZOO.md", "docs/distillation.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        linked |= set(re.findall(r"\]\((?:\.\./)?(configs/[^)]+\.yaml)\)", text))
    existing = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")
    }
    assert linked == existing


# ---------------------------------------------------------------- the model zoo API


def test_config_names_may_be_short():
    full = model_zoo.get_config_file(ONE_X + ".yaml")
    assert Path(full).is_file()
    assert model_zoo.get_config_file(ONE_X) == full
    assert model_zoo.get_config_file("mimicdet_R_50_FPN_1x") == full


def test_unknown_config_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match="'mimicdet_R50_FPN_1x'.*mimicdet_R_50_FPN_1x.yaml"):
        model_zoo.get_config("mimicdet_R50_FPN_1x")


def test_unpublished_checkpoint_is_an_error():
    assert model_zoo.get_config(ONE_X).MODEL.WEIGHTS.startswith("detectron2://ImageNetPretrained")
    with pytest.raises(RuntimeError, match="mimicdet_R_50_FPN_1x.yaml"):
        model_zoo.get_config(ONE_X, trained=True)


# ---------------------------------------------------------------- they build and train


@pytest.mark.parametrize("name", STRUCTURES)
def test_config_builds_at_full_size(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        set_num_classes(cfg, 3)
    with torch.device("meta"):
        model = build_model(cfg)
    keys = cfg.MODEL.MIMICDET
    assert (model.roi_heads is not None) == keys.TEACHER.ENABLED
    assert (model.student_head is not None) == keys.STUDENT.ENABLED
    reads_p2 = keys.TEACHER.ENABLED and "p2" in cfg.MODEL.ROI_HEADS.IN_FEATURES
    assert ("p2" in model.backbone.output_shape()) == reads_p2
    if cfg.MODEL.BACKBONE.FREEZE_AT == 2:
        bottom_up = model.backbone.bottom_up
        if hasattr(bottom_up, "network"):  # timm's EfficientNet
            res2, res3 = bottom_up.network.model.blocks[1:3]
        else:
            res2, res3 = bottom_up.res2, bottom_up.res3
        assert not any(p.requires_grad for p in res2.parameters())
        assert all(p.requires_grad for p in res3.parameters())


def train_teacher(student_cfg: CfgNode, folder: Path) -> None:
    """Put an untrained teacher of Table 5, made small, where the student's config says it is."""
    keys = student_cfg.MODEL.MIMICDET.SEPARATE_TEACHER
    cfg = reduced(keys.CONFIG_FILE.removeprefix("configs/"))
    keys.CONFIG_FILE, keys.WEIGHTS = str(folder / "teacher.yaml"), str(folder / "teacher.pth")
    Path(keys.CONFIG_FILE).write_text(cfg.dump(), encoding="utf-8")
    torch.save({"model": build_model(cfg).state_dict()}, keys.WEIGHTS)


def expected_losses(cfg: CfgNode) -> set[str]:
    keys = cfg.MODEL.MIMICDET
    parts = ["refine"] + ["student"] * keys.STUDENT.ENABLED + ["teacher"] * keys.TEACHER.ENABLED
    losses = {f"loss_{part}_{what}" for part in parts for what in ("cls", "loc")}
    if keys.MIMIC.ENABLED:
        branches = ("cls", "loc") if keys.STUDENT.DUAL_PATH else ("shared",)
        losses |= {f"loss_mimic_{branch}" for branch in branches}
    return losses


@pytest.mark.parametrize("name", STRUCTURES)
def test_config_trains_a_step(name, tmp_path):
    torch.manual_seed(0)
    cfg = reduced(name)
    if cfg.MODEL.MIMICDET.SEPARATE_TEACHER.CONFIG_FILE:
        train_teacher(cfg, tmp_path)
    model = build_distiller(cfg, build_model(cfg))
    model.train()
    with EventStorage():
        losses = model([random_input()])
    assert set(losses) == expected_losses(cfg)
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    sum(losses.values()).backward()
    # DistributedDataParallel refuses a parameter without a gradient.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
