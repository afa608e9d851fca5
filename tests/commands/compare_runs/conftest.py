"""Two config files of one data set of four images; results by formula."""

import pytest

from mimicdet.commands.compare_runs.plan import Pair
from mimicdet.commands.compare_runs.records import Results, RunRecord
from tests.engine.tiny_run import write_coco, write_config


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    address = write_coco(root)
    return [str(write_config(root / f"{name}.yaml", address)) for name in ("alone", "taught")]


def run_record(row, seed, ap, set_name="cells", teacher=None, **changes):
    content = {
        "set": set_name,
        "row": row,
        "seed": seed,
        "config": f"configs/{row}.yaml",
        "opts": ["SOLVER.MAX_ITER", "40"],
        "commit": "0123456789abcdef",
        "iterations": 40,
        "seconds": 90.0,
        "metrics": {"AP": ap, "AP50": ap + 30, "APs": None, "AP-disc": ap - 1, "AP-square": None},
        "teacher": None if teacher is None else {"AP": teacher, "AP50": teacher + 30},
        "curves": {"AP": [[20, 40], [ap / 2, ap]]},
    }
    return RunRecord(**{**content, **changes})


@pytest.fixture
def results():
    """On cells the taught row gains 1, 2 and 3; on fish there is one pair and no T-head."""
    runs = [run_record("alone", seed, 40.0 + seed, teacher=50.0) for seed in (1, 2, 3)]
    cosines = {"mimic/cosine_cls": [[20, 40], [0.5, 0.8]], "mimic/cosine_loc": [[20], [0.6]]}
    for seed in (1, 2, 3):
        run = run_record("taught", seed, 40.0 + 2 * seed, teacher=52.0 + seed)
        run.curves.update(cosines)
        runs.append(run)
    runs += [run_record("alone", 1, 30.0, "fish"), run_record("taught", 1, 29.0, "fish")]
    pairs = [Pair("taught", "alone")]
    return Results(["alone", "taught", "waiting"], ["cells", "fish"], pairs, [], runs)
