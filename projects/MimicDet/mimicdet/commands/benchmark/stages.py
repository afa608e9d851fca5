"""How MimicDet's time at inference divides into its stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ...modeling.meta_arch.mimicdet import MimicDet

STAGES = (
    "pre-processing",
    "backbone",
    "refinement",
    "selection",
    "S-head",
    "post-processing",
)


class StageClock:
    """
    Reads the clock where one stage of MimicDet.inference ends and the next begins, while the model
    runs as always: the stages add up to the whole pass. `rounds` holds the seconds of each stage
    of every pass so far.
    """

    def __init__(self, model: nn.Module, synchronize: Callable[[], None]):
        """model: a MimicDet, or a module that holds one. ValueError for any other."""
        found = [m for m in model.modules() if isinstance(m, MimicDet)]
        if not found:
            raise ValueError(f"{type(model).__name__} has no stages: they are MimicDet's")
        self.model = model
        self._parts = found[0]
        self._synchronize = synchronize
        self._marks: list[float] = []
        self.rounds: list[dict[str, float]] = []

    def measure(self, inputs: list[dict[str, Any]]) -> None:
        """Run one forward pass and add its stages to `rounds`."""
        self._marks = []
        with self._watched(), torch.no_grad():
            self._mark()
            self.model(inputs)
            self._mark()
        if len(self._marks) != len(STAGES) + 1:
            raise RuntimeError(
                f"MimicDet.inference passed {len(self._marks)} marks instead of {len(STAGES) + 1}"
            )
        pairs = zip(self._marks, self._marks[1:])
        self.rounds.append({name: end - start for name, (start, end) in zip(STAGES, pairs)})

    def _mark(self, *_: Any) -> None:
        self._synchronize()
        self._marks.append(perf_counter())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A mark before and after the backbone, before the selection, and around the S-head."""
        generator = self._parts.proposal_generator
        propose = generator.top_proposals

        def marked_propose(*args: Any, **kwargs: Any) -> Any:
            self._mark()
            return propose(*args, **kwargs)

        hooks = []
        for module in (self._parts.backbone, self._parts.student_head):
            hooks.append(module.register_forward_pre_hook(self._mark))
            hooks.append(module.register_forward_hook(self._mark))
        generator.top_proposals = marked_propose
        try:
            yield
        finally:
            del generator.top_proposals
            for hook in hooks:
                hook.remove()
