"""What stops training before values that are not finite reach the weights."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..utils.errors import UserError

# Optimizer steps that mixed precision skips in a row before training stops. Loss scaling starts at
# 2**16 and halves at each: by then it is 2**-14, so that the scale is not why gradients overflow.
MAX_SKIPPED = 30
_LOG_PERIOD = 100

logger = logging.getLogger(__name__)


class NonFiniteGuard(HookBase):
    """
    Stops training where a loss or a gradient is NaN or infinite, before the optimizer's step: the
    weights stay those of the step before. The error names the losses with rank and images, or the
    first parameter whose gradient is not finite.

    Under loss scaling (AMPTrainer) a gradient that overflows is the scaler's to skip: the steps
    skipped are counted as "amp/skipped_steps", and MAX_SKIPPED in a row stop training.

    It is a hook of the SimpleTrainer that runs the step (DefaultTrainer hands `after_backward` on
    to none of its own), and makes the CPU wait for a GPU once a step.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: what is trained, under DistributedDataParallel or not; in training it takes
                Detectron2's list of dicts and returns a dict of losses.
        """
        self.skipped = 0
        self._skipped_in_row = 0
        self._parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._images: list[Any] = []
        self._losses: dict[str, Tensor] = {}
        model.register_forward_pre_hook(self._keep_images)
        model.register_forward_hook(self._keep_losses)

    def _keep_images(self, model: nn.Module, inputs: tuple[list[dict[str, Any]]]) -> None:
        if model.training:
            self._images = [x.get("file_name", x.get("image_id", "?")) for x in inputs[0]]

    def _keep_losses(self, model: nn.Module, inputs: Any, losses: dict[str, Tensor]) -> None:
        if model.training:
            self._losses = {name: loss.detach() for name, loss in losses.items()}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a training step: a model that finds its own values not finite stops it too."""
        try:
            yield
        except FloatingPointError as error:
            raise self._diverged([f"{error} ({self._batch()})"]) from error

    def after_backward(self) -> None:
        """Raises UserError, see the class."""
        scaler = getattr(self.trainer, "grad_scaler", None)
        norm = get_total_norm([p.grad for _, p in self._parameters if p.grad is not None])
        values = torch.stack([norm.float(), *(x.float() for x in self._losses.values())])
        overflow = not torch.isfinite(values).all() and self._check()
        if scaler is not None:
            self._skipped_in_row = self._skipped_in_row + 1 if overflow else 0
            self.skipped += overflow
            get_event_storage().put_scalar("amp/skipped_steps", self.skipped, smoothing_hint=False)
            self._report_skipped(overflow)

    def _check(self) -> bool:
        """
        Raise UserError, but return True for gradients that are not finite under loss scaling; False
        where all is finite and only the norm is too large for its dtype.
        """
        values = {name: loss.item() for name, loss in self._losses.items()}
        losses = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
        name = self._first_parameter()
        if name is None and not losses:
            return False
        own = (", ".join(losses), self._batch())
        # Gradients are shared, so that all processes come here together; a loss need not be.
        found = comm.all_gather(own) if name else [own]
        faults = [f"{of_rank} ({batch})" for of_rank, batch in found if of_rank]
        if not faults and getattr(self.trainer, "grad_scaler", None) is not None:
            return True
        batches = "; ".join(batch for _, batch in found)
        raise self._diverged(faults or [f"the gradient of {name} is not finite ({batches})"])

    def _first_parameter(self) -> str | None:
        for name, parameter in self._parameters:
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return name.removeprefix("module.").removeprefix("student.")
        return None

    def _batch(self) -> str:
        of_rank = f" of rank {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return f"images {', '.join(map(str, self._images))}{of_rank}"

    def _diverged(self, found: list[str]) -> UserError:
        return UserError(
            f"training has diverged at iteration {self.trainer.iter}: {'; '.join(found)}. This "
            "step has changed no weight, and --resume goes on from the last checkpoint. Lower "
            "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS"
        )

    def _report_skipped(self, overflow: bool) -> None:
        if self._skipped_in_row >= MAX_SKIPPED:
            raise self._diverged(
                [f"gradients overflowed in {MAX_SKIPPED} steps in a row, at every loss scale"]
            )
        if overflow and self.skipped % _LOG_PERIOD == 1:
            logger.warning(
                "gradients overflowed at iteration %d: loss scaling skips the step and halves the "
                "scale (%d skipped so far)",
                self.trainer.iter,
                self.skipped,
            )
