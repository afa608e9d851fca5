"""What is timed: a forward pass in evaluation, or a training step."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver import get_default_optimizer_params
from detectron2.utils.events import EventStorage
from torch import nn

from ...distillation import Distiller, HeadMimic, Term, build_adapter
from ...modeling.meta_arch.mimicdet import MimicDet

MODES = ("eval", "train")


def make_workload(
    mode: str, model: nn.Module, inputs: list[dict[str, Any]]
) -> Callable[[], object]:
    """The work of one measurement: detections of a batch ("eval") or one step ("train")."""
    if mode == "train":
        return training_step(model, inputs)

    def detect() -> object:
        with torch.no_grad():
            return model(inputs)

    return detect


def training_step(model: nn.Module, inputs: list[dict[str, Any]]) -> Callable[[], object]:
    """
    Forward, backward and Detectron2's SGD with momentum; MimicDet with its mimic loss.

    The learning rate is zero: the work is the same, and all measurements see the same model.
    """
    if isinstance(model, MimicDet):
        model = Distiller(model, [Term(HeadMimic(dual_path=True))], build_adapter(model, "BGR"))
    model.train()
    optimizer = torch.optim.SGD(
        get_default_optimizer_params(model, base_lr=0.0),
        lr=0.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    storage = EventStorage()

    def step() -> None:
        with storage:
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step
