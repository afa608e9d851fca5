"""DISTILLATION.INHERIT: a student that starts with its teacher's pyramid and head."""

import logging
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from ..modeling.backbone.pyramid import bottom_up_prefix
from ..utils.errors import UserError

logger = logging.getLogger(__name__)


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, source: str) -> list[str]:
    """
    Copy into the student, in place, what the teacher has by the same name and shape, parameters and
    buffers; but nothing of the network below the pyramid, which stays as the student's weights are.

    Args:
        source: where the teacher comes from, for the log and the error.

    Returns:
        The names of what was copied. Raises UserError where there is none.
    """
    own, given = student.state_dict(), teacher.state_dict()
    bottom_up = bottom_up_prefix(own)
    wanted = [name for name in own if not name.startswith(bottom_up)]
    fitting = [x for x in wanted if x in given and given[x].shape == own[x].shape]
    if not fitting:
        raise UserError(
            f"DISTILLATION.INHERIT: nothing of the teacher {source} fits the student by name and "
            f"shape, {bottom_up.removesuffix('.')} left out"
        )
    for name in fitting:
        own[name].copy_(given[name])
    rest = [name for name in wanted if name not in fitting]
    logger.info(
        f"DISTILLATION.INHERIT: {len(fitting)} of the student's {len(own)} tensors are those of "
        f"the teacher {source}: {_grouped(fitting)}"
        + (f"; without a counterpart there: {_grouped(rest)}" if rest else "")
    )
    return fitting


def _grouped(names: Iterable[str]) -> str:
    """'head.cls_score 2, head.cls_subnet 4': how many names begin with the same two parts."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{prefix} {count}" for prefix, count in sorted(counts.items()))
