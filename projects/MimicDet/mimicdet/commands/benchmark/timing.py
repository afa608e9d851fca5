"""Interleaved timing and its statistics: pure functions of numbers and callables."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


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


def synchronizer(device: str) -> Callable[[], None]:
    """What to call before reading the clock on "cpu" or "cuda"."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None
