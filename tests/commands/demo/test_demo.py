"""demo/demo.py: pictures and videos without a window, errors of one line."""

import runpy
import sys

import cv2
import numpy as np
import pytest

from mimicdet.commands import demo
from mimicdet.utils.errors import UserError
from tests.helpers import REPOSITORY


def write_image(path, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((60, 80, 3), value, np.uint8))
    return path


@pytest.fixture
def run_demo(run_folder):
    def run(*arguments, opts=()):
        weights = ["MODEL.WEIGHTS", str(run_folder / "model_final.pth")]
        config = ["--config-file", str(run_folder / "config.yaml"), "--confidence-threshold", "0.1"]
        return demo.main([*config, *map(str, arguments), "--opts", *weights, *opts])

    return run


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def drawn(path):
    """True if the picture is not the grey image that it was."""
    return bool(np.ptp(cv2.imread(str(path))) > 50)


def test_files_folders_and_patterns_to_a_folder(run_demo, tmp_path, capsys):
    write_image(tmp_path / "folder" / "a.png")
    write_image(tmp_path / "folder" / "below" / "b.png")
    write_image(tmp_path / "c.png")
    write_image(tmp_path / "more" / "d.png")
    inputs = [tmp_path / "folder", tmp_path / "c.png", tmp_path / "more" / "*.png"]
    output = tmp_path / "out"
    assert run_demo("--input", *inputs, "--output", output) == 0
    for name in ("a.png", "below/b.png", "c.png", "d.png"):
        assert drawn(output / name)
    assert "c.png: 100 detections" in capsys.readouterr().err


def test_one_image_to_a_file(run_demo, tmp_path):
    image = write_image(tmp_path / "a.png")
    assert run_demo("--input", image, "--output", tmp_path / "result.png") == 0
    assert drawn(tmp_path / "result.png")


def test_precision_and_compilation_are_the_predictors(run_demo, tmp_path, monkeypatch, capsys):
    requested = []

    def note(cfg, **options):
        requested.append(options)
        raise UserError("noted")

    monkeypatch.setattr(demo, "Predictor", note)
    run = ["--input", write_image(tmp_path / "a.png"), "--output", tmp_path / "b.png"]
    assert run_demo(*run) == run_demo(*run, "--precision", "bfloat16", "--compile") == 2
    assert requested == [
        {"precision": "float32", "compile_backbone": False},
        {"precision": "bfloat16", "compile_backbone": True},
    ]


def test_the_threshold_counts(run_demo, tmp_path, capsys):
    image = write_image(tmp_path / "a.png")
    output = ["--output", tmp_path / "out"]
    assert run_demo("--input", image, *output, "--confidence-threshold", "0.9") == 0
    assert "a.png: 0 detections" in capsys.readouterr().err
    assert not drawn(tmp_path / "out" / "a.png")


def test_a_video_without_a_window(run_demo, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for value in (50, 100):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    assert run_demo("--video-input", path, "--output", tmp_path / "out") == 0
    result = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    frames = [result.read() for _ in range(3)]
    assert [more for more, _ in frames] == [True, True, False]
    assert np.ptp(frames[0][1]) > 50


def test_unreadable_images_are_named_and_the_others_done(run_demo, tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    assert run_demo("--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert "b.png: not an image" in capsys.readouterr().err
    assert drawn(tmp_path / "out" / "a.png")


def test_a_window_that_cannot_be_opened(run_demo, tmp_path, monkeypatch, capsys):
    def imshow(*arguments):
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "imshow", imshow)
    assert run_demo("--input", write_image(tmp_path / "a.png")) == 2
    assert "give --output" in error_line(capsys)


def test_escape_ends_a_window(run_demo, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: 27 if len(shown) == 2 else ord("n"))
    inputs = [write_image(tmp_path / f"{name}.png") for name in "abc"]
    assert run_demo("--input", *inputs) == 0
    assert len(shown) == 2


@pytest.mark.parametrize(
    "arguments, opts, message",
    [
        (["--input", "none/*.png"], [], "no file fits it as a pattern"),
        (["--input", "a.png", "b.png", "--output", "x.png"], [], "one file, but there are 2"),
        (["--input", "a.png", "--output", "a.png"], [], "would replace the image"),
        (["--input", "a.png", "--output", "."], [], "would replace the image"),
        (["--video-input", "none.mp4"], [], "none.mp4: cannot be opened"),
        (["--input", "a.png"], ["MODEL.WEIGHTS", "none.pth"], "no checkpoint 'none.pth'"),
        (["--input", "a.png"], ["MODEL.WEIGHTZ", "x"], "MODEL.WEIGHTZ"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run_demo, tmp_path, monkeypatch, capsys, arguments, opts, message
):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    assert run_demo(*arguments, opts=opts) == 2
    assert message in error_line(capsys)


def test_the_file_of_the_demo_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "demo" / "demo.py"), run_name="__main__")
    assert stop.value.code == 0
    assert "--confidence-threshold" in capsys.readouterr().out
