"""The command line of tools/compare_runs.py."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from ...utils.errors import UserError, command, file_errors, make_folder
from ...utils.files import new_path
from ..report.page import number
from .page import write_page
from .plan import Plan, PlannedRun, plan_of_flags, plan_runs, read_plan
from .records import (
    Results,
    RunRecord,
    is_finished,
    merge,
    read_results,
    record,
    write_results,
)
from .runner import check_settings, locked, remove_weights, run_all, stops_as_interrupt
from .statistics import clearly_worse
from .tables import PARTS, markdown, update_page, updated_page

_DESCRIPTION = """
Train rows (configs with overrides) with several seeds each, on several data sets; tabulate AP and,
for pairs of rows, the paired difference with its 95 % interval. Finished runs are skipped,
interrupted ones go on. Without training: --report makes tables and a page of runs.json files,
--update the tables in Markdown pages.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare_runs.py", description=_DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    add = what.add_argument
    add("--config-files", nargs="+", metavar="FILE", help="a row for each")
    add("--plan", type=Path, metavar="FILE", help="rows, sets, seeds and pairs, as YAML")
    add("--report", type=Path, nargs="+", metavar="RUNS_JSON", help="no training: the page")
    add("--update", type=Path, nargs="+", metavar="PAGE", help="no training: the pages' tables")
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, metavar="SEED", help="default: the plan's, else 1 2")
    add("--output", type=Path, default=Path("output/comparison"), metavar="FOLDER")
    add("--sweep", nargs="+", default=[], metavar=("KEY", "VALUE"), help="a row for each value")
    add("--baseline", default="", metavar="ROW", help="pair every other row with this one")
    add("--jobs", type=int, default=1, help="runs at a time, each of one thread")
    add("--drop-worse", action="store_true", help="no further seeds of a row that is clearly worse")
    add("--remove-weights", action="store_true", help="remove checkpoints of finished runs")
    add("--markdown", action="store_true", help="with --report: print the tables instead")
    add("--part", choices=PARTS, default="", help="with --markdown: these tables alone")
    add("--title", default="Comparison", help="of the page")
    add("--check", action="store_true", help="with --update: write nothing, fail where one differs")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="overrides of all: KEY VALUE ...")
    return parser


def _read_plan(args: argparse.Namespace) -> Plan:
    if args.plan is None:
        seeds = args.seeds or [1, 2]
        return plan_of_flags(args.config_files, seeds, args.opts, args.sweep, args.baseline)
    if args.sweep or args.baseline or args.opts:
        raise UserError("--sweep, --baseline and --opts go with --config-files; a plan has its own")
    return read_plan(args.plan, args.seeds)


class Comparison:
    """The state of a plan in its output folder; runs.json and table.md follow it."""

    def __init__(self, plan: Plan, output: Path, drops: bool):
        """
        Args:
            drops: rows that are clearly worse get no further seeds.
        """
        self.plan, self.output, self.drops = plan, output, drops
        self.runs = plan_runs(plan, output)
        for run in self.runs:
            check_settings(run)
        self.results = Results()
        self._records: dict[tuple[str, str, int], RunRecord] = {}

    def update(self) -> None:
        """
        Read what is finished and write both files. Runs of another plan, or of seeds that are not
        asked for now, stay in runs.json.
        """
        path = self.output / "runs.json"
        own = Results([x.name for x in self.plan.rows], [x.name for x in self.plan.sets])
        own.pairs = list(self.plan.pairs)
        for run in self.runs:
            if run.key not in self._records and (finished := record(run)):
                self._records[run.key] = finished
        own.runs = list(self._records.values())
        planned = {run.key for run in self.runs}
        parts = [("the plan", own)]
        if path.is_file():
            before = read_results(path)
            before.dropped = []
            before.runs = [run for run in before.runs if run.key not in planned]
            parts.append((str(path), before))
        self.results = merge(parts)
        if self.drops:
            unfinished = {key[:2] for key in planned - self._records.keys()}
            worse = clearly_worse(self.results, self.plan.pairs)
            self.results.dropped = [x for x in worse if (x.set, x.row) in unfinished]
        write_results(self.results, path)
        with file_errors(), new_path(self.output / "table.md") as new:
            new.write_text(markdown(self.results), encoding="utf-8")

    def is_dropped(self, run: PlannedRun) -> bool:
        return any((x.set, x.row) == (run.set_name, run.row.name) for x in self.results.dropped)

    def execute(self, jobs: int, lock: int, removes_weights: bool) -> bool:
        """Run what is missing and tell how it goes on; returns whether all went well."""
        progress, well = Progress(self.runs, jobs), True
        with closing(run_all(self.runs, jobs, lock, self.is_dropped)) as events:
            for run, problem in events:
                if problem is None:
                    print(f"{progress.counts()} {run.title}: begins", flush=True)
                    continue
                progress.ended(run)
                # Its results may have been there, and read, before its process had ended.
                self._records.pop(run.key, None)
                if problem:
                    well = False
                    print(f"error: {problem}", file=sys.stderr, flush=True)
                    continue
                self.update()
                if removes_weights:
                    remove_weights(run)
                print(f"{progress.counts()} {run.title}: {self._told(run)}{progress.left()}")
        return well

    def _told(self, run: PlannedRun) -> str:
        finished = self._records[run.key]
        teacher = f", T-head {number(finished.teacher.get('AP'))}" if finished.teacher else ""
        seconds = number(finished.seconds, 0)
        return f"AP {number(finished.metrics['AP'])}{teacher}, {seconds} s"


class Progress:
    """How many runs have ended, and how long the others take if they take as long."""

    def __init__(self, runs: Sequence[PlannedRun], jobs: int):
        self.total, self.done = len(runs), sum(map(is_finished, runs))
        self._jobs, self._ended, self._begun = jobs, 0, time.monotonic()

    def ended(self, run: PlannedRun) -> None:
        self.done, self._ended = self.done + 1, self._ended + 1

    def counts(self) -> str:
        return f"[{self.done}/{self.total}]"

    def left(self) -> str:
        """Nothing at the end; rows that are dropped later are not known here."""
        if self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._begun) / self._ended * (self.total - self.done)
        return f", about {timedelta(seconds=round(seconds))} left"


def _report(args: argparse.Namespace) -> int:
    results = merge([(str(path), read_results(path)) for path in args.report])
    if args.markdown:
        print(markdown(results, args.part), end="")
    else:
        path = args.output / "report.html"
        write_page(results, path, args.title)
        print(path)
    return 0


def _update(args: argparse.Namespace) -> int:
    status = 0
    for path in args.update:
        if args.check:
            text, new_text = updated_page(path)
            if text != new_text:
                print(f"{path}: its tables are not those of the runs", file=sys.stderr)
                status = 1
        elif update_page(path):
            print(path)
    return status


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/compare_runs.py; exit code 1: a run failed, or --check found a difference."""
    args = build_parser().parse_args(argv)
    if args.report:
        return _report(args)
    if args.update:
        return _update(args)
    if args.jobs < 1:
        raise UserError("--jobs must be at least 1")
    comparison = Comparison(_read_plan(args), args.output, args.drop_worse)
    make_folder(args.output)
    with locked(args.output) as lock, stops_as_interrupt():
        comparison.update()
        well = comparison.execute(args.jobs, lock, args.remove_weights)
        comparison.update()
    print(markdown(comparison.results), end="")
    return 0 if well else 1
