"""What runs leave behind, and runs.json: every run with its settings, results and curves."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...modeling.meta_arch.mimicdet import MimicDet
from ...utils.errors import UserError, file_errors, read_json
from ...utils.files import durable_path
from ...visualization.curves import Metrics, read_metrics
from .plan import Pair, PlannedRun

FORMAT = 1
EXECUTION = "run.json"  # in a run's folder: time and commit
TEACHER_METRICS = Path("inference_teacher") / "metrics.json"

Values = dict[str, float | None]  # metric -> percent; None: no such objects


@dataclass(frozen=True)
class RunRecord:
    """A finished run."""

    set: str
    row: str
    seed: int
    config: str
    opts: list[str]  # on top of it, but SEED and OUTPUT_DIR
    commit: str | None  # of the code; "+": with changes; None: not known
    iterations: int
    seconds: float | None  # of all its processes, evaluation included; None: not known
    metrics: Values  # of the head that training evaluates
    teacher: Values | None  # the T-head's; None: none, or it is what training evaluates
    curves: dict[str, list[list[float]]]  # scalar -> [iterations, values]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.set, self.row, self.seed

    @property
    def settings(self) -> tuple[str, dict[str, str]]:
        """The config and its overrides, whose order does not count: the last one of a key holds."""
        return self.config, dict(zip(self.opts[::2], self.opts[1::2]))


@dataclass(frozen=True)
class Dropped:
    """A row that is not run with more seeds on a set: it is clearly worse than its baseline."""

    set: str
    row: str
    baseline: str
    seeds: int  # paired ones
    high: float  # upper end of the interval of the difference in AP


@dataclass
class Results:
    """The content of runs.json."""

    rows: list[str] = field(default_factory=list)  # in the order of the tables
    sets: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)

    def of(self, set_name: str, row: str) -> list[RunRecord]:
        """The runs of a row on a set."""
        return [run for run in self.runs if (run.set, run.row) == (set_name, row)]

    def sort(self) -> None:
        order = {name: index for index, name in enumerate((*self.sets, *self.rows))}
        self.runs.sort(key=lambda run: (order[run.set], order[run.row], run.seed))


def last_values(metrics: Metrics, iteration: int) -> Values:
    """The box metrics of the last evaluation, where it came at `iteration` or later."""
    return {
        key.removeprefix("bbox/"): _finite(values[-1])
        for key, (iterations, values) in metrics.items()
        if key.startswith("bbox/") and iterations[-1] >= iteration
    }


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def final_results(run: PlannedRun) -> Values | None:
    """Metric -> percent of the evaluation after the last iteration; None: not finished."""
    # Detectron2 notes the final evaluation behind the last step, which is MAX_ITER - 1.
    values = last_values(_metrics(run.folder / "metrics.json"), run.cfg.SOLVER.MAX_ITER)
    return values if "AP" in values else None


def teacher_results(run: PlannedRun) -> Values | None:
    """The same of the T-head; None: not evaluated."""
    return last_values(_metrics(run.folder / TEACHER_METRICS), 0) or None


def has_second_head(run: PlannedRun) -> bool:
    """Whether there is a T-head beside the head that training evaluates."""
    keys = run.cfg.MODEL.MIMICDET
    is_mimicdet = run.cfg.MODEL.META_ARCHITECTURE == MimicDet.__name__
    return is_mimicdet and keys.TEACHER.ENABLED and keys.EVAL_HEAD == "student"


def is_finished(run: PlannedRun) -> bool:
    """Whether all is there that belongs to its record."""
    second = not has_second_head(run) or teacher_results(run) is not None
    return second and final_results(run) is not None


def _metrics(path: Path) -> Metrics:
    try:
        return read_metrics(path)
    except UserError:  # not begun, or not one record yet
        return {}


def record(run: PlannedRun) -> RunRecord | None:
    """The run's record; None: not finished."""
    if not is_finished(run):
        return None
    path = run.folder / EXECUTION
    execution = read_json(path) if path.is_file() else {}  # None of a run of train_net.py
    return RunRecord(
        set=run.set_name,
        row=run.row.name,
        seed=run.seed,
        config=run.row.config_file,
        opts=list(run.opts),
        commit=execution.get("commit"),
        iterations=run.cfg.SOLVER.MAX_ITER,
        seconds=execution.get("seconds"),
        metrics=final_results(run) or {},
        teacher=teacher_results(run) if has_second_head(run) else None,
        curves=_curves(_metrics(run.folder / "metrics.json")),
    )


def _curves(metrics: Metrics) -> dict[str, list[list[float]]]:
    """AP and the mimic cosines over the iterations, as far as they are finite."""
    curves = {}
    for key, (iterations, values) in metrics.items():
        if key == "bbox/AP" or key.startswith("mimic/cosine"):
            points = [(int(i), _finite(v)) for i, v in zip(iterations, values) if math.isfinite(v)]
            if points:
                curves[key.removeprefix("bbox/")] = [list(x) for x in zip(*points)]
    return curves


def write_results(results: Results, path: Path) -> None:
    """Write runs.json, whole or not at all; UserError where that cannot be."""
    results.sort()
    content = {"format": FORMAT, **asdict(results)}
    runs = ",\n".join(json.dumps(run, allow_nan=False) for run in content.pop("runs"))
    head = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}")
    with file_errors(path), durable_path(path) as new:
        new.write_text(f'{head},\n "runs": [\n{runs}\n]}}\n', encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read runs.json; UserError names the file where it is none."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no runs.json of format {FORMAT}")
    try:
        return Results(
            list(content["rows"]),
            list(content["sets"]),
            [Pair(**x) for x in content["pairs"]],
            [Dropped(**x) for x in content["dropped"]],
            [_run_record(x) for x in content["runs"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no runs.json: {error!r}") from error


def _run_record(content: Mapping[str, Any]) -> RunRecord:
    run = RunRecord(**content)
    for name, kind in (("set", str), ("row", str), ("seed", int), ("metrics", dict)):
        if not isinstance(getattr(run, name), kind):
            raise ValueError(f"{name} is {getattr(run, name)!r}")
    return run


def merge(parts: Sequence[tuple[str, Results]]) -> Results:
    """
    Several results as one; the rows keep the order in which they come.

    Args:
        parts: with what messages call each.

    Raises:
        UserError: a run is in two of them with other content, or a row is of two settings.
    """
    merged, found, settings = Results(), {}, {}
    for name, part in parts:
        for attribute in ("rows", "sets", "pairs", "dropped"):
            known = getattr(merged, attribute)
            known += [x for x in getattr(part, attribute) if x not in known]
        for run in part.runs:
            other, same = found.setdefault(run.key, (name, run))
            if same != run:
                raise UserError(f"{other} and {name} hold two runs {' '.join(map(str, run.key))}")
            other, same = settings.setdefault(run.key[:2], (name, run))
            if same.settings != run.settings:
                raise UserError(
                    f"{other} and {name}: row {run.row} has other settings there: "
                    f"{' '.join((same.config, *same.opts))} and {' '.join((run.config, *run.opts))}"
                )
    merged.runs = [run for _, run in found.values()]
    merged.sort()
    return merged
