"""A trained two-stage teacher with a backbone of its own, for the mimic loss (Table 5)."""

from detectron2.config import CfgNode

from .teacher import FrozenTeacher, build_teacher, load_teacher_config


def build_separate_teacher(cfg: CfgNode) -> FrozenTeacher:
    """
    The teacher of MODEL.MIMICDET.SEPARATE_TEACHER. Raises FileNotFoundError for a missing file and
    ValueError where it does not fit the student: classes, feature width, branches, levels.
    """
    node = cfg.MODEL.MIMICDET.SEPARATE_TEACHER
    teacher_cfg = load_teacher_config(cfg, node, "MODEL.MIMICDET.SEPARATE_TEACHER")
    check_fit(cfg, teacher_cfg, node.CONFIG_FILE)
    teacher_cfg.MODEL.MIMICDET.EVAL_HEAD = "teacher"
    return build_teacher(cfg, teacher_cfg, config_file=node.CONFIG_FILE, weights=node.WEIGHTS)


def check_fit(cfg: CfgNode, teacher_cfg: CfgNode, path: str) -> None:
    """Raise ValueError with every key of the two configs that keeps the heads apart."""
    student, teacher = cfg.MODEL, teacher_cfg.MODEL
    pairs = {
        "MODEL.META_ARCHITECTURE": (student.META_ARCHITECTURE, teacher.META_ARCHITECTURE),
        "MODEL.MIMICDET.TEACHER.ENABLED": (True, teacher.MIMICDET.TEACHER.ENABLED),
        "MODEL.ROI_HEADS.NUM_CLASSES": (
            student.ROI_HEADS.NUM_CLASSES,
            teacher.ROI_HEADS.NUM_CLASSES,
        ),
        "MODEL.ROI_BOX_HEAD.FC_DIM (student: MODEL.MIMICDET.STUDENT.FEATURE_DIM)": (
            student.MIMICDET.STUDENT.FEATURE_DIM,
            teacher.ROI_BOX_HEAD.FC_DIM,
        ),
        "MODEL.MIMICDET.TEACHER.HEAD being dual_path (student: STUDENT.DUAL_PATH)": (
            student.MIMICDET.STUDENT.DUAL_PATH,
            teacher.MIMICDET.TEACHER.HEAD == "dual_path",
        ),
        "number of levels in MODEL.RPN.IN_FEATURES": (
            len(student.RPN.IN_FEATURES),
            len(teacher.ROI_HEADS.IN_FEATURES),
        ),
    }
    wrong = [f"{key}: {a!r} here, {b!r} there" for key, (a, b) in pairs.items() if a != b]
    if wrong:
        raise ValueError(
            f"the teacher of {path} does not fit the student:\n  " + "\n  ".join(wrong)
        )
