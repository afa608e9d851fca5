"""What lets a run that was stopped go on as if it had not been."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.loader import FOR_STEP, TrainLoader, seed_generators
from ..utils.errors import UserError

logger = logging.getLogger(__name__)


class ResumableState(hooks.HookBase):
    """
    What a run needs beside Detectron2's checkpoint to go on as if it had not been stopped.

    - The seed that all processes share. Every random choice of step k, in the data and in the
      model, is drawn from (seed, rank, k), so that no generator's state has to be kept.
    - Running values that each process has of its own and only the first one's model is saved with:
      batch norms' statistics, and the running mean of positives of Detectron2's RetinaNet and
      FCOS, which is in no state_dict at all.

    It stands before the hooks that save, in every process. A run that goes on in another number of
    processes gives each of them the first one's values, and its data come in another order.
    """

    def __init__(self, models: Collection[nn.Module], seed: int, periods: Collection[int]):
        """
        Args:
            models: what trains, not wrapped in DistributedDataParallel, and averages of it.
            seed: >= 0, the same in all processes.
            periods: of the hooks that save, in iterations; 0: none.
        """
        self._models, self._seed = nn.ModuleList(models), seed
        self._periods = [period for period in periods if period > 0]
        self._others: list[dict[str, Any]] = []  # values of ranks 1, 2, ... when last gathered
        self._restored: dict[str, Any] | None = None  # values of this rank until training starts
        self._on_gpu = next(self._models.parameters()).is_cuda

    @torch.no_grad()
    def before_train(self) -> None:
        self._restart_loaders(self.trainer.start_iter)
        # Only here: other items of the checkpoint are loaded after the trainer's.
        for name, value in (self._restored or {}).items():
            module_name, _, attribute = name.rpartition(".")
            module = self._models.get_submodule(module_name)
            if isinstance(value, torch.Tensor):
                getattr(module, attribute).copy_(value)
            else:
                setattr(module, attribute, value)

    def _restart_loaders(self, start: int) -> None:
        trainer = self.trainer._trainer
        loader = trainer.data_loader
        if start > 0 and (self._restored is None or not isinstance(loader, TrainLoader)):
            logger.warning("--resume: the data come in another order than before")
        if not isinstance(loader, TrainLoader):  # a subclass's own
            return
        loader.restart(self._seed, start)
        trainer.reset_data_loader(lambda: loader)
        for hook in self.trainer._hooks:
            if isinstance(hook, hooks.PreciseBN) and not hook._disabled:
                times = start // hook._period if hook._period else 0
                hook._data_loader.restart(self._seed, times * hook._num_iter)

    def before_step(self) -> None:
        seed = seed_generators(self._seed, comm.get_rank(), self.trainer.iter, FOR_STEP)
        if self._on_gpu:
            torch.cuda.manual_seed(seed)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        saves = done >= self.trainer.max_iter or any(done % x == 0 for x in self._periods)
        if saves and comm.get_world_size() > 1:
            self._others = comm.all_gather(self._running_values())[1:]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "ranks": [self._running_values(), *self._others]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed = state["seed"]
        before, now = len(state["ranks"]), comm.get_world_size()
        self._restored = state["ranks"][comm.get_rank() if before == now else 0]
        if before != now:
            logger.warning(
                f"--resume: the run had {before} processes and goes on in {now}: the data come in "
                "another order than before"
            )

    def _running_values(self) -> dict[str, Any]:
        """This process's, by dotted name; without the tensors that the first one's model holds."""
        values: dict[str, Any] = {}
        for name, module in self._models.named_modules():
            if isinstance(module, DenseDetector) and hasattr(module, "loss_normalizer"):
                values[f"{name}.loss_normalizer"] = module.loss_normalizer
            if isinstance(module, _BatchNorm) and comm.get_rank() > 0:
                for key, buffer in module.named_buffers(recurse=False):
                    values[f"{name}.{key}"] = buffer.cpu().clone()
        return values


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


@contextmanager
def user_errors_without_traceback() -> Iterator[None]:
    """Detectron2's loop logs every exception with its traceback; not those of the user here."""
    train_loop = logging.getLogger("detectron2.engine.train_loop")
    train_loop.addFilter(_is_no_user_error)
    try:
        yield
    finally:
        train_loop.removeFilter(_is_no_user_error)
