"""The page about a run: read back as HTML, with parts of the run there or missing."""

import html.parser
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mimicdet.commands.report import write_report
from mimicdet.commands.report.cli import main
from mimicdet.commands.report.images import best_and_worst, score_image
from mimicdet.commands.report.page import line_chart
from mimicdet.commands.report.runs import RESULTS, read_log, read_run
from mimicdet.commands.report.sections import _pair_or_note
from mimicdet.engine import setup_cfg
from mimicdet.evaluation.matching import ImageBoxes
from mimicdet.visualization.curves import Panel
from tests.engine.tiny_run import BOXES, CLASSES, loggers_restored, write_coco, write_config

LOG = """
sys.platform                     linux
Python                           3.11.7 (main, May  9 2026) [GCC 12.2.0]
PyTorch                          2.11.0+cpu @/somewhere/torch
GPU available                    No: torch.cuda.is_available() == False
Total inference pure compute time: 0:00:05 (0.085223 s / iter per device, on 1 devices)
Total training time: 0:06:41 (0:00:12 on hooks)
Total inference pure compute time: 0:00:05 (0.095000 s / iter per device, on 1 devices)
"""


def perfect_results():
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "score": 0.9}
        for image, boxes in enumerate(BOXES, 1)
        for label, *box in boxes
    ]


def write_results(folder, results):
    folder.mkdir(exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of which the student missed the last image and the teacher found everything."""
    root = tmp_path_factory.mktemp("runs")
    run = root / "first"
    run.mkdir()
    write_config(run / "config.yaml", write_coco(root / "data"))
    records = [
        {"iteration": i, "total_loss": 4.0 / i, "loss_student_cls": 1 / i, "time": 0.5, "lr": 0.1}
        for i in (20, 40)
    ]
    records.append({"iteration": 40, "bbox/AP": 61.0, "bbox/AP50": 77.25})
    (run / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    (run / "log.txt").write_text(LOG)
    missing_last = [x for x in perfect_results() if x["image_id"] != len(BOXES)]
    write_results(run / "inference", missing_last)
    write_results(run / "inference_teacher", perfect_results())
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


class Reader(html.parser.HTMLParser):
    """Tables as lists of rows, texts, and everything that a browser would load."""

    def __init__(self):
        super().__init__()
        self.rows, self.text, self.addresses, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert not reader.open  # every element is closed
    return reader


def test_the_page_tells_what_the_run_did_and_loads_nothing(finished, tmp_path):
    path = write_report([finished], tmp_path / "deep" / "page.html", labels=["tiny <run>"])
    page = read(path)
    assert page.addresses and all(x.startswith(("#", "data:image/jpeg")) for x in page.addresses)
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["tiny <run>, teacher"][:3] == ["100.0"] * 3
    # Of the discs one of three is missed: 67 of 101 recalls; all squares are found.
    student = (100 * 67 / 101 + 100) / 2
    assert rows["tiny <run>, student"][0] == f"{student:.1f}"
    assert rows["tiny <run>, AP"] == [f"{student:.1f}", "100.0", f"{student - 100:.1f}"]
    assert rows[CLASSES[0]] == ["3", f"{100 * 67 / 101:.1f}"] and rows[CLASSES[1]][1] == "100.0"
    assert rows["missed"] == ["1", f"{100 - student:.2f}"]
    assert rows["background"] == ["0", "0.00"]
    assert rows["Iterations"] == ["40"] and rows["Inference, ms an image"] == ["95.0"]
    assert rows["Seconds an iteration, median"] == ["0.500"]
    assert rows["Training time"] == ["0:06:41"] and rows["Python"] == ["3.11.7"]
    text = " ".join(page.text)
    assert "4.jpg: F1 0.00; 0 correct, 0 wrong, 1 missed" in text and "Losses" in text
    assert "Notes" not in text


def test_runs_side_by_side_show_their_differences(finished, run, tmp_path):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("BASE_LR: 0.003", "BASE_LR: 0.007"))
    write_results(run / "inference", perfect_results())
    page = read(write_report([finished, run], tmp_path / "page.html"))
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["SOLVER.BASE_LR"] == ["0.003", "0.007"]
    assert rows[CLASSES[0]] == ["3", f"{100 * 67 / 101:.1f}", "100.0"]
    assert "first, student" in rows and "copy, student" in rows
    assert "AP on the test set" in page.text


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("metrics.json", "no metrics: {}: No such file"),
        (f"inference/{RESULTS}", "no detections of the student: {}: No such file"),
        ("config.yaml", "no config: there is no config file '{}'"),
        ("log.txt", None),
    ],
)
def test_what_is_missing_is_told_on_the_page(run, name, note, tmp_path):
    (run / name).unlink()
    text = " ".join(read(write_report([run], tmp_path / "page.html")).text)
    assert ("Notes" in text) == (note is not None)
    assert note is None or note.format(run / name) in text
    for title in ("Curves", "Errors", "Speed", "Best and worst images"):
        assert title in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{", "no detections of the student"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "category_id"),
        (json.dumps([{**perfect_results()[0], "image_id": 99}]), "image 99"),
    ],
)
def test_faulty_detections_are_told_on_the_page(run, content, reason, tmp_path):
    (run / "inference" / RESULTS).write_text(content)
    text = " ".join(read(write_report([run], tmp_path / "page.html")).text)
    assert reason in text and "copy, teacher" in text


def test_missing_data_are_told_on_the_page(run, tmp_path):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("annotations.json", "gone.json"))
    page = read(write_report([run], tmp_path / "page.html"))
    text = " ".join(page.text)
    assert "no ground truth" in text and "gone.json" in text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["copy, as logged in training"][:2] == ["61.0", "77.2"]


def test_the_inference_folder_is_the_evaluated_heads(run):
    shutil.rmtree(run / "inference_teacher")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("MIMICDET:", "MIMICDET:\n    EVAL_HEAD: teacher"))
    assert list(read_run(run).heads) == ["teacher"]


def test_errors_of_the_command_line_are_one_line(finished, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "empty")], "is it an OUTPUT_DIR"),
        ([str(finished), "--labels", "a", "b"], "2 labels for 1 runs"),
        ([str(finished), "--num-images", "-1"], "--num-images"),
    ):
        assert main([*arguments, "-o", str(tmp_path / "page.html")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert main([str(finished), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"


def test_the_teacher_is_evaluated_when_asked_for(run, tmp_path, capsys):
    shutil.rmtree(run / "inference_teacher")
    page = tmp_path / "page.html"
    with loggers_restored():
        assert main([str(run), "--eval-teacher", "-o", str(page)]) == 2
        assert "model_final.pth" in capsys.readouterr().err
        model = build_model(setup_cfg(str(run / "config.yaml")))
        torch.save({"model": model.state_dict()}, run / "model_final.pth")
        assert main([str(run), "--eval-teacher", "-o", str(page)]) == 0
    assert list(read_run(run).heads) == ["student", "teacher"]
    assert "copy, teacher" in " ".join(read(page).text)


def test_a_log_of_something_else_gives_no_facts():
    facts = read_log("nothing of the kind")
    assert facts.inference_seconds is None and facts.training_time is None and not facts.machine


# ---------------------------------------------------------------- images


def scene(image_id, truth, detected):
    """Unit squares at (10 x, 0): truth and detected are places, all of one class."""

    def boxes(places):
        return np.array([[10.0 * x, 0, 9, 9] for x in places]).reshape(-1, 4)

    zeros = np.zeros(len(truth), int)
    scores = np.linspace(0.9, 0.5, len(detected))
    return ImageBoxes(
        image_id,
        boxes(truth),
        zeros,
        zeros > 0,
        boxes(detected),
        np.zeros(len(detected), int),
        scores,
    )


def test_f1_of_an_image():
    score = score_image(scene(1, [0, 1, 2], [0, 1, 7]), 0.0)
    assert (score.correct, score.wrong, score.missed) == (2, 1, 1)
    assert score.f1 == pytest.approx(2 / 3)
    assert score_image(scene(1, [], []), 0.0).f1 == 1.0
    assert score_image(scene(1, [0], [0]), 0.95).missed == 1


def test_best_and_worst_images():
    images = [
        scene(1, [0], [0]),
        scene(2, [0, 1, 2], [0, 1, 2]),
        scene(3, [0], [5]),
        scene(4, [0, 1], [5, 6]),
        scene(5, [0, 1], [0, 5]),
    ]
    best, worst = best_and_worst(images, 0.0, 2)
    assert [s.image.image_id for s in best] == [2, 1]
    assert [s.image.image_id for s in worst] == [4, 3]
    best, worst = best_and_worst(images[:1], 0.0, 2)
    assert len(best) == 1 and worst == []


# ---------------------------------------------------------------- charts


def panel(y, scale="linear", **style):
    x = np.linspace(0.0, 10.0, len(y))
    return Panel("t", [(x, np.array(y), {"label": "a & b", "color": "red", **style})], scale)


def corners(chart):
    """Places of the red line's points in the SVG."""
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: #ff0000', chart)[1]
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path), dtype=float)


def test_a_line_runs_through_its_points():
    chart = line_chart(panel([0.0, 1.0]))
    assert "<title>a &amp; b: 1 at 10</title>" in chart
    assert "#000000" not in chart and "currentColor" in chart  # readable on a dark page
    (x0, y0), (x1, y1) = corners(chart)
    assert x1 - x0 > 250 and y0 - y1 > 100  # y downwards
    # A zero has no place on a logarithmic axis, a NaN on none.
    for values, scale in (([1.0, 0.0, 100.0], "log"), ([1.0, np.nan, 100.0], "linear")):
        (x0, y0), (x1, y1) = corners(line_chart(panel(values, scale)))
        assert x1 - x0 > 250 and y0 - y1 > 100
    assert line_chart(panel([np.nan])) == ""


def test_a_chart_is_the_same_each_time_and_has_its_ink_from_the_page():
    dashed = panel(np.ones(40), color="black", linestyle="--")
    chart = line_chart(dashed)
    assert chart == line_chart(dashed)
    assert re.search(r"stroke-dasharray: [^\"]*stroke: currentColor", chart)
    assert "<title>" not in chart and "a &amp; b</text>" in chart


def test_an_image_that_cannot_be_read_is_noted(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(b"")
    run = SimpleNamespace(truth=SimpleNamespace(files={3: str(path)}))
    note = _pair_or_note(score_image(scene(3, [0], [0]), 0.0), run)
    assert f"Image 3 cannot be read: {path}: not an image" in note
