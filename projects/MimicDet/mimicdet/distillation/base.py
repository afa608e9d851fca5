"""The seam: a method is a function of student and teacher tensors, added to the loss dict."""

from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

DISTILLATION_REGISTRY = Registry("DISTILLATION")
DISTILLATION_REGISTRY.__doc__ = "Distillation methods: called as method(cfg)."


class DistillationMethod(nn.Module):
    """
    One term (or a few) of the loss that compares student and teacher.

    A method is a module so that an adaptation layer, where it has one, trains with the student. It
    knows tensors, never a meta-architecture.
    """

    def forward(self, student: Any, teacher: Any) -> dict[str, Tensor]:
        """
        Args:
            student, teacher: records of tensors about the same boxes or positions.

        Returns:
            weighted losses by key; the keys do not depend on the batch.
        """
        raise TypeError(f"{type(self).__name__} must define forward(student, teacher)")

    def metrics(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Readable numbers about the step, for the logs; none by default."""
        return {}
