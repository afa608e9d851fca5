"""A trained detector that teaches from outside the student: frozen, and part of nothing."""

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..checkpoint import load_weights
from ..config import check_config, load_config
from ..data.catalog import set_num_classes
from ..modeling.layers import channels_last_pays, mixed_precision
from ..modeling.meta_arch.config_checks import is_mimicdet
from ..modeling.structures import BoxQuery, HeadPredictions
from ..utils.errors import UserError
from .adapters import DetectorAdapter, build_adapter
from .tensors import DetectorTensors, Locations, TowerFeatures

Value = TypeVar("Value")


class FrozenTeacher:
    """
    A detector in eval mode, without gradients, that looks at the student's batch.

    It is no nn.Module: it stays out of the student's state_dict, optimizer and DDP buckets, and
    training cannot switch it out of eval mode.
    """

    def __init__(
        self,
        adapter: DetectorAdapter,
        *,
        source: str = "",
        amp: bool = False,
        student_format: str | None = None,
    ):
        """
        Args:
            source: where it comes from, for error messages and the checkpoint.
            amp: forward in float16 (GPU) or bfloat16 (CPU).
            student_format: INPUT.FORMAT of the batches; their channels are turned round where the
                teacher was trained on the other order. None: as the teacher's.
        """
        self.adapter = adapter
        self.model = adapter.model
        self.source = source
        self.amp = amp
        self.model.eval().requires_grad_(False)
        formats = {adapter.input_format, student_format or adapter.input_format}
        if len(formats) > 1 and formats != {"BGR", "RGB"}:
            raise UserError(
                f"INPUT.FORMAT is {student_format!r} of the student and {adapter.input_format!r} "
                f"of the teacher {source}: only BGR and RGB can be turned into each other"
            )
        self.turns_channels = len(formats) > 1

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> "TeacherTensors":
        """What the teacher offers of the batch, as tensors that autograd may keep."""
        if self.turns_channels:
            batched_inputs = [{**x, "image": x["image"].flip(0)} for x in batched_inputs]
        return TeacherTensors(self, batched_inputs)

    def run(self, function: Callable[[], Value]) -> Value:
        """
        Call the function without gradients and in the teacher's own precision.

        What it returns is copied: inference_mode saves the bookkeeping of a forward, but its
        tensors must not be saved for a backward, the student's.
        """
        with torch.inference_mode(), self.precision():
            value = function()
        return _copied(value)

    def precision(self) -> torch.autocast:
        """The teacher's own precision, whatever the student's is."""
        device = self.model.device.type
        dtype = torch.float16 if device == "cuda" else torch.bfloat16
        return torch.autocast(device, dtype=dtype, enabled=self.amp)

    @cached_property
    def fingerprint(self) -> str:
        """Of all parameters and buffers: tells whether a resumed run has the same teacher."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


class TeacherTensors(DetectorTensors):
    """A frozen teacher's offers of one batch; each is computed once, when it is first read."""

    def __init__(self, teacher: FrozenTeacher, batched_inputs: list[dict[str, Any]]):
        self._teacher = teacher
        self._inputs = batched_inputs

    @cached_property
    def _tensors(self) -> DetectorTensors:
        with torch.inference_mode(), self._teacher.precision():
            return self._teacher.adapter.forward_teacher(self._inputs)

    @cached_property
    def features(self) -> list[Tensor]:
        return self._teacher.run(lambda: self._tensors.features)

    @cached_property
    def prediction_maps(self) -> list[Tensor]:
        return self._teacher.run(lambda: self._tensors.prediction_maps)

    @cached_property
    def anchors(self) -> list[Tensor]:
        return self._teacher.run(lambda: self._tensors.anchors)

    def class_logits_at(self, locations: Locations) -> Tensor:
        return self._teacher.run(lambda: self._tensors.class_logits_at(locations))

    def pred_boxes_at(self, locations: Locations) -> Tensor:
        return self._teacher.run(lambda: self._tensors.pred_boxes_at(locations))

    @cached_property
    def pred_boxes(self) -> Tensor:
        return self._teacher.run(lambda: self._tensors.pred_boxes)

    @cached_property
    def edge_logits(self) -> Tensor:
        return self._teacher.run(lambda: self._tensors.edge_logits)

    def cross_head(self, features: TowerFeatures) -> DetectorTensors:
        """Not by run: the gradients go through the frozen layers to the features."""
        with self._teacher.precision():
            return self._tensors.cross_head(features)

    def box_head_predictions_at(self, query: BoxQuery) -> HeadPredictions:
        return self._teacher.run(lambda: self._tensors.box_head_predictions_at(query))

    def cross_predictions(self, other: HeadPredictions) -> HeadPredictions:
        """Not by `run`: the student's features get gradients through the frozen layers."""
        return self._tensors.cross_predictions(other)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_copied(x) for x in value]
    return type(value)(**{name: _copied(x) for name, x in vars(value).items()})


def load_teacher_config(cfg: CfgNode, node: CfgNode, key: str) -> CfgNode:
    """
    The teacher's config on the student's device.

    Args:
        node: has CONFIG_FILE and WEIGHTS; key: its name in the config, for the errors.

    Raises:
        UserError: one of the two files is missing.
    """
    for part in ("CONFIG_FILE", "WEIGHTS"):
        path = node[part]
        if "://" not in path and not os.path.isfile(path):
            raise UserError(
                f"{key}.{part}: there is no file {path!r}. Train the teacher first, or name its "
                "files."
            )
    teacher_cfg = load_config(node.CONFIG_FILE)
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:  # taken from the data, which is the student's
        set_num_classes(teacher_cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return teacher_cfg


def build_teacher(cfg: CfgNode, teacher_cfg: CfgNode, node: CfgNode) -> FrozenTeacher:
    """
    The teacher with its weights, for the student of cfg; node: see load_teacher_config, perhaps
    with AMP. Raises UserError for a checkpoint that is not the teacher's.
    """
    check_config(teacher_cfg)
    amp = mixed_precision("DISTILLATION.TEACHER.AMP", node.get("AMP", False), cfg.MODEL.DEVICE)
    model = build_model(teacher_cfg)
    load_weights(model, node.WEIGHTS, strict=True)
    if channels_last_pays(cfg.MODEL.DEVICE, amp):
        model.to(memory_format=torch.channels_last)
    adapter = build_adapter(model, teacher_cfg.INPUT.FORMAT)
    return FrozenTeacher(adapter, source=node.CONFIG_FILE, amp=amp, student_format=cfg.INPUT.FORMAT)


def build_separate_teacher(cfg: CfgNode) -> FrozenTeacher:
    """
    The teacher of MODEL.MIMICDET.SEPARATE_TEACHER. Raises UserError for a missing file, and
    where it does not fit the student: classes, feature width, branches, levels.
    """
    node = cfg.MODEL.MIMICDET.SEPARATE_TEACHER
    teacher_cfg = load_teacher_config(cfg, node, "MODEL.MIMICDET.SEPARATE_TEACHER")
    check_fit(cfg, teacher_cfg, node.CONFIG_FILE)
    teacher_cfg.MODEL.MIMICDET.EVAL_HEAD = "teacher"
    return build_teacher(cfg, teacher_cfg, node)


def check_fit(cfg: CfgNode, teacher_cfg: CfgNode, path: str) -> None:
    """Raise UserError with every key of the two configs that keeps the heads apart."""
    student, teacher = cfg.MODEL, teacher_cfg.MODEL
    name = teacher.META_ARCHITECTURE
    width, same_width = student.ROI_BOX_HEAD.FC_DIM, ""
    if not student.MIMICDET.MIMIC.PROJECTOR:
        width = student.MIMICDET.STUDENT.FEATURE_DIM
        same_width = " (student: MODEL.MIMICDET.STUDENT.FEATURE_DIM)"
    pairs = {
        "MODEL.META_ARCHITECTURE": (name if is_mimicdet(teacher_cfg) else "MimicDet", name),
        "MODEL.MIMICDET.TEACHER.ENABLED": (True, teacher.MIMICDET.TEACHER.ENABLED),
        "MODEL.ROI_HEADS.NUM_CLASSES": (
            student.ROI_HEADS.NUM_CLASSES,
            teacher.ROI_HEADS.NUM_CLASSES,
        ),
        f"MODEL.ROI_BOX_HEAD.FC_DIM{same_width}": (width, teacher.ROI_BOX_HEAD.FC_DIM),
        "MODEL.MIMICDET.TEACHER.HEAD being dual_path (student: STUDENT.DUAL_PATH)": (
            student.MIMICDET.STUDENT.DUAL_PATH,
            teacher.MIMICDET.TEACHER.HEAD == "dual_path",
        ),
        "number of levels in MODEL.RPN.IN_FEATURES": (
            len(student.RPN.IN_FEATURES),
            len(teacher.ROI_HEADS.IN_FEATURES),
        ),
    }
    terms = student.MIMICDET.MIMIC.TERMS
    if terms.BOXES or terms.CROSS_BOXES or terms.QUALITY:
        weights = (x.ROI_BOX_HEAD.BBOX_REG_WEIGHTS for x in (student, teacher))
        pairs["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"] = tuple(map(tuple, weights))
    wrong = [f"{key}: {a!r} here, {b!r} there" for key, (a, b) in pairs.items() if a != b]
    if wrong:
        raise UserError(f"the teacher of {path} does not fit the student:\n  " + "\n  ".join(wrong))
