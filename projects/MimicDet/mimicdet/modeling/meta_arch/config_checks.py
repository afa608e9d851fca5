"""What must hold between the keys of a MimicDet; each line names the key."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ...config import config_check
from ...utils.errors import near_names
from ..backbone.pyramid import PYRAMIDS
from ..heads.teacher_head import HEADS
from ..layers import ALIGNMENTS, AlignmentLayer
from .mimicdet import MimicDet

# Keys of Detectron2's two-stage detectors that change nothing here: the value that tells what a
# MimicDet does, and why there is no other.
FIXED = {
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RefinementModule", "it is a part of the design (3.2)"),
    "MODEL.MASK_ON": (False, "it has no mask head"),
    "MODEL.KEYPOINT_ON": (False, "it has no keypoint head"),
    "MODEL.LOAD_PROPOSALS": (False, "the proposals are the refinement module's"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0, "boxes without area alone are left out"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1", "the box loss is L1 (3.2)"),
    "MODEL.RPN.SMOOTH_L1_BETA": (0.0, "the box loss is L1 (3.2)"),
    "MODEL.RPN.BOUNDARY_THRESH": (-1, "anchors that reach outside the image train as well"),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1", "the box loss is L1 (3.3)"),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": (0.0, "the box loss is L1 (3.3)"),
    "MODEL.ROI_BOX_HEAD.NORM": ("", "the T-head has no norms"),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (True, "a box has one regression (3.3)"),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False, "the heads train on the proposals"),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": (False, "the class loss is a softmax over all classes"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False, "the class loss is a softmax over all classes"),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (
        False,
        "ground-truth boxes have no location in the S-head's map",
    ),
}

# What a value must do, and whether it does.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "MODEL.MIMICDET.STUDENT.HARD_MINING_TOPK": ("be at least 1", lambda x: x >= 1),
    "MODEL.MIMICDET.STUDENT.MAX_REG_POSITIVES": ("be at least 1", lambda x: x >= 1),
    "MODEL.MIMICDET.STUDENT.START_ITER": ("not be below 0", lambda x: x >= 0),
    "MODEL.MIMICDET.MIMIC.GRADIENT_RATIO": ("not be below 0", lambda x: x >= 0),
    "MODEL.MIMICDET.MIMIC.START_ITER": ("not be below 0", lambda x: x >= 0),
    "MODEL.MIMICDET.MIMIC.WARMUP_ITERS": ("not be below 0", lambda x: x >= 0),
    "MODEL.MIMICDET.MIMIC.STOP_ITER": ("not be below 0", lambda x: x >= 0),
    "MODEL.MIMICDET.MIMIC.MAX_BACKGROUND": ("lie in [0, 1]", lambda x: 0 <= x <= 1),
    "MODEL.MIMICDET.MIMIC.TEACHER_EMA": ("lie in [0, 1)", lambda x: 0 <= x < 1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("be at least 1", lambda x: x >= 1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": ("be at least 1", lambda x: x >= 1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("be at least 1", lambda x: x >= 1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("lie in [0, 1]", lambda x: 0 <= x <= 1),
    "MODEL.MIMICDET.REFINEMENT.CENTER_RATIO": ("lie in (0, 1]", lambda x: 0 < x <= 1),
    "MODEL.MIMICDET.REFINEMENT.PRIOR_PROB": ("lie between 0 and 1", lambda x: 0 < x < 1),
    "MODEL.MIMICDET.REFINEMENT.SCALE_RANGE": (
        "be two numbers that ascend above 0",
        lambda x: len(x) == 2 and 0 < x[0] < x[1],
    ),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (
        "be [[1.0]], one square anchor a location (3.2)",
        lambda x: all(list(ratios) == [1.0] for ratios in x),
    ),
}


def is_mimicdet(cfg) -> bool:
    """Whether the config builds a MimicDet or a class that extends it."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), MimicDet)


@config_check
def check_registered_names(cfg) -> list[str]:
    """Names of parts that are not registered; building the model would end in a KeyError."""
    model = cfg.MODEL
    return [
        f"{key}: no {name!r} is registered" + near_names(name, (known for known, _ in registry))
        for key, name, registry in (
            ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
            ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
            ("MODEL.ANCHOR_GENERATOR.NAME", model.ANCHOR_GENERATOR.NAME, ANCHOR_GENERATOR_REGISTRY),
            ("MODEL.RPN.HEAD_NAME", model.RPN.HEAD_NAME, RPN_HEAD_REGISTRY),
            ("MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY),
        )
        if name not in registry
    ]


@config_check
def check_resnet(cfg) -> list[str]:
    """What Detectron2's ResNet would end in a KeyError or an assertion for."""
    keys, problems = cfg.MODEL.RESNETS, []
    name = cfg.MODEL.BACKBONE.NAME
    if "resnet" not in (cfg.MODEL.PYRAMID.BOTTOM_UP if name in PYRAMIDS else name):
        return problems
    if keys.DEPTH not in (18, 34, 50, 101, 152):
        problems.append(f"MODEL.RESNETS.DEPTH is {keys.DEPTH}, not one of 18, 34, 50, 101, 152")
    if keys.DEPTH in (18, 34) and keys.RES2_OUT_CHANNELS != 64:
        problems.append(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {keys.RES2_OUT_CHANNELS}; a ResNet of depth "
            f"{keys.DEPTH} has 64"
        )
    return problems


@config_check
def check_mimicdet(cfg) -> list[str]:
    """Every contradiction in the config of a MimicDet, or of a class that extends it."""
    if not is_mimicdet(cfg):
        return []
    checks = (_check_values, _check_switches, _check_levels, _check_heads)
    if cfg.MODEL.MIMICDET.MIMIC.ENABLED:
        checks += (_check_schedule,)
    return [problem for check in checks for problem in check(cfg)]


def _check_values(cfg) -> Iterator[str]:
    values = {key: reduce(getattr, key.split("."), cfg) for key in (*FIXED, *RULES)}
    for key, (value, reason) in FIXED.items():
        if values[key] != value:
            yield f"{key} must be {value!r}, got {values[key]!r}: {reason}"
    for key, (rule, holds) in RULES.items():
        if not holds(values[key]):
            yield f"{key} must {rule}, got {values[key]!r}"
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 1:
        yield (
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: 0 takes the number "
            "from the data, which mimicdet.data.register_datasets(cfg) does before building"
        )
    rpn = cfg.MODEL.RPN
    if rpn.PRE_NMS_TOPK_TEST < rpn.POST_NMS_TOPK_TEST:
        yield (
            f"MODEL.RPN.PRE_NMS_TOPK_TEST {rpn.PRE_NMS_TOPK_TEST} must not be below "
            f"POST_NMS_TOPK_TEST {rpn.POST_NMS_TOPK_TEST}: inference has no NMS between the two "
            "(4.2)"
        )


def _check_switches(cfg) -> Iterator[str]:
    keys = cfg.MODEL.MIMICDET
    student, teacher, mimic = keys.STUDENT.ENABLED, keys.TEACHER.ENABLED, keys.MIMIC.ENABLED
    separate = keys.SEPARATE_TEACHER.CONFIG_FILE
    if not (student or teacher):
        yield "MODEL.MIMICDET.STUDENT.ENABLED and TEACHER.ENABLED are both False"
    if mimic and not student:
        yield "MODEL.MIMICDET.MIMIC.ENABLED needs STUDENT.ENABLED"
    if mimic and not (teacher or separate):
        yield ("MODEL.MIMICDET.MIMIC.ENABLED needs TEACHER.ENABLED or SEPARATE_TEACHER.CONFIG_FILE")
    if separate and teacher:
        yield (
            "MODEL.MIMICDET.SEPARATE_TEACHER.CONFIG_FILE is set and TEACHER.ENABLED is True: "
            "there can be one teacher"
        )
    if separate and not mimic:
        yield "MODEL.MIMICDET.SEPARATE_TEACHER.CONFIG_FILE is set, MIMIC.ENABLED False"
    if bool(separate) != bool(keys.SEPARATE_TEACHER.WEIGHTS):
        yield "MODEL.MIMICDET.SEPARATE_TEACHER needs both CONFIG_FILE and WEIGHTS"
    if keys.EVAL_HEAD not in ("student", "teacher"):
        yield f"MODEL.MIMICDET.EVAL_HEAD is {keys.EVAL_HEAD!r}: student or teacher"
    elif not (student if keys.EVAL_HEAD == "student" else teacher):
        yield (f"MODEL.MIMICDET.EVAL_HEAD is {keys.EVAL_HEAD!r}, whose ENABLED key is False")


def _check_levels(cfg) -> Iterator[str]:
    low, keys = cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.MIMICDET
    for name, read, maps in (
        ("ROI_HEADS", keys.TEACHER.ENABLED, cfg.MODEL.ROI_HEADS.IN_FEATURES),
        ("MIMICDET.STUDENT", keys.STUDENT.IN_FEATURES, keys.STUDENT.IN_FEATURES),
    ):
        if read and len(maps) != len(low):
            yield (
                f"MODEL.{name}.IN_FEATURES {list(maps)} must pair one to one with "
                f"MODEL.RPN.IN_FEATURES {list(low)}"
            )
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if len(sizes) not in (1, len(low)) or any(len(s) != 1 for s in sizes):
        yield (
            f"MODEL.ANCHOR_GENERATOR.SIZES {sizes} must give one size for each level of "
            f"MODEL.RPN.IN_FEATURES {list(low)}"
        )
    elif any(b < a for a, b in zip(sizes, sizes[1:])):
        yield (
            f"MODEL.ANCHOR_GENERATOR.SIZES {sizes} must ascend, as the levels of "
            f"MODEL.RPN.IN_FEATURES {list(low)} do"
        )
    if len(cfg.MODEL.MIMICDET.STUDENT.KERNEL_SIZES) != len(low):
        yield (
            f"MODEL.MIMICDET.STUDENT.KERNEL_SIZES {cfg.MODEL.MIMICDET.STUDENT.KERNEL_SIZES} must "
            f"have one kernel for each level of MODEL.RPN.IN_FEATURES {list(low)}"
        )


def _check_heads(cfg) -> Iterator[str]:
    keys = cfg.MODEL.MIMICDET
    for key, name, known in (
        ("TEACHER.HEAD", keys.TEACHER.HEAD, HEADS),
        ("STUDENT.ALIGNMENT", keys.STUDENT.ALIGNMENT, ALIGNMENTS),
    ):
        if name not in known:
            yield f"MODEL.MIMICDET.{key} is {name!r}, not one of {', '.join(known)}"
    student = keys.STUDENT
    starts_at_box = getattr(ALIGNMENTS.get(student.ALIGNMENT), "start_at_box", None)
    if student.OFFSET_INIT != "random" and starts_at_box is AlignmentLayer.start_at_box:
        yield (
            f"MODEL.MIMICDET.STUDENT.OFFSET_INIT {student.OFFSET_INIT!r} needs ALIGNMENT 'guided', "
            f"got {student.ALIGNMENT!r}"
        )
    if keys.MIMIC.ENABLED and keys.TEACHER.ENABLED:
        if keys.STUDENT.DUAL_PATH != (keys.TEACHER.HEAD == "dual_path"):
            yield (
                f"MODEL.MIMICDET.STUDENT.DUAL_PATH {keys.STUDENT.DUAL_PATH} does not mimic "
                f"MODEL.MIMICDET.TEACHER.HEAD {keys.TEACHER.HEAD!r}"
            )
        if keys.STUDENT.FEATURE_DIM != cfg.MODEL.ROI_BOX_HEAD.FC_DIM and not keys.MIMIC.PROJECTOR:
            yield (
                f"MODEL.MIMICDET.STUDENT.FEATURE_DIM {keys.STUDENT.FEATURE_DIM} must equal "
                f"MODEL.ROI_BOX_HEAD.FC_DIM {cfg.MODEL.ROI_BOX_HEAD.FC_DIM} to be mimicked "
                "without MIMIC.PROJECTOR"
            )


def _check_schedule(cfg) -> Iterator[str]:
    keys = cfg.MODEL.MIMICDET.MIMIC
    if 0 < keys.STOP_ITER <= keys.START_ITER:
        yield (
            f"MODEL.MIMICDET.MIMIC.STOP_ITER {keys.STOP_ITER} must be above START_ITER "
            f"{keys.START_ITER}"
        )
    student, head = cfg.MODEL.MIMICDET.STUDENT, cfg.MODEL.ROI_BOX_HEAD
    for name in ("COPY_OUTPUTS", "COPY_BRANCH", "SHARE_OUTPUTS"):
        if getattr(keys, name) and student.FEATURE_DIM != head.FC_DIM:
            yield (
                f"MODEL.MIMICDET.MIMIC.{name} needs STUDENT.FEATURE_DIM {student.FEATURE_DIM} to "
                f"equal MODEL.ROI_BOX_HEAD.FC_DIM {head.FC_DIM}"
            )
        if getattr(keys, name) and not cfg.MODEL.MIMICDET.TEACHER.ENABLED:
            yield f"MODEL.MIMICDET.MIMIC.{name} needs TEACHER.ENABLED"
    if keys.COPY_BRANCH:
        needs = {
            "TEACHER.HEAD 'dual_path' or 'light'": cfg.MODEL.MIMICDET.TEACHER.HEAD != "heavy",
            "STUDENT.OFFSET_INIT 'box'": student.OFFSET_INIT == "box",
            f"STUDENT.ALIGNMENT_DIM {student.ALIGNMENT_DIM} to be at least "
            f"MODEL.ROI_BOX_HEAD.FC_DIM {head.FC_DIM}": student.ALIGNMENT_DIM >= head.FC_DIM,
            "MODEL.ROI_BOX_HEAD.NUM_FC 2": head.NUM_FC == 2,
        }
        for need, met in needs.items():
            if not met:
                yield f"MODEL.MIMICDET.MIMIC.COPY_BRANCH needs {need}"
    if keys.COPY_OUTPUTS and keys.SHARE_OUTPUTS:
        yield "MODEL.MIMICDET.MIMIC.COPY_OUTPUTS has no effect with SHARE_OUTPUTS: set one of them"
    if keys.TEACHER_EMA and not cfg.MODEL.MIMICDET.TEACHER.ENABLED:
        yield (
            f"MODEL.MIMICDET.MIMIC.TEACHER_EMA {keys.TEACHER_EMA} needs TEACHER.ENABLED: a "
            "separate teacher is frozen"
        )
    if keys.TEACHER_EMA and not keys.DETACH_TEACHER:
        yield (
            f"MODEL.MIMICDET.MIMIC.TEACHER_EMA {keys.TEACHER_EMA} needs DETACH_TEACHER: an average "
            "has no gradient"
        )
