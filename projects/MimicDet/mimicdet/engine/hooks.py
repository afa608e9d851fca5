"""Hooks beside Detectron2's own."""

import json
import os

from detectron2.engine import hooks


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
        if self.trainer.start_iter > 0 and os.path.isfile(self._record):
            with open(self._record) as f:
                record = json.load(f)
            if record["metric"] == self._val_metric:
                self.best_metric, self.best_iter = record["value"], record["iteration"]

    def _update_best(self, val, iteration) -> bool:
        updated = super()._update_best(val, iteration)
        if updated:
            with open(self._record, "w") as f:
                record = {"metric": self._val_metric, "value": val, "iteration": iteration}
                json.dump(record, f)
        return updated
