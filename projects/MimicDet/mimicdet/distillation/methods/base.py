"""The distillation interface: a function of student and teacher tensors that gives losses."""

from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..tensors import DetectorLayout, DetectorTensors

DISTILLATION_REGISTRY = Registry("DISTILLATION")
DISTILLATION_REGISTRY.__doc__ = """
Distillation methods: called as method(cfg, student_layout, teacher_layout). A method that defines
default_config has a node DISTILLATION.<its name> in every config made after its registration.
"""

# Keys that every method has: default_config may set the first, see config.add_distillation_config.
SCHEDULE = ("LOSS_WEIGHT", "GRADIENT_RATIO", "START_ITER", "WARMUP_ITERS", "STOP_ITER")


class DistillationMethod(nn.Module):
    """
    One term (or a few) of the loss that compares student and teacher.

    A method is a module so that an adaptation layer, where it has one, trains with the student. It
    knows tensors, never a meta-architecture. What it sets in its constructor is checked against
    both detectors when a run is built, see pairing.check_pair:

        loss_names: the keys that forward returns, whatever the batch.
        needs_student, needs_teacher: attributes of DetectorTensors that it reads.
        agrees_on: names of pairing.AGREEMENTS that student and teacher must share.
        problems: what else keeps it from teaching this student by this teacher, a line each.
    """

    loss_names: tuple[str, ...] = ()
    needs_student: frozenset[str] = frozenset()
    needs_teacher: frozenset[str] = frozenset()
    agrees_on: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @classmethod
    def default_config(cls) -> CfgNode | None:
        """
        Its own settings with their defaults; None: it is no method of DISTILLATION.METHODS. The
        keys of SCHEDULE join them by themselves.
        """
        return None

    @classmethod
    def from_config(
        cls, cfg: CfgNode, student: DetectorLayout, teacher: DetectorLayout
    ) -> dict[str, Any]:
        """
        For a constructor under Detectron2's @configurable: the keys of default_config as arguments
        in lower case, and the two layouts as student and teacher.
        """
        keys = settings_of(cfg, cls)
        settings = {key.lower(): value for key, value in keys.items() if key not in SCHEDULE}
        return {**settings, "student": student, "teacher": teacher}

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        """The losses of loss_names, not weighted. The teacher's tensors carry no gradient."""
        raise TypeError(f"{type(self).__name__} must define forward(student, teacher)")

    def metrics(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Readable numbers about the step, for the logs, from forward's losses; none by default."""
        return {}

    def zeros(self, device: torch.device) -> dict[str, Tensor]:
        """Zeros that still reach every parameter: DistributedDataParallel waits for all of them."""
        zero = torch.zeros((), device=device)
        for parameter in self.parameters():
            zero = zero + 0 * parameter.sum()
        return dict.fromkeys(self.loss_names, zero)


def settings_of(cfg: Any, method: type[DistillationMethod]) -> CfgNode:
    """The node DISTILLATION.<name> of a method."""
    return cfg.DISTILLATION[method.__name__]
