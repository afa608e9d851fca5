"""Interleaved timing, its statistics, and how MimicDet's time at inference divides into stages."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from ...modeling.meta_arch.mimicdet import MimicDet

STAGES = ("pre-processing", "backbone", "refinement", "selection", "S-head", "post-processing")


@dataclass(frozen=True)
class Spread:
    """The median of some measurements with the quartiles around it."""

    median: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated; ValueError for no values."""
    if not values:
        raise ValueError("there are no measurements to summarize")
    low, median, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return Spread(median, low, high)


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """
    Median of the rounds' ratios. What slows the machine for a while slows a whole round, so that
    these are steadier than the ratio of two medians.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} and {len(denominator)} rounds have no common ratio")
    return statistics.median(a / b for a, b in zip(numerator, denominator))


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """
    Run every case once a round, in rotated order, and time it.

    Args:
        repeats: rounds that count; warmup: rounds before them that do not.
        synchronize: called before each reading of the clock.

    Returns:
        seconds of each case, one a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warmup + repeats):
        start = number % len(cases)  # each round begins with the next one
        for name in [*list(cases)[start:], *list(cases)[:start]]:
            synchronize()
            begin = clock()
            cases[name]()
            synchronize()
            if number >= warmup:
                seconds[name].append(clock() - begin)
    return seconds


class StageClock:
    """
    Reads the clock where one stage of MimicDet.inference ends and the next begins, while the model
    runs as always: the stages add up to the whole pass. `rounds` holds the seconds of each stage
    of every pass so far.
    """

    def __init__(self, model: nn.Module, synchronize: Callable[[], None]):
        """model: a MimicDet, or a module that holds one. ValueError for any other."""
        detectors = [m for m in model.modules() if isinstance(m, MimicDet)]
        if not detectors:
            raise ValueError(f"{type(model).__name__} has no stages: they are MimicDet's")
        self.model = model
        self._parts = detectors[0]
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
        seconds = np.diff(self._marks).tolist()
        self.rounds.append(dict(zip(STAGES, seconds, strict=True)))

    def _mark(self, *_: Any) -> None:
        self._synchronize()
        self._marks.append(time.perf_counter())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A mark before and after the backbone, before the selection, and around the S-head."""
        generator = self._parts.proposal_generator
        propose = generator.top_proposals

        def marked_propose(*args: Any, **kwargs: Any) -> Any:
            self._mark()
            return propose(*args, **kwargs)

        with ExitStack() as stack:
            for module in (self._parts.backbone, self._parts.student_head):
                stack.enter_context(module.register_forward_pre_hook(self._mark))
                stack.enter_context(module.register_forward_hook(self._mark))
            stack.enter_context(patch.object(generator, "top_proposals", marked_propose))
            yield
