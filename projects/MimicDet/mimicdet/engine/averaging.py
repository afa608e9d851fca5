"""The exponential moving average of the weights: SOLVER.EMA."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn

from ..modeling.heads.averaged_teacher import kept_share


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers; each once, though two layers share it."""
    return itertools.chain(model.parameters(), model.buffers())


class ModelAverage(HookBase):
    """
    Keeps an average of a model's weights and buffers, which the trainer evaluates and saves.

    As an item of the checkpointer it keeps the weights that train, so that --resume goes on with
    both. Every process computes the same average.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: what trains.
            decay: see SOLVER.EMA.DECAY.
        """
        self.model = model
        self.decay = decay
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["trained"])
        self._resumed = True

    def before_train(self) -> None:
        """Training begins with what the checkpointer loaded into the average."""
        if not self._resumed:
            self.model.load_state_dict(self.average.state_dict())

    @torch.no_grad()
    def after_step(self) -> None:
        decay = kept_share(self.decay, self.trainer.iter + 1)
        averages, values = [], []
        for average, value in zip(_tensors(self.average), _tensors(self.model)):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:  # a batch norm's counter
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
        if getattr(self.model, "copies", ()) and self.trainer.iter == self.model.copy_at:
            # An S-head that has just become a copy has no past worth averaging.
            self.average.student_head.load_state_dict(self.model.student_head.state_dict())
