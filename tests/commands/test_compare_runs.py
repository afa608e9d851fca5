"""tools/compare_runs.py: planning, reading results, the table, and a run that is made once."""

import json
import math

import pytest

from mimicdet.commands import compare_runs
from mimicdet.commands.compare_runs import (
    check_settings,
    execute,
    final_results,
    format_table,
    main,
    plan_runs,
)
from tests.engine.tiny_run import SHORT, write_coco, write_config

# Stands for train_net.py: leaves the metrics of a finished run, or fails where the seed is 13.
FAKE_TRAIN = """
import json, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
if options["SEED"] == "13":
    sys.exit("some lines\\nthe teacher has no weights")
steps = int(options["SOLVER.MAX_ITER"])
record = {"iteration": steps, "bbox/AP": 10.0 * int(options["SEED"]), "bbox/AP50": 60.0}
path = pathlib.Path(options["OUTPUT_DIR"]) / "metrics.json"
with path.open("a") as file:
    file.write(json.dumps(record) + "\\n")
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Two config files of one data set of four images."""
    root = tmp_path_factory.mktemp("comparison")
    address = write_coco(root)
    return [str(write_config(root / f"{name}.yaml", address)) for name in ("alone", "taught")]


def plan(configs, output, seeds=(1, 2)):
    return plan_runs(configs, list(seeds), output, SHORT)


def write_metrics(run, *records):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in records))


def test_seed_by_seed(configs, tmp_path):
    runs = plan(configs, tmp_path)
    assert [f"{x.name} {x.seed}" for x in runs] == ["alone 1", "taught 1", "alone 2", "taught 2"]
    assert len({run.cfg.OUTPUT_DIR for run in runs}) == 4
    assert [run.cfg.SEED for run in runs] == [1, 1, 2, 2]
    assert runs[0].cfg.SOLVER.MAX_ITER == 2


def test_a_sweep_has_a_row_for_each_value(configs, tmp_path):
    sweep = ["SOLVER.BASE_LR", "0.1", "0.2"]
    runs = plan_runs(configs, [1], tmp_path, ["SOLVER.BASE_LR", "0.5"], sweep)
    assert [(run.name, run.cfg.SOLVER.BASE_LR) for run in runs] == [
        (f"{config}_base_lr_{value}", value)
        for config in ("alone", "taught")
        for value in (0.1, 0.2)
    ]
    assert [run.folder for run in runs] == [tmp_path / run.name / "seed_1" for run in runs]
    for bad, message in (
        (sweep[:1], "--sweep SOLVER.BASE_LR: no values"),
        ([*sweep, "0.2"], "alone_base_lr_0.2.*twice"),
        (["SEED", "3"], "SEED: set by the comparison"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_runs(configs, [1], tmp_path, SHORT, bad)


@pytest.mark.parametrize(
    ("repeats", "seeds", "opts", "message"),
    [
        (2, (1,), (), "config alone is named twice"),
        (1, (1, 1), (), "seed 1 is named twice"),
        (1, (1,), ("SEED", "3"), "SEED: set by the comparison"),
        (1, (1,), ("SOLVER.NONE", "3"), "SOLVER.NONE"),
    ],
)
def test_plans_that_cannot_work(configs, tmp_path, repeats, seeds, opts, message):
    with pytest.raises(ValueError, match=message):
        plan_runs(configs[:1] * repeats, list(seeds), tmp_path, opts)


def test_only_the_evaluation_after_the_last_step_counts(configs, tmp_path):
    run = plan(configs, tmp_path)[0]
    assert final_results(run) is None
    write_metrics(run, {"iteration": 1, "bbox/AP": 5.0, "total_loss": 1.0})
    assert final_results(run) is None
    last = {"iteration": 2, "bbox/AP": 7.0, "bbox/AP-disc": math.nan, "total_loss": 1.0}
    write_metrics(run, {"iteration": 1, "bbox/AP": 5.0}, last)
    results = final_results(run)
    assert results.keys() == {"AP", "AP-disc"} and results["AP"] == 7.0
    (run.folder / "metrics.json").write_text("")  # killed before its first record
    assert final_results(run) is None


def test_the_table():
    results = {
        "alone": {2: {"AP": 42.25, "AP50": 60.0}, 1: {"AP": 47.0, "AP50": math.nan}},
        "taught": {1: {"AP": 50.0, "AP50": 70.04}},
        "waiting": {},
    }
    assert format_table(results).splitlines() == [
        "| Config | Seeds | AP by seed | Mean AP | Spread | AP50 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| alone | 1, 2 | 47.0, 42.2 | 44.6 | 4.8 | - |",
        "| taught | 1 | 50.0 | 50.0 | 0.0 | 70.0 |",
        "| waiting | - | - | - | - | - |",
    ]


def test_other_settings_are_not_mixed_in(configs, tmp_path):
    run = plan(configs, tmp_path)[0]
    check_settings(run)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.cfg.dump())
    check_settings(run)
    longer = plan_runs(configs, [1], tmp_path, [*SHORT, "SOLVER.BASE_LR", "0.5"])[0]
    with pytest.raises(ValueError, match="other settings"):
        check_settings(longer)


def test_a_failure_keeps_no_other_run_from_its_end(configs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_runs, "_TRAIN", FAKE_TRAIN)
    arguments = ["--config-files", *configs, "--output", str(tmp_path), "--jobs", "2"]
    assert main([*arguments, "--seeds", "1", "13", "2", "--opts", *SHORT]) == 1
    written = capsys.readouterr()
    assert written.err.count("exit status 1: the teacher has no weights") == 2
    table = (tmp_path / "table.md").read_text()
    assert written.out.endswith(table)
    assert "| alone | 1, 2 | 10.0, 20.0 | 15.0 | 10.0 | 60.0 |" in table
    assert main([*arguments, "--seeds", "1", "2", "--opts", *SHORT]) == 0
    sweep = ["--sweep", "SOLVER.BASE_LR", "0.1", "0.2"]
    assert main([*arguments, "--seeds", "1", *sweep, "--opts", *SHORT]) == 0
    assert "| alone_base_lr_0.2 | 1 | 10.0 |" in (tmp_path / "table.md").read_text()
    lines = (tmp_path / "alone" / "seed_1" / "metrics.json").read_text().splitlines()
    assert len(lines) == 1  # not run again


def test_errors_are_one_line(configs, tmp_path, capsys):
    arguments = ["--config-files", configs[0], "--output", str(tmp_path)]
    for more, message in ((["--jobs", "0"], "--jobs"), (["--opts", "SEED", "1"], "SEED")):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_real_run(configs, tmp_path):
    run = plan(configs, tmp_path)[0]
    execute(run)
    assert 0 <= final_results(run)["AP"] <= 100
    check_settings(run)  # what train_net.py writes is what the next call expects
    assert (run.folder / "model_final.pth").is_file()
