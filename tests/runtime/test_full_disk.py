"""A disk that takes no more: the error names the real file, and nothing half-written stays."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mimicdet_runtime import UserError, runner
from mimicdet_runtime.errors import file_errors
from mimicdet_runtime.files import new_path

pytest.importorskip("resource", reason="needs limits of Unix")
RUNTIME = Path(__file__).resolve().parents[2] / "projects" / "MimicDetRuntime"

_LIMITED = """
import resource, sys
from mimicdet_runtime.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
raise SystemExit(main(sys.argv[2:]))
"""


def detect_limited(limit, *arguments):
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, str(limit), "detect", *map(str, arguments)],
        capture_output=True,
        text=True,
        # No .pyc files: the limit would cut them off.
        env={"PYTHONPATH": str(RUNTIME), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "limit, culprit, stays",
    [
        (10, "detections.jsonl", []),
        (1000, "drawing.png", ["detections.jsonl", "images.json", "results.json"]),
    ],
)
def test_a_full_disk_is_told_by_the_name_of_the_file(model_file, tmp_path, limit, culprit, stays):
    rng = np.random.default_rng(0)
    image = tmp_path / "drawing.png"
    cv2.imwrite(str(image), rng.integers(0, 256, (60, 80, 3), np.uint8))
    result = detect_limited(limit, model_file, image, "-o", tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == f"error: {tmp_path / 'out' / culprit}: File too large"
    assert left(tmp_path / "out") == stays
    for name in stays[1:]:
        json.loads((tmp_path / "out" / name).read_text())


def test_a_video_that_does_not_fit_is_told_and_not_kept(model_file, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for _ in range(30):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    result = detect_limited(20_000, model_file, path, "-o", tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: {tmp_path / 'out' / 'clip.mp4'}: could not be written" in result.stderr
    assert "clip.mp4" not in left(tmp_path / "out")


def test_a_record_goes_on_after_the_disk_was_full(model_file, image_folder, tmp_path):
    out = tmp_path / "out"
    result = detect_limited(350, model_file, image_folder, "-o", out, "--no-draw")
    assert result.returncode == 2
    assert "detections.jsonl: File too large" in result.stderr
    done = detect_limited(10**6, model_file, image_folder, "-o", out, "--no-draw", "--resume")
    assert done.returncode == 0 and "of 3 images are done" in done.stderr
    assert len(json.loads((out / "images.json").read_text())["images"]) == 3


def test_what_fails_leaves_the_file_that_was_there(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), new_path(target) as new:
            new.write_bytes(b"half")
            raise error
    assert target.read_bytes() == b"old" and left(tmp_path) == ["file.bin"]
    with pytest.raises(UserError, match="file.bin: No space left"):
        with file_errors(), new_path(target):
            raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="file.bin: File exists"):
        with file_errors(target / "x.png"), new_path(target / "x.png"):
            pass


def test_a_stopped_video_is_whole(model_file, tmp_path):
    class Video:
        name, frames_per_second, num_frames = "clip", 10.0, 3

        def __iter__(self):
            yield from [np.zeros((48, 64, 3), np.uint8)] * 2
            raise KeyboardInterrupt

    from mimicdet_runtime import Detector

    with pytest.raises(KeyboardInterrupt):
        runner.run_on_video(
            Detector(model_file), Video(), tmp_path / "clip.mp4", lambda *given: True
        )
    assert cv2.VideoCapture(str(tmp_path / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert left(tmp_path) == ["clip.mp4"]
