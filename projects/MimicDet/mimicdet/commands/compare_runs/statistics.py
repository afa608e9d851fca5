"""Paired differences with their intervals; who is clearly worse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import Pair
from .records import Dropped, Results, RunRecord, Values

CONFIDENCE = 0.95
HEADS = ("S-head", "T-head")


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and the ends of its interval, NaN for one pair."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Gain:
    """What one arm of a comparison has over the other on a set."""

    set: str
    label: str
    seeds: tuple[int, ...]
    differences: dict[str, Difference]  # by metric


def student_t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """
    The t with P(|T| < t) = confidence for Student's T of so many degrees of freedom, by bisection
    of the exact sums for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"no quantile: {freedom} degrees of freedom, confidence {confidence}")

    def within(angle: float) -> float:
        """P(|T| < sqrt(freedom) tan(angle))."""
        odd = freedom % 2
        term, total = math.cos(angle) if odd else 1.0, 0.0
        for k in range(2 + odd, freedom + 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (k - 1) / k
        sine = math.sin(angle) * total
        return 2 / math.pi * (angle + sine) if odd else sine

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """
    Mean over the seeds that both have of values - baseline, and its 95 % interval: Student's t on
    the differences, which are taken to be normal. None where no seed is common.
    """
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    count = len(differences)
    if not count:
        return None
    mean = math.fsum(differences) / count
    if count == 1:
        return Difference(mean, math.nan, math.nan, 1)
    variance = math.fsum((x - mean) ** 2 for x in differences) / (count - 1)
    half = student_t_quantile(count - 1) * math.sqrt(variance / count)
    return Difference(mean, mean - half, mean + half, count)


def metric_names(runs: Sequence[RunRecord]) -> list[str]:
    """AP and AP50, then AP by class, as far as there are any."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return [x for x in ("AP", "AP50") if x in names] + [x for x in names if x.startswith("AP-")]


def head_values(run: RunRecord, head: str) -> Values | None:
    """Metrics of a head of HEADS; of a model with one head that is the S-head."""
    return run.metrics if head == HEADS[0] else run.teacher


def values_by_seed(
    results: Results, set_name: str, row: str, head: str, metric: str
) -> dict[int, float]:
    """The runs that have such a value."""
    found = {}
    for run in results.of(set_name, row):
        value = (head_values(run, head) or {}).get(metric)
        if value is not None:
            found[run.seed] = value
    return found


def pair_gains(results: Results, set_name: str) -> list[Gain]:
    """Each pair on the set, head by head."""
    gains = [
        _gain(results, set_name, (pair.row, head), (pair.baseline, head))
        for pair in results.pairs
        for head in HEADS
    ]
    return [gain for gain in gains if gain is not None]


def head_gains(results: Results, set_name: str) -> list[Gain]:
    """The S-head over the T-head of each row that has both."""
    gains = [_gain(results, set_name, (x, HEADS[0]), (x, HEADS[1])) for x in results.rows]
    return [gain for gain in gains if gain is not None]


def _gain(
    results: Results, set_name: str, arm: tuple[str, str], baseline: tuple[str, str]
) -> Gain | None:
    """None where no seed has both."""
    runs = [run for run in results.runs if run.set == set_name]
    differences, seeds = {}, set()
    for metric in metric_names(runs):
        values, others = (values_by_seed(results, set_name, *x, metric) for x in (arm, baseline))
        difference = paired_difference(values, others)
        if difference is not None:
            differences[metric] = difference
            seeds |= values.keys() & others.keys()
    if not differences:
        return None
    if arm[0] == baseline[0]:
        label = f"{arm[0]}: {arm[1]} - {baseline[1]}"
    else:
        two_heads = any(run.teacher for run in runs if run.row in (arm[0], baseline[0]))
        label = f"{arm[0]} - {baseline[0]}" + (f", {arm[1]}" if two_heads else "")
    return Gain(set_name, label, tuple(sorted(seeds)), differences)


def clearly_worse(results: Results, pairs: Sequence[Pair], least: int = 3) -> list[Dropped]:
    """
    Rows whose difference in AP to a baseline has its interval below 0 after `least` paired seeds or
    more. A row that is itself a baseline stays.
    """
    found = []
    baselines = {pair.baseline for pair in pairs}
    for set_name in results.sets:
        for pair in pairs:
            arms = (pair.row, pair.baseline)
            values = (values_by_seed(results, set_name, arm, HEADS[0], "AP") for arm in arms)
            difference = paired_difference(*values)
            if difference and difference.count >= least and difference.high < 0:
                if pair.row not in baselines:
                    found.append(
                        Dropped(set_name, *arms, difference.count, round(difference.high, 4))
                    )
    return found
