import argparse
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from PIL import Image

from mimicdet.commands import quickstart
from mimicdet.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "MODEL.FPN.OUT_CHANNELS 32 MODEL.MIMICDET.STUDENT.ALIGNMENT_DIM 32"
    " MODEL.MIMICDET.STUDENT.FEATURE_DIM 32 MODEL.ROI_BOX_HEAD.FC_DIM 32"
    " MODEL.ROI_BOX_HEAD.NUM_CONV 1 MODEL.ROI_BOX_HEAD.CONV_DIM 16 SOLVER.IMS_PER_BATCH 2"
    " SOLVER.STEPS () DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96"
).split()


def make_args(**changes):
    values = {
        "config_file": str(ROOT / "configs/Quickstart/mimicdet_R_18_FPN_shapes.yaml"),
        "output": "output",
        "resume": False,
        "num_images": 4,
        "score_threshold": 0.4,
        "opts": [],
    }
    return argparse.Namespace(**(values | changes))


def write_coco(folder):
    """Four images with one bright square each."""
    images, annotations = [], []
    for index in range(1, 5):
        pixels = np.full((96, 96, 3), 40, dtype=np.uint8)
        pixels[20:70, 10 * index : 10 * index + 50] = 220
        Image.fromarray(pixels).save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 96})
        annotations.append(
            {
                "id": index,
                "image_id": index,
                "category_id": 7,
                "bbox": [10 * index, 20, 50, 50],
                "area": 2500,
                "iscrowd": 0,
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "square"}],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def run_quickstart(output, *options):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "projects" / "MimicDet"),
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "quickstart.py"), "--output", str(output), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def iterations(output):
    lines = (output / "metrics.json").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["iteration"] for r in records if "total_loss" in r]


def test_whole_run_and_resume(tmp_path):
    address = f"('coco:{write_coco(tmp_path)}:{tmp_path}',)"
    output = tmp_path / "run"
    data = ["DATASETS.TRAIN", address, "DATASETS.TEST", address]
    first = run_quickstart(output, "--num-images", "2", *data, *SMALL, "SOLVER.MAX_ITER", "2")
    assert first.returncode == 0, first.stderr
    for text in (
        "1/4 data",
        "4 images, 4 objects",
        "iteration 2/2 (100 %)",
        "3/4 evaluation",
        "4/4 pictures and report",
    ):
        assert text in first.stdout, first.stdout
    assert "AP50" in first.stdout and "Seconds: data" in first.stdout
    # What the libraries say is in the log, not on the terminal.
    assert "Average Precision" not in first.stdout
    assert "Average Precision" in (output / "log.txt").read_text()
    for name in ("detections.png", "curves.png", "report.html", "model_final.pth", "config.yaml"):
        assert (output / name).stat().st_size > 0
        assert str(output / name) in first.stdout
    assert iterations(output) == [1]

    second = run_quickstart(output, "--resume", *data, *SMALL, "SOLVER.MAX_ITER", "3")
    assert second.returncode == 0, second.stderr
    assert iterations(output) == [1, 2]


def test_a_new_run_sets_the_metrics_of_the_last_one_aside(tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    (tmp_path / "metrics.json").write_text("old")
    quickstart.prepare_output(cfg, resume=True)
    assert (tmp_path / "metrics.json").read_text() == "old"
    quickstart.prepare_output(cfg, resume=False)
    assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "metrics.previous.json").read_text() == "old"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_file": "none/such.yaml"}, "none/such.yaml"),
        ({"opts": ["SOLVER.MAX_ITER"]}, "pairs.*SOLVER.MAX_ITER"),
        ({"opts": ["OUTPUT_DIR", "x"]}, "--output"),
        ({"num_images": 0}, "--num-images"),
        ({"output": __file__}, "is no folder"),
    ],
)
def test_a_command_line_that_cannot_work_is_refused_before_anything_is_written(changes, message):
    with pytest.raises(UserError, match=message):
        quickstart.check_arguments(make_args(**changes))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.MIMICDET.EVAL_HED", "teacher"], "EVAL_HED"),
        (["MODEL.MIMICDET.EVAL_HEAD", "both"], "EVAL_HEAD"),
        (["DATASETS.TRAIN", "('no_such_data',)"], "no_such_data"),
        (["DATASETS.TRAIN", "('coco:no_such.json',)"], "no_such.json"),
    ],
)
def test_a_config_that_cannot_be_is_one_message(opts, message, tmp_path):
    stream = io.StringIO()
    with pytest.raises(UserError, match=message):
        quickstart.make_data(make_args(opts=opts, output=str(tmp_path)), stream)


@pytest.mark.parametrize("installed", [True, False])
def test_the_default_starts_from_a_package_or_says_that_it_is_missing(
    installed, tmp_path, monkeypatch
):
    line = "" if installed else "pip install --no-deps a-package==1.0"
    monkeypatch.setattr(quickstart, "how_to_install", lambda address: line)
    stream = io.StringIO()
    default = str(ROOT / quickstart.DEFAULT_CONFIG)
    cfg = quickstart.make_data(make_args(config_file=default, output=str(tmp_path)), stream)
    assert cfg.MODEL.WEIGHTS.startswith("package://") is installed
    assert (line in stream.getvalue()) and ("random weights" in stream.getvalue()) is not installed
    assert cfg.DATASETS.TRAIN == ("mimicdet_bccd_train",) and cfg.MODEL.BACKBONE.FREEZE_AT == 0


def test_errors_end_in_status_2_and_one_line(capsys):
    assert quickstart.main(["--config-file", "none/such.yaml"]) == 2
    assert capsys.readouterr().err == ("error: config file 'none/such.yaml' does not exist\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def write_progress(stream):
    with EventStorage(0) as storage:
        line = quickstart.ProgressLine(40, stream)
        for iteration in range(40):
            storage.iter = iteration
            storage.put_scalars(total_loss=2.5, time=3.0)
            if iteration % 20 == 19:
                line.write()
        storage.iter = 40
        line.write()


def test_progress_in_a_log_is_a_line_each_time_with_loss_and_time_left():
    stream = io.StringIO()
    write_progress(stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "iteration 20/40 ( 50 %)" in lines[0] and "loss 2.500" in lines[0]
    assert "3.00 s/iteration" in lines[0] and "ETA 0:01:00" in lines[0]
    assert "ETA 0:00:00" in lines[1]


def test_progress_on_a_terminal_is_one_line_that_is_written_over():
    stream = Terminal()
    write_progress(stream)
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def test_the_ap_table_shows_every_figure_and_each_class():
    results = {"AP": 51.26, "AP50": 81.04, "APs": math.nan, "AP-circle": 60.0, "AP-big cross": 7.96}
    lines = quickstart.format_ap_table(results).splitlines()
    assert lines[0].split() == ["AP", "AP50", "APs"]
    assert lines[1].split() == ["51.3", "81.0", "-"]
    assert [ln.rsplit(maxsplit=1) for ln in lines[3:]] == [
        ["  class", "AP"],
        ["  circle", "60.0"],
        ["  big cross", "8.0"],
    ]


def test_box_results_of_one_or_several_data_sets():
    assert quickstart.box_results({"bbox": {"AP": 1.0}}, "a") == {"AP": 1.0}
    several = {"a": {"bbox": {"AP": 1.0}}, "b": {"bbox": {"AP": 2.0}}}
    assert quickstart.box_results(several, "b") == {"AP": 2.0}
    with pytest.raises(UserError, match="'a'"):
        quickstart.box_results({}, "a")
