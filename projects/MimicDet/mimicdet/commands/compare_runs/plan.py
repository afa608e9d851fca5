"""What is to be run: rows x data sets x seeds, from flags or from a plan file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...engine import setup_cfg
from ...utils.errors import UserError, check_choice
from .entries import as_list, as_mapping, as_mappings, as_text, read_yaml

_OWN_KEYS = ("SEED", "OUTPUT_DIR")
_ENTRIES = ("rows", "sets", "seeds", "pairs", "opts")
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Row:
    """A line of the table: a config file with overrides (key, value, key, value, ...)."""

    name: str
    config_file: str
    opts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Overrides that choose the data; the name "" is the config's own."""

    name: str = ""
    opts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two rows that are compared seed by seed: what `row` gains over `baseline`."""

    row: str
    baseline: str


@dataclass(frozen=True)
class Plan:
    """Every row is run with every seed on every data set."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    sets: tuple[DataSet, ...] = (DataSet(),)
    pairs: tuple[Pair, ...] = ()
    opts: tuple[str, ...] = ()  # overrides of all runs

    def __post_init__(self):
        """Raise UserError where names are not unique or unknown, or a key is the comparison's."""
        rows = [row.name for row in self.rows]
        names = {"config": rows, "seed": self.seeds, "set": [x.name for x in self.sets]}
        for what, values in names.items():
            twice = sorted({str(x) for x in values if values.count(x) > 1})
            if twice:
                raise UserError(f"{what} {', '.join(twice)} is named twice")
        for pair in self.pairs:
            check_choice("a pair's row", pair.row, rows)
            check_choice(f"the baseline of {pair.row}", pair.baseline, rows)
            if pair.row == pair.baseline:
                raise UserError(f"{pair.row} is its own baseline")
        keys = {key for x in (self, *self.sets, *self.rows) for key in x.opts[::2]}
        own = sorted(keys & set(_OWN_KEYS))
        if own:
            raise UserError(f"{', '.join(own)}: set by the comparison, see --seeds and --output")


@dataclass(frozen=True)
class PlannedRun:
    """One training: a row with one seed on one data set."""

    row: Row
    set_name: str
    seed: int
    folder: Path
    cfg: CfgNode
    opts: tuple[str, ...]  # all that is set on top of the config file but SEED and OUTPUT_DIR

    @property
    def all_opts(self) -> tuple[str, ...]:
        return (*self.opts, "SEED", str(self.seed), "OUTPUT_DIR", str(self.folder))

    @property
    def key(self) -> tuple[str, str, int]:
        return self.set_name, self.row.name, self.seed

    @property
    def title(self) -> str:
        return run_title(self.key)


def run_title(key: tuple[str, str, int]) -> str:
    """What messages and pages call a run; key: (set, row, seed)."""
    set_name, row, seed = key
    return " ".join(filter(None, (set_name, row, f"seed {seed}")))


def plan_of_flags(
    config_files: Sequence[str],
    seeds: Sequence[int],
    opts: Sequence[str] = (),
    sweep: Sequence[str] = (),
    baseline: str = "",
) -> Plan:
    """
    A row for each config file, named as the file.

    Args:
        opts: overrides of all runs: key, value, key, value, ...
        sweep: a key and its values; each config is run with each of them.
        baseline: a row that every other row is paired with; "": no pairs.

    Raises:
        UserError: see Plan; a key without values.
    """
    if sweep and len(sweep) < 2:
        raise UserError(f"--sweep {sweep[0]}: no values follow")
    rows = []
    for file in config_files:
        name = Path(file).stem
        rows += [] if sweep else [Row(name, file)]
        for value in sweep[1:]:
            label = sweep[0].rsplit(".", 1)[-1].lower()
            rows.append(Row(f"{name}_{label}_{value}", file, (sweep[0], value)))
    pairs = [Pair(row.name, baseline) for row in rows if baseline and row.name != baseline]
    return Plan(tuple(rows), tuple(seeds), pairs=tuple(pairs), opts=tuple(opts))


def read_plan(path: Path, seeds: Sequence[int] | None = None) -> Plan:
    """
    Read a plan file: plain YAML, a mapping of

    - rows: list of {name, config, opts}; opts, here and below: {KEY: value}, may be left out,
    - seeds: list of whole numbers,
    - sets: list of {name, opts}; may be left out: each config's own data,
    - pairs: list of {row, baseline}, names of rows; may be left out,
    - opts: overrides of all runs. A set's overrides come on top of them, a row's on top of these.

    Args:
        seeds: instead of the file's.

    Raises:
        UserError: names the file and the entry that is missing, unknown or of a wrong type.
    """
    content = read_yaml(path)
    try:
        content = as_mapping("the plan", content, required=("rows", "seeds"), known=_ENTRIES)
        rows = [
            Row(
                _name(f"{key}.name", x["name"]),
                as_text(f"{key}.config", x["config"]),
                _opts(key, x),
            )
            for key, x in as_mappings(
                "rows", content, ("name", "config"), ("name", "config", "opts")
            )
        ]
        sets = [
            DataSet(_name(f"{key}.name", x["name"]), _opts(key, x))
            for key, x in as_mappings("sets", content, ("name",), ("name", "opts"))
        ]
        fields = ("row", "baseline")
        pairs = [
            Pair(*(as_text(f"{key}.{field}", x[field]) for field in fields))
            for key, x in as_mappings("pairs", content, fields, fields)
        ]
        for index, seed in enumerate(as_list("seeds", content["seeds"])):
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise UserError(f"seeds[{index}] must be a whole number >= 0, got {seed!r}")
        return Plan(
            tuple(rows),
            tuple(seeds or content["seeds"]),
            tuple(sets) or (DataSet(),),
            tuple(pairs),
            _opts("", content),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _name(key: str, value: Any) -> str:
    """A name that is also a folder's."""
    if not _NAME.fullmatch(as_text(key, value)):
        raise UserError(f"{key}: letters, digits and any of _ . + - make a name, not {value!r}")
    return value


def _opts(key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """KEY: value pairs as they stand on a command line."""
    opts = entry.get("opts", {})
    key = f"{key}.opts".lstrip(".")
    if not isinstance(opts, dict):
        raise UserError(f"{key} must be a mapping of config keys, got {opts!r}")
    return tuple(part for k, value in opts.items() for part in (as_text(key, k), str(value)))


def plan_runs(plan: Plan, output: Path) -> list[PlannedRun]:
    """
    All runs, seed by seed, so that an interrupted comparison has a part of every row. All rows have
    the same initial weights by name, unless opts set MODEL.INIT_BY_NAME.

    Raises:
        UserError: what setup_cfg refuses, with the name of the row.
    """
    runs = []
    shared = ("MODEL.INIT_BY_NAME", "True", *plan.opts)
    for data in plan.sets:
        for row in plan.rows:
            opts = (*shared, *data.opts, *row.opts)
            where = f"row {row.name}" + (f" on set {data.name}" if data.name else "")
            try:
                cfg = setup_cfg(row.config_file, list(opts))
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            if cfg.TEST.PATIENCE:
                raise UserError(f"{where}: TEST.PATIENCE must be 0: all runs are of full length")
            for seed in plan.seeds:
                folder = output / data.name / row.name / f"seed_{seed}"
                own = cfg.clone()
                own.defrost()
                own.SEED, own.OUTPUT_DIR = seed, str(folder)
                own.freeze()
                runs.append(PlannedRun(row, data.name, seed, folder, own, opts))
    return sorted(runs, key=lambda run: plan.seeds.index(run.seed))
