"""The command `mimicdet`: results, going on after a stop, exit codes, what it imports."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

import mimicdet_runtime
from mimicdet_runtime import images, runner
from mimicdet_runtime.cli import main
from mimicdet_runtime.progress import Progress, format_progress
from tests.runtime.mock_model import make_metadata, write_mock

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "projects" / "MimicDetRuntime"


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def detect(model, *inputs, output, options=()):
    return main(["detect", str(model), *map(str, inputs), "-o", str(output), *options])


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_folder_gives_coco_json_and_drawings(model_file, image_folder, tmp_path):
    output = tmp_path / "out"
    assert detect(model_file, image_folder, output=output, options=["--score", "0.2"]) == 0
    listed = load(output / "images.json")
    assert [image["file_name"] for image in listed["images"]] == ["a.png", "b.png", "below/c.png"]
    assert listed["images"][0] == {"id": 1, "file_name": "a.png", "height": 60, "width": 80}
    assert listed["categories"] == [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]
    results = load(output / "results.json")
    assert [r["score"] for r in results] == pytest.approx([0.4, 0.25, 0.6, 0.25, 0.8, 0.25])
    assert results[0]["bbox"] == pytest.approx([20, 15, 40, 30], abs=0.01)
    assert results[0]["category_id"] == 2
    drawn = cv2.imread(str(output / "below/c.png"))
    assert drawn.shape == (60, 80, 3) and (drawn != 204).any()


def test_pycocotools_reads_the_results(model_file, image_folder, tmp_path):
    detect(model_file, image_folder, output=tmp_path / "out")
    truth = COCO()
    truth.dataset = {**load(tmp_path / "out" / "images.json"), "annotations": []}
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "out" / "results.json"))
    assert len(results.getAnnIds()) == 2, "of the scores 0.4, 0.6, 0.8 two are above 0.5"


def test_batches_give_the_same(model_file, image_folder, tmp_path):
    cv2.imwrite(str(image_folder / "wide.png"), np.full((20, 90, 3), 250, np.uint8))
    one, two = tmp_path / "one", tmp_path / "two"
    detect(model_file, image_folder, output=one, options=["--no-draw"])
    detect(model_file, image_folder, output=two, options=["--no-draw", "--batch", "3"])
    assert load(one / "results.json") == load(two / "results.json")
    assert not list(two.rglob("*.png"))


def test_a_stopped_run_goes_on(model_file, image_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    read, seen = runner.read_image, []

    def stop_at_the_second(path):
        seen.append(Path(path).name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(runner, "read_image", stop_at_the_second)
    assert detect(model_file, image_folder, output=output) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert len(load(output / "images.json")["images"]) == 1
    # What a crash in the middle of a line leaves.
    with (output / "detections.jsonl").open("a") as record:
        record.write('{"image": {"id": 2, "file')
    assert detect(model_file, image_folder, output=output, options=["--resume"]) == 0
    assert seen[2:] == ["b.png", "c.png"]
    whole = tmp_path / "whole"
    assert detect(model_file, image_folder, output=whole) == 0
    assert load(output / "results.json") == load(whole / "results.json")
    assert load(output / "images.json") == load(whole / "images.json")


def test_resume_refuses_results_of_other_settings(model_file, image_folder, tmp_path, capsys):
    output = tmp_path / "out"
    detect(model_file, image_folder, output=output)
    capsys.readouterr()
    options = ["--resume", "--score", "0.1"]
    assert detect(model_file, image_folder, output=output, options=options) == 2
    assert "made with another score" in error_line(capsys)


def test_without_resume_a_run_starts_anew(model_file, image_folder, tmp_path):
    output = tmp_path / "out"
    detect(model_file, image_folder, output=output)
    detect(model_file, image_folder / "a.png", output=output, options=["--score", "0.1"])
    assert len(load(output / "images.json")["images"]) == 1


def test_unreadable_images_are_named_and_the_others_done(
    model_file, image_folder, tmp_path, capsys
):
    (image_folder / "b.png").write_bytes(b"no image")
    assert detect(model_file, image_folder, output=tmp_path / "out") == 1
    assert "b.png: not an image" in capsys.readouterr().err
    assert len(load(tmp_path / "out" / "images.json")["images"]) == 2


def test_output_inside_the_input_is_not_input(model_file, image_folder):
    output = image_folder / "out"
    for _ in range(2):
        assert detect(model_file, image_folder, output=output) == 0
        assert len(load(output / "images.json")["images"]) == 3


def test_a_video_frame_by_frame(model_file, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for value in (102, 153, 204):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    assert detect(model_file, path, output=tmp_path / "out") == 0
    listed = load(tmp_path / "out" / "images.json")["images"]
    assert [image["file_name"] for image in listed] == [f"clip.avi#{i:06d}" for i in (1, 2, 3)]
    assert [r["image_id"] for r in load(tmp_path / "out" / "results.json")] == [2, 3]
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    count = 0
    while drawn.read()[0]:
        count += 1
    assert count == 3


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (["none.jpg"], [], "none.jpg: no such file or folder"),
        (["empty"], [], "empty: no images"),
        (["none.mp4"], [], "none.mp4: no such file"),
        (["clip.mp4", "images"], [], "a video has to be the only input"),
        (["clip.mp4"], ["--resume"], "--resume is for images"),
        (["clip.mp4"], [], "clip.mp4: cannot be opened as a video"),
        (["images/a.png", "images/below/a.png"], [], "two images named a.png"),
    ],
)
def test_bad_inputs_are_one_line_and_exit_2(
    model_file, image_folder, tmp_path, capsys, inputs, options, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    (image_folder / "below" / "a.png").write_bytes(b"")
    paths = [tmp_path / name for name in inputs]
    assert detect(model_file, *paths, output=tmp_path / "out", options=options) == 2
    assert message in error_line(capsys)


def test_bad_models_and_outputs_exit_2(model_file, image_folder, tmp_path, capsys):
    assert detect(tmp_path / "none.onnx", image_folder, output=tmp_path / "out") == 2
    assert "none.onnx: no such file" in error_line(capsys)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert detect(model_file, image_folder, output=tmp_path / "file") == 2
    assert "file: " in error_line(capsys)
    assert detect(model_file, image_folder / "a.png", output=image_folder) == 2
    assert "would replace the image" in error_line(capsys)
    whole = write_mock(tmp_path / "whole.onnx", make_metadata(includes_resize=True))
    out = tmp_path / "out"
    assert detect(whole, image_folder, output=out, options=["--batch", "2"]) == 2
    assert "--batch has to be 1" in error_line(capsys)
    assert main(["info", str(image_folder / "a.png")]) == 2
    assert "cannot load it" in error_line(capsys)


def test_cuda_that_is_not_there_is_one_line(model_file, image_folder, tmp_path, capsys):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    options = ["--device", "cuda"]
    assert detect(model_file, image_folder, output=tmp_path / "out", options=options) == 2
    assert "--device cuda: this onnxruntime has only" in error_line(capsys)


@pytest.mark.parametrize("option", [["--score", "1.5"], ["--batch", "0"], ["--threads", "-1"]])
def test_values_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["detect", "m.onnx", "a.jpg", "-o", "out", *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_info(model_file, capsys):
    assert main(["info", str(model_file)]) == 0
    assert "weights_sha256" in capsys.readouterr().out


# Progress


def test_progress_line():
    line = format_progress(6, 24, 3.0)
    assert line == "[######" + "-" * 18 + "] 6/24  2.0/s  0:09 left"
    assert format_progress(5, 0, 0.5) == "5 done  10.0/s"


def test_progress_without_a_terminal_is_ten_lines(capsys):
    progress = Progress(1000)
    for _ in range(1000):
        progress.advance()
    progress.close()
    assert len(capsys.readouterr().err.splitlines()) == 10


# A machine without torch

_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "mimicdet", "tqdm"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Blocker())
from mimicdet_runtime.cli import main
code = main(sys.argv[1:])
import mimicdet_runtime.server
raise SystemExit(code)
"""


def run_blocked(*arguments):
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(RUNTIME)},
    )


def test_runs_where_torch_and_detectron2_cannot_be_imported(model_file, image_folder, tmp_path):
    result = run_blocked("detect", model_file, image_folder, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "a.png").is_file()


_LIGHT = """
import sys
from mimicdet_runtime.cli import build_parser

build_parser().format_help()
raise SystemExit(", ".join({"numpy", "cv2", "onnxruntime", "torch"} & set(sys.modules)))
"""


def test_the_command_line_loads_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", _LIGHT],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(RUNTIME)},
    )
    assert result.stderr.strip() == ""


def test_images_of_too_many_pixels_are_not_unpacked(model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "MAX_PIXELS", images.MAX_PIXELS)  # put back afterwards
    folder = tmp_path / "images"
    folder.mkdir()
    for name, side in (("small.png", 10), ("large.png", 11)):
        cv2.imwrite(str(folder / name), np.zeros((side, side, 3), np.uint8))
    options = ["--max-pixels", "100"]
    assert detect(model_file, folder, output=tmp_path / "out", options=options) == 1
    assert "large.png: 11 x 11 pixels are more than 100" in capsys.readouterr().err
    assert len(load(tmp_path / "out" / "images.json")["images"]) == 1


def test_public_names_exist():
    for name in mimicdet_runtime.__all__:
        assert getattr(mimicdet_runtime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = mimicdet_runtime.Detektor
