"""The weight of a loss by the size of its gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import UserError

# Both losses are multiplied by it, so that no gradient in float16 is rounded to 0.
SCALE = 2.0**12


def balanced_weight(loss: Tensor, own: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """
    The weight, a scalar without gradient, at which the gradient of a loss on the maps has the norm
    of another loss's: of this step and of this process's images. 0 where the loss has none.

    Args:
        loss, own: scalars of one graph; it is kept. own is the loss to measure by.
        maps: L x (N, C, Hl, Wl), what both are computed of.

    Raises:
        UserError: no layer below the maps trains.
    """
    maps = [x for x in maps if x.requires_grad]
    if not maps:
        raise UserError("GRADIENT_RATIO: the student's maps have no gradient, all below is frozen")
    weight = _norm(own, maps) / _norm(loss, maps)
    return torch.where(weight.isfinite(), weight, 0.0)


def _norm(loss: Tensor, maps: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(SCALE * loss, maps, retain_graph=True, allow_unused=True)
    norms = [x.float().norm() for x in gradients if x is not None]
    return torch.stack(norms).norm() if norms else loss.new_zeros((), dtype=torch.float32)
