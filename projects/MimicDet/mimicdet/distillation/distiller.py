"""Puts the seam into a training step: the student's losses and every method's, in one dict."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from .base import DISTILLATION_REGISTRY, DistillationMethod
from .separate_teacher import SeparateTeacher, build_separate_teacher


class Distiller(nn.Module):
    """
    What a trainer trains: calls the student and adds each method's losses to its loss dict.

    It wraps the student as a module, so that DistributedDataParallel sees one forward with all
    parameters that train, the methods' adaptation layers included. Evaluation is the student's.
    """

    def __init__(
        self,
        student: nn.Module,
        methods: Sequence[DistillationMethod] = (),
        teacher: SeparateTeacher | None = None,
        autocast_dtype: torch.dtype | None = None,
    ):
        """
        Args:
            student: any Detectron2 model; with methods it has
                forward_training(batched_inputs) -> (losses, TrainingTensors).
            methods: what to add; none: the student's losses alone.
            teacher: a teacher outside the student; None: the student's own second head.
            autocast_dtype: mixed precision of the training forward. It is here for a CPU, where
                bfloat16 needs no loss scaling; on a GPU Detectron2's AMPTrainer does it.
        """
        super().__init__()
        self.student = student
        self.methods = nn.ModuleList(methods)
        self.teacher = teacher
        self.autocast_dtype = autocast_dtype

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """Detectron2's contract: a dict of losses in training, detections in evaluation."""
        if not self.training:
            return self.student(batched_inputs)
        if self.autocast_dtype is None:
            return self._losses(batched_inputs)
        with torch.autocast(self.student.device.type, dtype=self.autocast_dtype):
            return self._losses(batched_inputs)

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        if not self.methods:
            return self.student(batched_inputs)
        losses, tensors = self.student.forward_training(batched_inputs)
        teacher = tensors.teacher
        if self.teacher is not None:
            teacher = self.teacher(batched_inputs, tensors.query)
        metrics = {}
        for method in self.methods:
            terms = method(tensors.student, teacher)
            twice = losses.keys() & terms.keys()
            if twice:
                raise ValueError(f"{type(method).__name__} writes losses twice: {sorted(twice)}")
            losses.update(terms)
            metrics.update(method.metrics(terms))
        if has_event_storage():
            get_event_storage().put_scalars(**metrics, smoothing_hint=True)
        return losses


def build_distiller(cfg, student: nn.Module) -> Distiller:
    """
    The student with the methods that the config asks for, on MODEL.DEVICE. SOLVER.AMP.ENABLED on a
    CPU means bfloat16; Detectron2's AMPTrainer is for CUDA alone.
    """
    keys = cfg.MODEL.MIMICDET
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    dtype = torch.bfloat16 if cfg.SOLVER.AMP.ENABLED and on_cpu else None
    methods: list[DistillationMethod] = []
    teacher = None
    if keys.MIMIC.ENABLED and cfg.MODEL.META_ARCHITECTURE == "MimicDet":
        methods = [DISTILLATION_REGISTRY.get("HeadMimic")(cfg)]
        if keys.SEPARATE_TEACHER.CONFIG_FILE:
            teacher = build_separate_teacher(cfg)
    return Distiller(student, methods, teacher, dtype).to(cfg.MODEL.DEVICE)
