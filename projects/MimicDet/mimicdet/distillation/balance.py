"""The weight of a loss by the size of its gradient."""

from functools import cached_property

import torch
from torch import Tensor

from ..utils.errors import UserError
from .tensors import DetectorTensors

# Losses are multiplied by it, so that no gradient in float16 is rounded to 0.
SCALE = 2.0**12


class GradientBalance:
    """
    Weighs the losses of one step by the norms of their gradients on the student's maps, of this
    process's images. What is measured by is measured once, and only where it is asked for.
    """

    def __init__(self, own: Tensor, student: DetectorTensors):
        """
        Args:
            own: the loss to measure by, the sum of the student's own. Its graph is kept.
        """
        self._own = own
        self._student = student

    def weight(self, loss: Tensor) -> Tensor:
        """
        The weight, a scalar without gradient, at which the loss's gradient has the norm of that of
        the student's own; 0 where it has none. UserError where no layer below the maps trains.
        """
        weight = self._own_norm / self._norm(loss)
        return torch.where(weight.isfinite(), weight, 0.0)

    @cached_property
    def _own_norm(self) -> Tensor:
        return self._norm(self._own)

    @cached_property
    def _maps(self) -> list[Tensor]:
        maps = [x for x in self._student.features if x.requires_grad]
        if not maps:
            raise UserError(
                "GRADIENT_RATIO: the student's maps have no gradient, all below is frozen"
            )
        return maps

    def _norm(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(
            SCALE * loss, self._maps, retain_graph=True, allow_unused=True
        )
        norms = [x.float().norm() for x in gradients if x is not None]
        return torch.stack(norms).norm() if norms else loss.new_zeros((), dtype=torch.float32)
