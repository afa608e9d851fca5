"""Runs as processes, resumed, stopped and dropped; what runs.json says of them."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from mimicdet.commands.compare_runs import main, runner
from mimicdet.commands.compare_runs.plan import plan_of_flags, plan_runs
from mimicdet.commands.compare_runs.records import (
    final_results,
    is_finished,
    merge,
    read_results,
    write_results,
)
from mimicdet.commands.compare_runs.runner import check_settings, locked, run_all
from tests.commands.compare_runs.conftest import run_record
from tests.engine.tiny_run import SHORT, environment

# Stands for train_net.py: leaves the metrics of a finished run, or fails where the seed is 13. The
# row "taught" has 30 AP less.
FAKE_TRAIN = """
import json, os, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
if options["SEED"] == "13":
    sys.exit("some lines\\nthe teacher has no weights")
steps = int(options["SOLVER.MAX_ITER"])
path = pathlib.Path(options["OUTPUT_DIR"]) / "metrics.json"
ap = 10.0 * int(options["SEED"]) - 30 * ("taught" in str(path.parent.parent.name)) + 40
records = [
    {"iteration": 0, "mimic/cosine_cls": 0.25, "threads": int(os.environ["OMP_NUM_THREADS"])},
    {"iteration": steps, "bbox/AP": ap, "bbox/AP50": 60.0, "bbox/AP-disc": float("nan")},
]
with path.open("a") as file:
    file.write("".join(json.dumps(x) + "\\n" for x in records))
path.with_name("model_final.pth").touch()
"""
FAKE_TEACHER = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "inference_teacher"
folder.mkdir()
(folder / "metrics.json").write_text('{"iteration": 2, "bbox/AP": 70.0}')
"""
# Stands for a long training; says that it runs, and its children too.
FAKE_LONG = """
import pathlib, subprocess, sys, time
folder = pathlib.Path(dict(zip(sys.argv, sys.argv[1:]))["OUTPUT_DIR"])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
(folder / "pids").write_text(f"{child.pid}")
time.sleep(300)
"""


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(runner, "_TRAIN", FAKE_TRAIN)
    monkeypatch.setattr(runner, "_EVALUATE_TEACHER", FAKE_TEACHER)
    monkeypatch.delenv("OMP_NUM_THREADS")


@pytest.fixture
def arguments(configs, tmp_path):
    return ["--config-files", *configs, "--output", str(tmp_path)]


def first_run(configs, output, *opts):
    return plan_runs(plan_of_flags(configs, [1], [*SHORT, *opts]), output)[0]


def write_metrics(run, *records):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in records))


def test_only_the_evaluation_after_the_last_step_counts(configs, tmp_path):
    run = first_run(configs, tmp_path)
    assert final_results(run) is None
    write_metrics(run, {"iteration": 1, "bbox/AP": 5.0, "total_loss": 1.0})
    assert final_results(run) is None
    last = {"iteration": 2, "bbox/AP": 7.0, "bbox/AP-disc": math.nan, "total_loss": 1.0}
    write_metrics(run, {"iteration": 1, "bbox/AP": 5.0}, last)
    assert final_results(run) == {"AP": 7.0, "AP-disc": None}
    assert not is_finished(run)  # the T-head is to be evaluated
    heads = ("TEACHER", "False", "MIMIC", "False")
    one_head = [x if x == "False" else f"MODEL.MIMICDET.{x}.ENABLED" for x in heads]
    without = first_run(configs, tmp_path, *one_head)
    assert is_finished(without)
    (run.folder / "metrics.json").write_text("")  # killed before its first record
    assert final_results(run) is None


def test_other_settings_are_not_mixed_in(configs, tmp_path):
    run = first_run(configs, tmp_path)
    check_settings(run)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.cfg.dump())
    check_settings(run)
    with pytest.raises(ValueError, match="other settings"):
        check_settings(first_run(configs, tmp_path, "SOLVER.BASE_LR", "0.5"))


def test_a_failure_keeps_no_other_run_from_its_end(fakes, arguments, tmp_path, capsys):
    arguments += ["--jobs", "2"]
    assert main([*arguments, "--seeds", "1", "13", "2", "--opts", *SHORT]) == 1
    written = capsys.readouterr()
    assert written.err.count("exit status 1: the teacher has no weights") == 2
    assert "[0/6] alone seed 1: begins" in written.out
    assert "alone seed 1: AP 50.0, T-head 70.0, " in written.out and " left\n" in written.out
    table = (tmp_path / "table.md").read_text()
    assert written.out.endswith(table)
    assert "| alone, S-head | 1, 2 | 50.0, 60.0 | 55.0 | 10.0 | 60.0 | - |" in table
    assert main([*arguments, "--seeds", "1", "2", "--opts", *SHORT]) == 0
    sweep = ["--sweep", "SOLVER.BASE_LR", "0.1", "0.2"]
    assert main([*arguments, "--seeds", "1", *sweep, "--opts", *SHORT]) == 0
    assert "| alone_base_lr_0.2, S-head | 1 | 50.0 |" in (tmp_path / "table.md").read_text()
    lines = (tmp_path / "alone" / "seed_1" / "metrics.json").read_text().splitlines()
    assert len(lines) == 2  # not run again


def test_what_is_kept_of_a_run(fakes, configs, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "code_commit", lambda: "abc+")
    arguments += ["--baseline", "alone", "--remove-weights"]
    assert main([*arguments, "--seeds", "1", "--opts", *SHORT]) == 0
    alone, taught = read_results(tmp_path / "runs.json").runs
    assert alone.config == configs[0] and alone.commit == "abc+" and alone.iterations == 2
    assert alone.opts == ["MODEL.INIT_BY_NAME", "True", *SHORT]
    assert alone.metrics == {"AP": 50.0, "AP50": 60.0, "AP-disc": None}
    assert alone.teacher == {"AP": 70.0} and taught.metrics["AP"] == 20.0
    assert alone.curves == {"mimic/cosine_cls": [[0], [0.25]], "AP": [[2], [50.0]]}
    assert 0 < alone.seconds < 60
    folder = tmp_path / "alone" / "seed_1"
    assert '"threads": 1' in (folder / "metrics.json").read_text()
    assert not (folder / "model_final.pth").exists()
    # Another seed later: both stay, and a row of other settings is refused.
    assert main([*arguments, "--seeds", "2", "--opts", *SHORT]) == 0
    assert len(read_results(tmp_path / "runs.json").runs) == 4
    assert main([*arguments, "--seeds", "3", "--opts", *SHORT, "SOLVER.BASE_LR", "0.5"]) == 2


# The row "alone" has its results, and goes on until another run has ended.
FAKE_SLOW = (
    FAKE_TRAIN
    + """
import time
if path.parent.parent.name == "alone":
    (path.parent / "inference_teacher").mkdir()
    (path.parent / "inference_teacher/metrics.json").write_text('{"iteration": 2, "bbox/AP": 70.0}')
    while "| taught, S-head | 1 |" not in path.parents[2].joinpath("table.md").read_text():
        time.sleep(0.05)
"""
)


def test_the_time_of_a_run_is_that_of_its_end(fakes, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_TRAIN", FAKE_SLOW)
    assert main([*arguments, "--seeds", "1", "--jobs", "2", "--opts", *SHORT]) == 0
    assert all(run.seconds > 0 for run in read_results(tmp_path / "runs.json").runs)


def test_the_users_number_of_threads_holds(fakes, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main([*arguments, "--seeds", "1", "--opts", *SHORT]) == 0
    assert '"threads": 3' in (tmp_path / "alone" / "seed_1" / "metrics.json").read_text()


def test_a_row_that_is_clearly_worse_is_dropped(fakes, arguments, tmp_path, capsys):
    arguments += ["--seeds", "1", "2", "3", "4", "5", "--baseline", "alone"]
    # The differences must not be equal to the last bit only.
    assert main([*arguments, "--drop-worse", "--opts", *SHORT]) == 0
    text = "taught was dropped after 3 seeds: the 95 % interval of its AP over alone ended at -30.0"
    assert text in capsys.readouterr().out
    results = read_results(tmp_path / "runs.json")
    assert [run.seed for run in results.runs if run.row == "taught"] == [1, 2, 3]
    assert [run.seed for run in results.runs if run.row == "alone"] == [1, 2, 3, 4, 5]
    assert [(x.row, x.seeds) for x in results.dropped] == [("taught", 3)]
    assert main([*arguments, "--opts", *SHORT]) == 0  # without the rule all are run
    results = read_results(tmp_path / "runs.json")
    assert len(results.runs) == 10 and not results.dropped
    assert main([*arguments, "--drop-worse", "--opts", *SHORT]) == 0
    assert not read_results(tmp_path / "runs.json").dropped  # there is nothing left to leave out


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_command_ends_its_runs(arguments, tmp_path, number):
    code = f"import sys; from mimicdet.commands.compare_runs import main, runner\n\
runner._TRAIN = {FAKE_LONG!r}; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments, "--jobs", "2", "--opts", *SHORT]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, the tests ignore it, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    files = [tmp_path / row / "seed_1" / "pids" for row in ("alone", "taught")]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    with pytest.raises(ValueError, match="a comparison is at work in it"), locked(tmp_path):
        pass
    os.kill(process.pid, number)
    assert process.wait(60) == 130 and process.stderr.read() == "\nstopped\n"
    wait_for(lambda: not any(alive(int(file.read_text())) for file in files))
    # The time that it took is known to the run that goes on.
    assert json.loads((files[0].parent / "run.json").read_text())["seconds"] > 0
    with locked(tmp_path):
        pass


def test_errors_are_one_line(arguments, capsys, tmp_path):
    for more, message in (
        (["--jobs", "0"], "--jobs"),
        (["--opts", "SEED", "1"], "SEED"),
        (["--baseline", "none"], "none"),
    ):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (tmp_path / "plan.yaml").write_text("rows: []")
    assert main(["--plan", str(tmp_path / "plan.yaml"), "--baseline", "a"]) == 2
    assert "--baseline" in capsys.readouterr().err


def test_a_real_run(configs, tmp_path):
    run = first_run(configs, tmp_path)
    with locked(tmp_path) as lock:
        assert list(run_all([run], 1, lock)) == [(run, None), (run, "")]
        assert list(run_all([run], 1, lock)) == []
    assert 0 <= final_results(run)["AP"] <= 100
    check_settings(run)  # what train_net.py writes is what the next call expects
    assert (run.folder / "model_final.pth").is_file()
    teacher = json.loads((run.folder / "inference_teacher" / "metrics.json").read_text())
    assert teacher["iteration"] == 2 and 0 <= teacher["bbox/AP"] <= 100


# ---------------------------------------------------------------- runs.json


def test_results_are_read_as_they_were_written(results, tmp_path):
    results.runs.reverse()
    write_results(results, tmp_path / "runs.json")
    again = read_results(tmp_path / "runs.json")
    assert again == results
    keys = [run.key for run in again.runs]
    assert keys[:2] == [("cells", "alone", 1), ("cells", "alone", 2)] and keys[-1][0] == "fish"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1}', '{"format": 1, "runs": [{}], "rows": [], "sets": []}']
)
def test_a_file_that_is_no_results(tmp_path, text):
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path} is no runs.json"):
        read_results(path)


def test_several_files_become_one(results, tmp_path):
    other = type(results)(["more", "alone"], ["cells"], [], [], [run_record("alone", 9, 45.0)])
    merged = merge([("a", results), ("b", other), ("c", results)])
    assert merged.rows == ["alone", "taught", "waiting", "more"]
    assert len(merged.runs) == 9 and merged.runs[3].seed == 9
    other.runs = [run_record("alone", 1, 45.0)]
    with pytest.raises(ValueError, match="a and b hold two runs cells alone 1"):
        merge([("a", results), ("b", other)])
    opts = ["SOLVER.MAX_ITER", "80", "SOLVER.BASE_LR", "1"]
    other.runs = [
        run_record("more", seed, 45.0, opts=x) for seed, x in ((1, opts), (2, opts[2:] + opts[:2]))
    ]
    assert merge([("b", other)]).runs == other.runs  # the order of overrides does not count
    other.runs = [run_record("alone", 9, 45.0, opts=["SOLVER.MAX_ITER", "80"])]
    with pytest.raises(ValueError, match="a and b: row alone has other settings"):
        merge([("a", results), ("b", other)])
