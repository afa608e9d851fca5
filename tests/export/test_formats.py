"""Written files against the eager model, and what the tool refuses to write."""

import re

import cv2
import numpy as np
import onnx
import pytest
import torch

from mimicdet.commands.export_model import main
from mimicdet.config import load_config
from mimicdet.export import (
    ExportableDetector,
    ExportOptions,
    export_model,
    formats,
    load_exported,
    writer,
)
from mimicdet.export.metadata import read_metadata
from mimicdet.export.resize import ResizingDetector, add_resize, resized_shape
from mimicdet.export.verify import to_batch, verify
from mimicdet.utils.errors import UserError
from mimicdet.utils.files import file_sha256
from mimicdet_runtime import Detector
from tests.export.conftest import (
    CLASS_NAMES,
    assert_runs_alike,
    assert_same,
    decided_model,
    eager,
    noise,
)
from tests.helpers import REPOSITORY, small_cfg

SMALL = ["INPUT.MIN_SIZE_TEST", "100"]


def mixed_sizes(count):
    """Images of many sizes, the first of them black."""
    images = [noise(33 + 7 * (i % 13), 40 + 11 * (i % 9), i) for i in range(count)]
    images[0][:] = 0
    return images


def test_a_class_that_extends_mimicdet_is_exported(student):
    opts = ["MODEL.META_ARCHITECTURE", "ExtendedMimicDet", "MODEL.WEIGHTS", str(student.weights)]
    model = writer.load_student(load_config(str(student.config), opts))
    assert type(model).__name__ == "ExtendedMimicDet"


def test_onnx(student, exported, capfd):
    path, printed = exported("onnx", capture=capfd)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {x.domain for x in proto.opset_import} == {""}
    assert b"site-packages" not in proto.SerializeToString(), "paths of the machine"
    names = [x.name for x in proto.graph.initializer]
    assert names and not [x for x in names if "roi_heads" in x]
    run = load_exported(path, "onnx")
    images = mixed_sizes(100)
    actual = 0
    for image in images:
        expected = eager(student.model, [image])
        assert_same(run(*to_batch([image])), expected)
        actual += len(expected[0])
    assert actual > 500
    for batch in (images[1:4], images[4:12]):
        assert_runs_alike(run, student.model, batch)
    assert read_metadata(path, "onnx") == printed
    assert printed["class_names"] == CLASS_NAMES and printed["opset"] == 18
    assert printed["weights_sha256"] == file_sha256(student.weights)
    assert printed["resize"] == {"min_size": 132, "max_size": 200, "interpolation": "bilinear"}
    assert (printed["score_threshold"], printed["detections_per_image"]) == (0.3, 40)


@pytest.mark.parametrize("name", ["torchscript", "pt2"])
def test_torch_formats(student, exported, capfd, name):
    path, printed = exported(name, capture=capfd)
    run = load_exported(path, name)
    images = [noise(140, 150, 1), noise(200, 131, 2), noise(129, 129, 3)]
    for batch in (images[:1], images[1:2], images):
        assert_runs_alike(run, student.model, batch)
    assert read_metadata(path, name) == printed
    assert printed["opset"] is None
    names = writer.tensor_names(path, name)
    assert any(x.endswith("student_head.box_deltas.weight") for x in names)
    assert not [x for x in names if "roi_heads" in x]


def test_a_file_of_fixed_size(student, exported, capfd):
    arguments = ("--fixed-size", "144", "200")
    path, printed = exported("onnx", *arguments, capture=capfd)
    graph = onnx.load(path).graph
    shapes = [[d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input]
    assert shapes == [[1, 3, 144, 200], [1, 2]] and printed["fixed_size"] == [144, 200]
    assert len(graph.node) < 0.7 * len(onnx.load(exported("onnx", capture=capfd)[0]).graph.node)
    run = load_exported(path, "onnx")
    black = np.zeros((144, 200, 3), np.uint8)  # makes the eager model's canvas as large
    for size in ((144, 200), (90, 120), (33, 200)):
        image = noise(*size, 1)
        expected = eager(student.model, [image, black])[:1]
        assert len(expected[0])
        assert_same(run(*to_batch([image], (144, 200))), expected)


def test_the_runtime_fits_images_into_a_file_of_fixed_size(exported, capfd):
    fixed = Detector(exported("onnx", "--fixed-size", "132", "176", capture=capfd)[0])
    free = Detector(exported("onnx", capture=capfd)[0])
    images = [noise(66, 88, 1), noise(264, 352, 2), noise(300, 100, 3)]
    found = fixed.detect(images)  # the last becomes 132 x 44 pixels instead of 200 x 67
    for one, other in zip(found[:2], free.detect(images[:2])):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    assert len(found[2]) and (found[2].boxes >= 0).all()
    assert (found[2].boxes <= [100, 300, 100, 300]).all() and found[2].boxes[:, 3].max() > 200


def test_torchscript_takes_small_images(student, exported, capfd):
    run = load_exported(exported("torchscript", capture=capfd)[0], "torchscript")
    for image in mixed_sizes(12):
        assert_runs_alike(run, student.model, [image])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((600, 1200), (667, 1333)), ((800, 800), (800, 800))],
)
def test_resize_rule(size, expected):
    from detectron2.data.transforms import ResizeShortestEdge

    assert resized_shape(*size, 800, 1333) == expected
    assert ResizeShortestEdge.get_output_shape(*size, 800, 1333) == expected


def test_onnx_resizes_itself(student, exported, capfd, tmp_path):
    path, metadata = exported("onnx", capture=capfd)
    onnx.save(add_resize(onnx.load(path), 132, 200), str(tmp_path / "resize.onnx"))
    onnx.checker.check_model(str(tmp_path / "resize.onnx"), full_check=True)
    run = load_exported(tmp_path / "resize.onnx", "onnx")
    reference = ResizingDetector(ExportableDetector(student.model), 132, 200)
    # Enlarged: where an image shrinks, ONNX Runtime's antialiasing and PyTorch's differ a little.
    for size in ((60, 75), (40, 130), (99, 50)):
        batch = to_batch([noise(*size, 1)])
        outputs, expected_outputs = run(*batch), reference(*map(torch.from_numpy, batch))
        for actual, expected in zip(outputs, expected_outputs):
            torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=2e-2)
        assert expected_outputs[3] > 0
        assert outputs[0][0, :, 2].max() <= size[1] and outputs[0][0, :, 3].max() <= size[0]
    images = [cv2.resize(noise(12, 16, 1), (400, 300), interpolation=cv2.INTER_CUBIC)]
    assert verify(run, student.model, images, {**metadata, "includes_resize": True})


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def error_of(student, tmp_path, capfd):
    """Call main, which must fail with one line and leave nothing behind; return the line."""

    def call(*arguments, weights=student.weights, opts=()):
        output = tmp_path / "out" / "model.onnx"
        output.parent.mkdir(exist_ok=True)
        named = [] if "--output" in arguments else ["--output", str(output)]
        capfd.readouterr()
        code = main(
            ["--config-file", str(student.config), "--format", "torchscript", *named]
            + [*map(str, arguments), "MODEL.WEIGHTS", str(weights), *opts]
        )
        captured = capfd.readouterr()
        assert code == 2
        lines = [x for x in captured.err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in captured.err
        assert not list(output.parent.iterdir())
        return lines[0]

    return call


def test_input_that_cannot_be_used(error_of, tmp_path):
    assert "'tflite'" in error_of("--format", "tflite")
    assert "'int4'" in error_of("--precision", "int4")
    assert "--opset 17" in error_of("--format", "onnx", "--opset", 17)
    assert "none/such.pth" in error_of(weights="none/such.pth")
    assert "none/such" in error_of("--sample-images", "none/such")
    (tmp_path / "empty").mkdir()
    assert "no picture" in error_of("--sample-images", tmp_path / "empty")
    assert "no folder" in error_of("--output", tmp_path / "none" / "x.onnx")
    assert ".pt2" in error_of("--format", "pt2")
    fixed = ("--fixed-size", 96, 96)
    assert "onnx alone" in error_of(*fixed, "--format", "torchscript")
    assert "exclude each other" in error_of(*fixed, "--include-resize", "--format", "onnx")
    assert "above 0" in error_of("--format", "onnx", "--fixed-size", 96, 0)
    assert "129" in error_of("--format", "pt2", "--output", tmp_path / "x.pt2", opts=SMALL)
    assert "'student'" in error_of(opts=["MODEL.MIMICDET.EVAL_HEAD", "teacher"])
    assert "RetinaNet" in error_of(opts=["MODEL.META_ARCHITECTURE", "RetinaNet"])
    assert "MIN_SIZE_TEST is 0" in error_of("--include-resize", opts=["INPUT.MIN_SIZE_TEST", "0"])


def test_weights_that_are_not_finite(error_of, student, tmp_path):
    content = torch.load(student.weights, weights_only=True)
    content["model"]["student_head.class_logits.bias"][1] = torch.nan
    torch.save(content, tmp_path / "nan.pth")
    message = error_of(weights=tmp_path / "nan.pth")
    assert "nan.pth: student_head.class_logits.bias" in message and "not finite" in message


def test_file_that_disagrees_is_not_kept(error_of, monkeypatch):
    other = decided_model(seed=1)
    write = formats.WRITERS["torchscript"]
    monkeypatch.setitem(writer.WRITERS, "torchscript", lambda model, *rest: write(other, *rest))
    message = error_of()
    assert "the file does not find what the model finds" in message


def test_file_with_a_t_head_is_not_kept(error_of, monkeypatch):
    class WithTeacher(ExportableDetector):
        def __init__(self, model, **kwargs):
            super().__init__(model, **kwargs)
            self.roi_heads = model.roi_heads

    monkeypatch.setattr(formats, "ExportableDetector", WithTeacher)
    assert "T-head" in error_of()


def test_an_older_file_survives_a_failure(student, tmp_path, monkeypatch):
    output = tmp_path / "model.pt"
    output.write_text("older")

    def fail(*_):
        raise UserError("no")

    monkeypatch.setattr(writer, "verify", fail)
    cfg = small_cfg("MODEL.WEIGHTS", str(student.weights))
    with pytest.raises(UserError, match="no"):
        export_model(cfg, CLASS_NAMES, output, ExportOptions("torchscript"))
    assert output.read_text() == "older" and list(tmp_path.iterdir()) == [output]


# ---------------------------------------------------------------- the guide


def test_example_of_the_guide_runs_as_written(exported, capfd, tmp_path, monkeypatch):
    path, metadata = exported("onnx", capture=capfd)
    text = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 15 and "torch" not in code
    onnx.save(add_resize(onnx.load(path), 132, 200), str(tmp_path / "model.onnx"))
    image = cv2.resize(noise(12, 16, 1), (160, 120))
    cv2.imwrite(str(tmp_path / "image.jpg"), image)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    exec(compile(code, "docs/export.md", "exec"), {})
    printed = capfd.readouterr().out.splitlines()
    batch = to_batch([cv2.imread("image.jpg")])
    _, scores, classes, count = load_exported("model.onnx", "onnx")(*batch)
    assert len(printed) == count[0] > 0
    first = f"{metadata['class_names'][classes[0, 0]]} {scores[0, 0]:.3f} ["
    assert printed[0].startswith(first)
