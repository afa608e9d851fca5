"""A trained two-stage teacher with a backbone of its own (Table 5)."""

import os
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import load_weights
from ..config import load_config
from ..structures import BoxQuery, HeadPredictions


class SeparateTeacher:
    """
    A frozen detector that answers about boxes which the student found.

    It is no nn.Module: it stays out of the student's state_dict, optimizer and DDP buckets, and
    training cannot switch it out of eval mode.
    """

    def __init__(self, model: nn.Module):
        """model: has teach(batched_inputs, query) -> HeadPredictions."""
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]], query: BoxQuery) -> HeadPredictions:
        """The teacher's features of the boxes, in the order of the query."""
        return self.model.teach(batched_inputs, query)


def build_separate_teacher(cfg) -> SeparateTeacher:
    """
    The teacher of MODEL.MIMICDET.SEPARATE_TEACHER. Raises FileNotFoundError for a missing file and
    ValueError where it does not fit the student: classes, feature width, branches, levels.
    """
    node = cfg.MODEL.MIMICDET.SEPARATE_TEACHER
    for key in ("CONFIG_FILE", "WEIGHTS"):
        path = node[key]
        if "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f"MODEL.MIMICDET.SEPARATE_TEACHER.{key}: there is no file {path!r}. Train the "
                "teacher first, or name its files."
            )
    teacher_cfg = load_config(node.CONFIG_FILE)
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    _check_fit(cfg, teacher_cfg, node.CONFIG_FILE)
    teacher_cfg.MODEL.MIMICDET.EVAL_HEAD = "teacher"
    model = build_model(teacher_cfg)
    load_weights(model, node.WEIGHTS, strict=True)
    return SeparateTeacher(model)


def _check_fit(cfg, teacher_cfg, path: str) -> None:
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
