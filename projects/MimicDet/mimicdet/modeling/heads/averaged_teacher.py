"""An exponential moving average of the T-head, for the S-head to imitate."""

import copy

import torch
from torch import Tensor, nn

from ..structures import BoxQuery, HeadPredictions
from .teacher_head import MimicTeacherHeads


def kept_share(decay: float, count: int) -> float:
    """The share of itself that an average keeps in step `count`, less while it has seen few."""
    return min(decay, (1 + count) / (10 + count))


class AveragedTeacher(nn.Module):
    """
    A copy of the T-head that follows it and keeps the share `kept_share` of itself in each step, as
    SOLVER.EMA does. It has no gradients. Not in the paper.
    """

    def __init__(self, head: MimicTeacherHeads, decay: float):
        """decay: in (0, 1)."""
        super().__init__()
        self.decay = decay
        self.head = copy.deepcopy(head).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, head: MimicTeacherHeads, restart: bool) -> None:
        """Take in the T-head of this step; restart: begin with its present weights."""
        if restart:
            self.steps.zero_()
        own, other = list(self.head.parameters()), list(head.parameters())
        count = int(self.steps)
        if count == 0:
            torch._foreach_copy_(own, other)
        else:
            torch._foreach_lerp_(own, other, 1 - kept_share(self.decay, count))
        self.steps += 1

    @torch.no_grad()
    def predict(self, features: dict[str, Tensor], query: BoxQuery) -> HeadPredictions:
        """The outputs for the boxes of the query; features: maps by name."""
        return self.head.predict(features, query.boxes, query.levels)
