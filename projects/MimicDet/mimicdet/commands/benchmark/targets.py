"""The targets of the fast path, and what the measurements say of them."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from .results import find_group
from .timing import median_ratio

Results = dict[str, Any]

# The paper's resolution and data set, and the backbone of the targets.
_REFERENCE = {"backbone": "R-50", "num_classes": 80, "short_side": 800, "mode": "eval", "batch": 1}
_CASES = {"plain": "mimicdet", "optimized": "mimicdet-optimized"}


@dataclass(frozen=True)
class Target:
    """
    A number that must be at most (or at least) a limit. `measure` takes the results and returns
    None where they lack what it needs.
    """

    name: str
    limit: float
    measure: Callable[[Results], float | None]
    at_least: bool = False

    def verdict(self, results: Results) -> tuple[float | None, str]:
        """The number, and "met", "missed" or "not measured"."""
        value = self.measure(results)
        if value is None:
            return None, "not measured"
        met = value >= self.limit if self.at_least else value <= self.limit
        return value, "met" if met else "missed"


def _cases_of(results: Results, *needed: str, **settings: Any) -> dict[str, Any]:
    """The cases of the first group of these settings that holds the needed ones; none: empty."""
    group = find_group(results, {**_REFERENCE, **settings}, needed)
    return group["cases"] if group else {}


def _time(case: str, other: str, **settings: Any) -> Callable[[Results], float | None]:
    """Time of a case over that of another in the same group."""

    def measure(results: Results) -> float | None:
        cases = _cases_of(results, case, other, **settings)
        if not cases:
            return None
        return median_ratio(cases[case]["seconds"], cases[other]["seconds"])

    return measure


def _speed(case: str, other: str, **settings: Any) -> Callable[[Results], float | None]:
    """Images a second of a case over those of another."""
    return _time(other, case, **settings)


def _memory(case: str, other: str, **settings: Any) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        cases = _cases_of(results, case, other, **settings)
        if any("memory_mib" not in cases.get(name, {}) for name in (case, other)):
            return None
        return cases[case]["memory_mib"]["peak"] / cases[other]["memory_mib"]["peak"]

    return measure


def _head_share(case: str) -> Callable[[Results], float | None]:
    """S-head and post-processing over the whole."""

    def measure(results: Results) -> float | None:
        rounds = _cases_of(results, case).get(case, {}).get("stages")
        if not rounds:
            return None
        return median((r["S-head"] + r["post-processing"]) / sum(r.values()) for r in rounds)

    return measure


def _dense_to_sparse(results: Results) -> float | None:
    """Time of the dense S-head over that of the sparse one."""
    names = "mimicdet-dense", "mimicdet"
    cases = _cases_of(results, *names)
    rounds = [cases.get(name, {}).get("stages") for name in names]
    if not all(rounds):
        return None
    return median_ratio(*[[r["S-head"] for r in stages] for stages in rounds])


def _growth(case: str) -> Callable[[Results], float | None]:
    """Growth of the time from 400 to 1200 over the growth of the number of pixels."""

    def measure(results: Results) -> float | None:
        wanted = [{**_REFERENCE, "short_side": side} for side in (1200, 400)]
        groups = [find_group(results, settings, (case,)) for settings in wanted]
        if not all(groups):
            return None
        times = [median(group["cases"][case]["seconds"]) for group in groups]
        pixels = [group["settings"]["size"][0] * group["settings"]["size"][1] for group in groups]
        return (times[0] / times[1]) / (pixels[0] / pixels[1])

    return measure


def _latency(variant: str, limits: dict[str, float]) -> list[Target]:
    return [
        Target(f"{variant} model / {other}", limit, _time(_CASES[variant], other))
        for other, limit in limits.items()
    ]


def _training(batch: int, limits: dict[str, float]) -> list[Target]:
    settings = {"mode": "train", "batch": batch}
    return [
        Target(
            f"training step / {other}, batch {batch}", limit, _time("mimicdet", other, **settings)
        )
        for other, limit in limits.items()
    ]


CPU_TARGETS = [
    *_latency("plain", {"retinanet": 0.65, "fcos": 0.78, "faster-rcnn": 0.72, "backbone": 1.15}),
    *_latency(
        "optimized",
        {
            "retinanet": 0.40,
            "fcos": 0.48,
            "faster-rcnn": 0.45,
            "backbone-optimized": 1.15,
            "retinanet-optimized": 0.60,
        },
    ),
    *[
        Target(f"S-head + post-processing / total, {variant}", 0.08, _head_share(case))
        for variant, case in _CASES.items()
    ],
    Target("ONNX Runtime / plain model", 0.80, _time("mimicdet-onnx", "mimicdet")),
    Target("dense S-head / sparse S-head", 20, _dense_to_sparse, at_least=True),
    *_training(2, {"faster-rcnn": 1.10, "retinanet": 0.85}),
    Target(
        "training peak memory / faster-rcnn, batch 2",
        1.10,
        _memory("mimicdet", "faster-rcnn", mode="train", batch=2),
    ),
    *[
        Target(
            f"1203 classes / 3 classes, {variant}",
            1.10,
            _time(f"{case}-1203-classes", f"{case}-3-classes"),
        )
        for variant, case in _CASES.items()
    ],
    *[
        Target(f"growth of time / of pixels, 400 to 1200, {variant}", 1.0, _growth(case))
        for variant, case in _CASES.items()
    ],
]

CUDA_TARGETS = [
    *_latency("plain", {"retinanet": 0.75, "backbone": 1.20}),
    *_latency("optimized", {"retinanet": 0.75, "backbone-optimized": 1.20}),
    *[
        Target(
            f"images a second / retinanet, batch 8, {variant}",
            1.5,
            _speed(case, "retinanet", batch=8),
            at_least=True,
        )
        for variant, case in _CASES.items()
    ],
    *_training(2, {"faster-rcnn": 1.10}),
]


def targets_of(device: str) -> list[Target]:
    return CUDA_TARGETS if device.startswith("cuda") else CPU_TARGETS
