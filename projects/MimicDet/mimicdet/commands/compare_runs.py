"""Several configs, each with several seeds, and a table of their AP: tools/compare_runs.py."""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..engine import setup_cfg
from ..utils.errors import UserError, command, make_folder
from ..visualization.curves import read_metrics

# A process for each run, as `python train_net.py` is: it leaves no loggers or data sets behind.
_TRAIN = "import sys; from mimicdet.commands.train import main; sys.exit(main())"
_OWN_KEYS = ("SEED", "OUTPUT_DIR")


@dataclass(frozen=True)
class PlannedRun:
    """One training: a config with one seed."""

    config_file: str
    name: str  # the row of the table that it belongs to
    seed: int
    folder: Path
    cfg: CfgNode
    opts: tuple[str, ...]  # everything that is set on top of the config file


def _rows(config_files: Sequence[str], sweep: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """(name, config file, overrides) of each row of the table."""
    if not sweep:
        return [(Path(file).stem, file, []) for file in config_files]
    key, *values = sweep
    if not values:
        raise UserError(f"--sweep {key}: no values follow")
    label = key.rsplit(".", 1)[-1].lower()
    return [
        (f"{Path(file).stem}_{label}_{value}", file, [key, value])
        for file in config_files
        for value in values
    ]


def plan_runs(
    config_files: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    opts: Sequence[str],
    sweep: Sequence[str] = (),
) -> list[PlannedRun]:
    """
    All runs, seed by seed, so that an interrupted comparison has a part of every config.

    Args:
        opts: overrides of all runs: key, value, key, value, ...
        sweep: a key and its values; each config is trained with each of them.

    Raises:
        UserError: two rows of one name, a seed twice, or what setup_cfg refuses.
    """
    rows = _rows(config_files, sweep)
    for what, values in (("config", [name for name, _, _ in rows]), ("seed", list(seeds))):
        twice = sorted({str(x) for x in values if values.count(x) > 1})
        if twice:
            raise UserError(f"{what} {', '.join(twice)} is named twice")
    own = sorted({*opts[::2], *sweep[:1]} & set(_OWN_KEYS))
    if own:
        raise UserError(f"{', '.join(own)}: set by the comparison, see --seeds and --output")
    runs = []
    for seed in seeds:
        for name, file, swept in rows:
            folder = output / name / f"seed_{seed}"
            all_opts = (*opts, *swept, "SEED", str(seed), "OUTPUT_DIR", str(folder))
            cfg = setup_cfg(file, list(all_opts))
            runs.append(PlannedRun(file, name, seed, folder, cfg, all_opts))
    return runs


def check_settings(run: PlannedRun) -> None:
    """Raise UserError where the folder holds a run with other settings."""
    path = run.folder / "config.yaml"
    if path.is_file() and path.read_text() != run.cfg.dump():
        raise UserError(
            f"{run.folder} holds a run with other settings: remove it, or choose another --output"
        )


def final_results(run: PlannedRun) -> dict[str, float] | None:
    """Metric -> percent of the evaluation after the last iteration; None: not finished."""
    try:
        metrics = read_metrics(run.folder / "metrics.json")
    except UserError:  # not begun, or not one record yet
        return None
    # Detectron2 notes the final evaluation behind the last step, which is MAX_ITER - 1.
    results = {
        key.removeprefix("bbox/"): float(values[-1])
        for key, (iterations, values) in metrics.items()
        if key.startswith("bbox/") and iterations[-1] >= run.cfg.SOLVER.MAX_ITER
    }
    return results if "AP" in results else None


def execute(run: PlannedRun) -> None:
    """
    Train and evaluate in a process of its own, from the last checkpoint where there is one; what it
    prints goes to console.txt in its folder.

    Raises:
        UserError: it failed, or left no AP of boxes (one data set in DATASETS.TEST).
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _TRAIN, "--config-file", run.config_file, "--resume-or-start"]
    console = run.folder / "console.txt"
    with console.open("w") as output:
        status = subprocess.run(
            [*command, *run.opts], stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if status:
        lines = console.read_text(errors="replace").strip().splitlines() or [""]
        raise UserError(f"{run.folder}: exit status {status}: {lines[-1]}")
    if final_results(run) is None:
        raise UserError(f"{run.folder}: no bbox/AP in metrics.json; one test set is needed")


def format_table(results: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """
    A Markdown table with a row for each config: AP of each seed, mean, and spread (the largest
    minus the smallest), then means of the other metrics.

    Args:
        results: config -> seed -> metric -> percent; a config without a seed yet shows "-".
    """
    finished = [metrics for seeds in results.values() for metrics in seeds.values()]
    others = list(dict.fromkeys(key for metrics in finished for key in metrics if key != "AP"))
    header = ["Config", "Seeds", "AP by seed", "Mean AP", "Spread", *others]
    rows = [header, ["---"] * len(header)]
    for name, seeds in results.items():
        ap = [seeds[seed]["AP"] for seed in sorted(seeds)]
        row = [name, ", ".join(map(str, sorted(seeds))), ", ".join(f"{x:.1f}" for x in ap)]
        row += [_mean(ap), f"{max(ap) - min(ap):.1f}" if ap else ""]
        row += [_mean([x[key] for x in seeds.values() if key in x]) for key in others]
        rows.append([cell or "-" for cell in row])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _mean(values: Sequence[float]) -> str:
    """Blank for no values, or where one is a NaN: no such objects."""
    mean = sum(values) / len(values) if values else float("nan")
    return "" if mean != mean else f"{mean:.1f}"


def run_all(runs: Sequence[PlannedRun], jobs: int) -> Iterator[tuple[PlannedRun, str]]:
    """
    Execute what is not finished, so many at a time. Yields each run when it has ended, with what
    went wrong ("": nothing); one that fails does not keep the others from running.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {pool.submit(execute, run): run for run in runs if final_results(run) is None}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, UserError):
                raise error
            yield futures[future], str(error or "")


def write_table(runs: Sequence[PlannedRun], path: Path) -> str:
    """Write the table of what is finished; return its text."""
    results: dict[str, dict[int, dict[str, float]]] = {run.name: {} for run in runs}
    for run in runs:
        metrics = final_results(run)
        if metrics is not None:
            results[run.name][run.seed] = metrics
    table = format_table(results)
    path.write_text(table)
    return table


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_runs.py",
        description="Train configs with several seeds each and tabulate AP, mean and spread. "
        "Finished runs are skipped, interrupted ones go on.",
    )
    add = parser.add_argument
    add("--config-files", nargs="+", required=True, metavar="FILE")
    add("--seeds", nargs="+", type=int, default=[1, 2], metavar="SEED")
    add("--output", type=Path, default="output/comparison", metavar="FOLDER")
    add("--sweep", nargs="+", default=[], metavar=("KEY", "VALUE"), help="a row for each value")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="overrides of all: KEY VALUE ...")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/compare_runs.py; exit code 1: a run failed."""
    args = build_parser().parse_args(argv)
    if args.jobs < 1:
        raise UserError("--jobs must be at least 1")
    runs = plan_runs(args.config_files, args.seeds, args.output, args.opts, args.sweep)
    for run in runs:
        check_settings(run)
    make_folder(args.output)
    path = args.output / "table.md"
    failed = False
    for run, problem in run_all(runs, args.jobs):
        failed |= bool(problem)
        if problem:
            print(f"error: {problem}", file=sys.stderr)
        else:
            print(f"{run.folder}: AP {final_results(run)['AP']:.1f}", flush=True)
        write_table(runs, path)
    print(write_table(runs, path), end="")
    return 1 if failed else 0
