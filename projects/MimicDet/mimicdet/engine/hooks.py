"""Hooks beside Detectron2's own."""

import json
import os
from pathlib import Path

from detectron2.engine import hooks
from detectron2.utils import comm

from ..utils.errors import file_errors, read_json
from ..utils.files import durable_path


class BestCheckpointer(hooks.BestCheckpointer):
    """
    Detectron2's BestCheckpointer that remembers the best value over a --resume.

    The value lies in a file beside the best checkpoint and not in the trainer's state: that is
    saved before the evaluation of the same iteration, so it would be one evaluation behind.
    """

    @property
    def _record(self) -> str:
        return os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.json")

    def before_train(self) -> None:
        if not os.path.isfile(self._record):
            return
        best = os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        # An earlier run's, which this one does not continue; or the run was killed before the file.
        if self.trainer.start_iter == 0 or not os.path.isfile(best):
            os.remove(self._record)
        else:
            record = read_json(Path(self._record))
            if record["metric"] == self._val_metric:
                self.best_metric, self.best_iter = record["value"], record["iteration"]

    def _update_best(self, val, iteration) -> bool:
        updated = super()._update_best(val, iteration)
        if updated:
            record = {"metric": self._val_metric, "value": val, "iteration": iteration}
            with file_errors(), durable_path(self._record) as new:
                new.write_text(json.dumps(record))
        return updated


class StopTraining(BaseException):
    """
    Ends the loop of training before SOLVER.MAX_ITER. No Exception, which the loop would log as a
    failure.
    """


class EarlyStopping(hooks.HookBase):
    """Ends training in all processes after `patience` evaluations without a better value."""

    def __init__(self, eval_period: int, patience: int, best: BestCheckpointer | None):
        """
        Args:
            eval_period: of iterations, as the evaluation's.
            best: knows the best value; of the main process alone.
        """
        self._period, self._patience, self._best = eval_period, patience, best

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period <= 0 or done % self._period or done >= self.trainer.max_iter:
            return
        best_iter = self._best.best_iter if self._best else None
        since = 0 if best_iter is None else (self.trainer.iter - best_iter) // self._period
        if max(comm.all_gather(since)) >= self._patience:
            raise StopTraining(
                f"Training ends after {done} iterations: no better value in the last "
                f"{self._patience} evaluations (TEST.PATIENCE)"
            )
