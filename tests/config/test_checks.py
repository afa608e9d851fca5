"""Every contradiction that check_config knows is found and named (validation.py)."""

import pytest
from detectron2.modeling import build_model

from mimicdet import build_distiller
from mimicdet.config import check_config, load_config
from mimicdet.modeling.heads.settings import HeadSettings
from tests.helpers import small_cfg

M = "MODEL.MIMICDET."
STUDENT_OFF = (f"{M}STUDENT.ENABLED", False)
BRANCH = (f"{M}MIMIC.COPY_BRANCH", True, f"{M}STUDENT.OFFSET_INIT", "box")
TEACHER_OFF = (f"{M}TEACHER.ENABLED", False)
MIMIC_OFF = (f"{M}MIMIC.ENABLED", False)
SEPARATE = (f"{M}SEPARATE_TEACHER.CONFIG_FILE", "a.yaml", f"{M}SEPARATE_TEACHER.WEIGHTS", "a.pth")
HEADS = ("STUDENT", "TEACHER")
LOW, HIGH = ["p3", "p4", "p5", "p6", "p7"], ["p2", "p3", "p4", "p5", "p6"]

PROBLEMS = [
    ((*STUDENT_OFF, *TEACHER_OFF, *MIMIC_OFF), "STUDENT.ENABLED and TEACHER.ENABLED are both"),
    ((*STUDENT_OFF, f"{M}EVAL_HEAD", "teacher"), "MIMIC.ENABLED needs STUDENT.ENABLED"),
    (TEACHER_OFF, "MIMIC.ENABLED needs TEACHER.ENABLED or SEPARATE_TEACHER.CONFIG_FILE"),
    (SEPARATE, "SEPARATE_TEACHER.CONFIG_FILE is set and TEACHER.ENABLED is True"),
    ((*SEPARATE, *TEACHER_OFF, *MIMIC_OFF), "SEPARATE_TEACHER.CONFIG_FILE is set, MIMIC.ENABLED"),
    ((*SEPARATE[:2], *TEACHER_OFF), "SEPARATE_TEACHER needs both CONFIG_FILE and WEIGHTS"),
    (SEPARATE[2:], "SEPARATE_TEACHER needs both CONFIG_FILE and WEIGHTS"),
    ((f"{M}EVAL_HEAD", "both"), "MODEL.MIMICDET.EVAL_HEAD is 'both'"),
    ((*TEACHER_OFF, *MIMIC_OFF, f"{M}EVAL_HEAD", "teacher"), "EVAL_HEAD is 'teacher', whose"),
    ((*STUDENT_OFF, *MIMIC_OFF), "EVAL_HEAD is 'student', whose"),
    (
        ("MODEL.META_ARCHITECTURE", "MimicDte"),
        "META_ARCHITECTURE: no 'MimicDte' is registered; did you mean .*MimicDet",
    ),
    (("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"), "MODEL.PROPOSAL_GENERATOR.NAME.*'RPN'"),
    (("MODEL.ROI_HEADS.IN_FEATURES", HIGH[:4]), "MODEL.ROI_HEADS.IN_FEATURES.*one to one"),
    (("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]), "MODEL.ANCHOR_GENERATOR.SIZES"),
    (("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 40]] * 5), "MODEL.ANCHOR_GENERATOR.SIZES"),
    (("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [256], [128], [512]]), "SIZES.*must ascend"),
    (("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]]), "ANCHOR_GENERATOR.ASPECT_RATIOS"),
    (("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[2.0]]), "ASPECT_RATIOS.*must be.*got .*2.0"),
    ((f"{M}STUDENT.KERNEL_SIZES", [3, 5]), "STUDENT.KERNEL_SIZES"),
    ((f"{M}TEACHER.HEAD", "wide"), "TEACHER.HEAD is 'wide'"),
    ((f"{M}STUDENT.ALIGNMENT", "magic"), "STUDENT.ALIGNMENT is 'magic'"),
    ((f"{M}STUDENT.DUAL_PATH", False), "STUDENT.DUAL_PATH False does not mimic.*'dual_path'"),
    ((f"{M}TEACHER.HEAD", "heavy"), "STUDENT.DUAL_PATH True does not mimic.*'heavy'"),
    ((f"{M}STUDENT.FEATURE_DIM", 99), "STUDENT.FEATURE_DIM 99 must equal.*FC_DIM 24"),
    (("MODEL.ROI_HEADS.NUM_CLASSES", 0), "MODEL.ROI_HEADS.NUM_CLASSES is 0"),
    ((f"{M}STUDENT.HARD_MINING_TOPK", 0), "STUDENT.HARD_MINING_TOPK must be at least 1"),
    ((f"{M}STUDENT.MAX_REG_POSITIVES", 0), "STUDENT.MAX_REG_POSITIVES must be at least 1"),
    (("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0), "BATCH_SIZE_PER_IMAGE must be at least 1"),
    (("MODEL.RPN.POST_NMS_TOPK_TRAIN", 0), "MODEL.RPN.POST_NMS_TOPK_TRAIN must be at least 1"),
    (("MODEL.RPN.POST_NMS_TOPK_TEST", -1), "MODEL.RPN.POST_NMS_TOPK_TEST must be at least 1"),
    ((f"{M}REFINEMENT.SCALE_RANGE", [2.0, 1.0]), "REFINEMENT.SCALE_RANGE"),
    ((f"{M}REFINEMENT.SCALE_RANGE", [0.0, 1.0]), "REFINEMENT.SCALE_RANGE"),
    ((f"{M}REFINEMENT.CENTER_RATIO", 1.5), "REFINEMENT.CENTER_RATIO.*1.5"),
    ((f"{M}REFINEMENT.SCALE_RANGE", [1.0]), "REFINEMENT.SCALE_RANGE.*two numbers"),
    ((f"{M}REFINEMENT.PRIOR_PROB", 0.0), "REFINEMENT.PRIOR_PROB.*0.0"),
    ((f"{M}REFINEMENT.PRIOR_PROB", 1.0), "REFINEMENT.PRIOR_PROB.*1.0"),
    (("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.5), "ROI_HEADS.POSITIVE_FRACTION.*1.5"),
    (("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", True), "PROPOSAL_APPEND_GT must be False"),
    (("MODEL.RPN.PRE_NMS_TOPK_TEST", 59), "PRE_NMS_TOPK_TEST 59.*POST_NMS_TOPK_TEST 60"),
    ((f"{M}MIMIC.START_ITER", -1), "MIMIC.START_ITER must not be below 0"),
    ((f"{M}MIMIC.GRADIENT_RATIO", -1.0), "MIMIC.GRADIENT_RATIO must not be below 0"),
    ((f"{M}MIMIC.WARMUP_ITERS", -1), "MIMIC.WARMUP_ITERS must not be below 0"),
    ((f"{M}MIMIC.STOP_ITER", -1), "MIMIC.STOP_ITER must not be below 0"),
    ((f"{M}MIMIC.START_ITER", 5, f"{M}MIMIC.STOP_ITER", 5), "STOP_ITER 5 must be above START_ITER"),
    (
        (f"{M}STUDENT.OFFSET_INIT", "box", f"{M}STUDENT.ALIGNMENT", "deform"),
        "OFFSET_INIT 'box' needs ALIGNMENT 'guided', got 'deform'",
    ),
    ((f"{M}STUDENT.IN_FEATURES", ["p2", "p3"]), "STUDENT.IN_FEATURES .* pair one to one"),
    ((f"{M}STUDENT.START_ITER", -1), "STUDENT.START_ITER must not be below 0"),
    ((f"{M}MIMIC.MAX_BACKGROUND", 1.5), "MIMIC.MAX_BACKGROUND must lie in"),
    (
        (f"{M}MIMIC.COPY_OUTPUTS", True, f"{M}MIMIC.PROJECTOR", True, f"{M}STUDENT.FEATURE_DIM", 9),
        "COPY_OUTPUTS needs STUDENT.FEATURE_DIM 9 to equal .*24",
    ),
    ((*SEPARATE, *TEACHER_OFF, f"{M}MIMIC.COPY_OUTPUTS", True), "COPY_OUTPUTS needs TEACHER.ENA"),
    ((*SEPARATE, *TEACHER_OFF, f"{M}MIMIC.SHARE_OUTPUTS", True), "SHARE_OUTPUTS needs TEACHER.ENA"),
    ((f"{M}MIMIC.SHARE_OUTPUTS", True, f"{M}MIMIC.COPY_OUTPUTS", True), "set one of them"),
    (BRANCH, "COPY_BRANCH needs STUDENT.ALIGNMENT_DIM 16 to be at least .*24"),
    ((*BRANCH, f"{M}STUDENT.OFFSET_INIT", "edges"), "COPY_BRANCH needs .*OFFSET_INIT 'box'"),
    ((*BRANCH, "MODEL.ROI_BOX_HEAD.NUM_FC", 1), "COPY_BRANCH needs .*NUM_FC 2"),
    ((*BRANCH, f"{M}STUDENT.FEATURE_DIM", 9), "COPY_BRANCH needs STUDENT.FEATURE_DIM 9"),
    (
        (*BRANCH, f"{M}STUDENT.DUAL_PATH", False, f"{M}TEACHER.HEAD", "heavy"),
        "COPY_BRANCH needs TEACHER.HEAD 'dual_path' or 'light'",
    ),
    ((*SEPARATE, *TEACHER_OFF, *BRANCH), "COPY_BRANCH needs TEACHER.ENABLED"),
    ((f"{M}MIMIC.TEACHER_EMA", 1.0), "MIMIC.TEACHER_EMA must lie in"),
    ((*SEPARATE, *TEACHER_OFF, f"{M}MIMIC.TEACHER_EMA", 0.9), "TEACHER_EMA 0.9 needs TEACHER.ENA"),
    ((f"{M}MIMIC.TEACHER_EMA", 0.9, f"{M}MIMIC.DETACH_TEACHER", False), "0.9 needs DETACH_TEACHER"),
    ((f"{M}MIMIC.TERMS.BOXES", -1.0), "MIMIC.TERMS.BOXES must not be below 0, got -1.0"),
    (
        (f"{M}MIMIC.TERMS.CLS", 0.0, f"{M}MIMIC.TERMS.LOC", 0.0),
        "CLS, LOC, CLASS_FEATURES, SCORES.*are all 0",
    ),
    *(
        ((key, value), f"{key} must be .*, got {value!r}")
        for key, value in (
            ("MODEL.MASK_ON", True),
            ("MODEL.KEYPOINT_ON", True),
            ("MODEL.LOAD_PROPOSALS", True),
            ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 8),
            ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"),
            ("MODEL.RPN.SMOOTH_L1_BETA", 0.1),
            ("MODEL.RPN.BOUNDARY_THRESH", 0),
            ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
            ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.1),
            ("MODEL.ROI_BOX_HEAD.NORM", "GN"),
            ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
            ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
            ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True),
            ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        )
    ),
]


@pytest.mark.parametrize("opts, words", PROBLEMS, ids=[words[:40] for _, words in PROBLEMS])
def test_contradictions_are_found_and_named(opts, words):
    with pytest.raises(ValueError, match=words) as found:
        check_config(small_cfg(*opts))
    assert "MODEL." in str(found.value)


def test_all_problems_are_told_at_once():
    opts = (f"{M}STUDENT.KERNEL_SIZES", [3], f"{M}TEACHER.HEAD", "wide")
    with pytest.raises(ValueError) as found:
        check_config(small_cfg(*opts, "MODEL.ROI_HEADS.NUM_CLASSES", 0, f"{M}EVAL_HEAD", "both"))
    lines = str(found.value).splitlines()
    for key in ("KERNEL_SIZES", "TEACHER.HEAD", "NUM_CLASSES", "EVAL_HEAD"):
        assert any(key in line for line in lines[1:]), key


@pytest.mark.parametrize("levels", [HIGH[::-1], ["p2", "p3", "p3", "p5", "p6"]])
def test_levels_of_the_teacher_that_are_reversed_or_repeated(levels):
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.IN_FEATURES.*fine to coarse"):
        build_model(small_cfg("MODEL.ROI_HEADS.IN_FEATURES", levels))


def test_the_box_losses_weight_of_both_heads():
    cfg = small_cfg("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 3.0)
    cfg.merge_from_list([f"{M}STUDENT.REG_LOSS_WEIGHT", 2.0, f"{M}TEACHER.CLS_LOSS_WEIGHT", 4.0])
    student, teacher = (HeadSettings.from_config(cfg, cfg.MODEL.MIMICDET[x]) for x in HEADS)
    assert student.loss_weights == (1.0, 6.0) and teacher.loss_weights == (4.0, 3.0)


def test_building_checks_first():
    with pytest.raises(ValueError, match="contradicts itself.*\n.*ALIGNMENT"):
        build_model(small_cfg(f"{M}STUDENT.ALIGNMENT", "magic"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SAMPLES", "all"),
        ("WEIGHTING", ["luck"]),
        ("SCORE_LOSS", "l2"),
        ("FEATURE_LOSS", "l1"),
        ("BOX_LOSS", "l1"),
    ],
)
def test_names_of_the_mimic_loss(key, value):
    cfg = small_cfg(f"{M}MIMIC.{key}", value)
    with pytest.raises(ValueError, match=f"MIMIC.{key} must be one of"):
        build_distiller(cfg, build_model(cfg))


@pytest.mark.parametrize(
    "opts",
    [
        (),
        (*TEACHER_OFF, *MIMIC_OFF),
        MIMIC_OFF,
        (*STUDENT_OFF, *MIMIC_OFF, f"{M}EVAL_HEAD", "teacher"),
        (*SEPARATE, *TEACHER_OFF),
        (f"{M}EVAL_HEAD", "teacher"),
        ("MODEL.ROI_HEADS.IN_FEATURES", LOW),
        (f"{M}TEACHER.HEAD", "light", f"{M}STUDENT.DUAL_PATH", False),
        # Features that nobody mimics need not be of one width.
        (*MIMIC_OFF, f"{M}STUDENT.FEATURE_DIM", 99),
        (f"{M}MIMIC.PROJECTOR", True, f"{M}STUDENT.FEATURE_DIM", 99),
    ],
)
def test_sound_configs_pass(opts):
    check_config(small_cfg(*opts))


def test_configs_of_earlier_runs_load(tmp_path):
    """They hold every key, of the backbones too that timm's have replaced."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "VERSION: 2\nMODEL:\n  MOBILENET_V2:\n    WIDTH: 0.5\n  VGG:\n    DEPTH: 11\n"
        "  BACKBONE:\n    NAME: build_resnet_backbone\n"
    )
    assert load_config(str(file)).MODEL.BACKBONE.NAME == "build_resnet_backbone"
    cfg = load_config(str(file), ["MODEL.BACKBONE.NAME", "build_vgg_backbone"])
    with pytest.raises(ValueError, match="'build_vgg_backbone'.*did you mean build_timm_backbone"):
        check_config(cfg)
