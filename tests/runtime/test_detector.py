"""The detector: inputs as the export expects them, boxes back in the image's pixels, messages."""

import numpy as np
import onnx
import pytest
from PIL import Image

from mimicdet_runtime import Detector, UserError, read_image
from mimicdet_runtime.cli import main
from mimicdet_runtime.detections import Detections, rescale
from mimicdet_runtime.detector import make_batch
from mimicdet_runtime.drawing import class_color, draw_detections
from mimicdet_runtime.metadata import format_metadata, parse_metadata
from tests.runtime.mock_model import make_metadata, write_mock


def grey(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_boxes_are_in_the_pixels_of_each_image_of_a_batch(model_file):
    images = [grey(100, 160, 102), grey(60, 40, 204)]
    found = Detector(model_file).detect(images)
    for image, detections, score in zip(images, found, (0.4, 0.8)):
        h, w = image.shape[:2]
        middle, corner = detections.boxes
        assert middle == pytest.approx([0.25 * w, 0.25 * h, 0.75 * w, 0.75 * h], abs=1e-3)
        assert corner == pytest.approx([0, 0, 0.5 * w, 0.5 * h], abs=1e-3)
        assert detections.scores == pytest.approx([score, 0.25])
        assert [detections.name(i) for i in range(2)] == ["square", "circle"]


def test_no_detections_and_no_images(model_file):
    detector = Detector(model_file)
    (empty,) = detector.detect([grey(30, 30, 0)])
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)
    assert detector.detect([]) == []


def test_content_serves_as_well_as_a_path(model_file):
    assert len(Detector(model_file.read_bytes())(grey(30, 30, 255))) == 2


def test_batch_has_images_in_the_upper_left_of_a_divisible_canvas(model_file):
    info = Detector(model_file).info
    colored = np.zeros((40, 20, 3), np.uint8)
    colored[..., 0], colored[..., 2] = 10, 30
    inputs = make_batch([colored, grey(33, 50, 7)], info)
    assert inputs["image_sizes"].tolist() == [[40, 20], [33, 50]]
    images = inputs["images"]
    assert images.shape == (2, 3, 64, 64) and images.dtype == np.float32
    assert (images[0, :, 39, 19] == [10, 0, 30]).all()
    assert (images[1, :, :33, :50] == 7).all()
    assert not images[0, :, 40:].any() and not images[0, :, :, 20:].any()


def test_rgb_models_get_rgb(tmp_path):
    model = write_mock(tmp_path / "rgb.onnx", make_metadata(input_format="RGB"))
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[..., 0] = 9
    pixel = make_batch([blue], Detector(model).info)["images"][0, :, 0, 0]
    assert pixel.tolist() == [0, 0, 9]


def test_a_model_that_resizes_gets_the_image_as_it_is(tmp_path):
    model = write_mock(tmp_path / "whole.onnx", make_metadata(includes_resize=True))
    detector = Detector(model)
    assert detector(grey(101, 37, 51)).boxes[0] == pytest.approx([9.25, 25.25, 27.75, 75.75])
    assert make_batch([grey(101, 37, 51)], detector.info)["images"].shape == (1, 3, 101, 37)
    with pytest.raises(UserError, match="one image a run"):
        detector.detect([grey(8, 8, 1)] * 2)


def test_rescale_agrees_with_detectron2():
    import torch
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.structures import Boxes, Instances

    generator = np.random.default_rng(0)
    boxes = generator.uniform(-20, 120, (50, 4)).astype(np.float32)
    instances = Instances((80, 100), pred_boxes=Boxes(torch.from_numpy(boxes.copy())))
    expected = detector_postprocess(instances, 333, 250).pred_boxes.tensor.numpy()
    scaled, keep = rescale(boxes, (80, 100), (333, 250))
    assert 0 < keep.sum() < len(keep)
    np.testing.assert_allclose(scaled[keep], expected, rtol=0, atol=1e-4)


def test_coco_records():
    found = Detections(
        np.float32([[1, 2, 11, 22], [0, 0, 5, 5]]),
        np.float32([0.75, 0.25]),
        np.int64([2, 0]),
        ("a",),
    )
    assert found.above(0.5).to_coco(7) == [
        {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75}
    ]
    assert found.name(0) == "2" and found.name(1) == "a"


@pytest.mark.parametrize(
    "image", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(model_file, image):
    with pytest.raises(UserError, match="an image has to be"):
        Detector(model_file)(image)


# Files that are no models


def test_missing_model_and_garbage(tmp_path):
    with pytest.raises(UserError, match="none.onnx: no such file"):
        Detector(tmp_path / "none.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(UserError, match="bad.onnx: ONNX Runtime cannot load it") as error:
        Detector(bad)
    assert "\n" not in str(error.value)


def test_models_of_others_are_refused(tmp_path, model_file):
    other = write_mock(tmp_path / "other.onnx", key="someone")
    with pytest.raises(UserError, match="not written by MimicDet's export"):
        Detector(other)
    model = onnx.load(model_file)
    model.graph.input[1].name = model.graph.node[0].input[0] = "shapes"
    onnx.save(model, other)
    with pytest.raises(UserError, match="not those of a MimicDet model"):
        Detector(other)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ('{"format_version": 2}', "format version 2"),
        ('{"format_version": 1}', "lack 'input_format'"),
        ("{half", "damaged"),
        ("[1]", "damaged"),
    ],
)
def test_damaged_metadata_are_named(metadata, message):
    with pytest.raises(UserError, match=message):
        parse_metadata({"mimicdet": metadata}, "m.onnx")


def test_unknown_device(model_file):
    with pytest.raises(UserError, match="choose one of cpu, cuda"):
        Detector(model_file, device="tpu")


def test_info_shows_all_that_was_written(model_file):
    lines = format_metadata(Detector(model_file).info).splitlines()
    assert len(lines) == len(make_metadata()) + 2, "resize has three lines"
    assert any(line.split() == ["class_names", "2:", "circle,", "square"] for line in lines)
    assert any(line.split() == ["resize.min_size", "48"] for line in lines)


# Models whose outputs make no sense


def rewired(path, **outputs):
    """The small model with other outputs: name to (value for every run, declared shape)."""
    model = onnx.load(write_mock(path))
    for name, (value, shape) in outputs.items():
        for node in model.graph.node:
            node.output[:] = [f"real_{name}" if x == name else x for x in node.output]
        value = np.asarray(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"new_{name}"))
        model.graph.node.append(onnx.helper.make_node("Identity", [f"new_{name}"], [name]))
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        for info in model.graph.output:
            if info.name == name:
                info.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, shape))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "outputs, message",
    [
        (
            {"scores": (np.float32([[np.nan, 0.5]]), ["N", 2])},
            "boxes or scores that are not finite",
        ),
        (
            {"scores": (np.float32([[np.inf, 0.5]]), ["N", 2])},
            "boxes or scores that are not finite",
        ),
        ({"boxes": (np.float32(np.full((1, 2, 4), np.nan)), ["N", 2, 4])}, "are not finite"),
        ({"classes": (np.int64([[0, 2]]), ["N", 2])}, "class 0 to 2, but names 2"),
        ({"classes": (np.int64([[-1, 0]]), ["N", 2])}, "class -1 to 0, but names 2"),
        ({"num_detections": (np.int64([3]), ["N"])}, "3 of 2 detections"),
        ({"num_detections": (np.int64([-1]), ["N"])}, "-1 of 2 detections"),
        ({"scores": (np.float32([[0.5]]), ["N", "K"])}, "shapes of its outputs for 1 images"),
        ({"num_detections": (np.int64([1, 1]), ["N"])}, "shapes of its outputs for 1 images"),
        (
            {"boxes": (np.float32(np.zeros((1, 2, 5))), ["N", 2, 5])},
            r"boxes is .*\['any', 'any', 4\]",
        ),
        ({"scores": (np.float64([[0.5, 0.5]]), ["N", 2])}, r"scores is tensor\(double\)"),
        ({"scores": (np.float32([0.5]), ["N"])}, "scores is .* of shape"),
    ],
)
def test_outputs_that_make_no_sense_are_named(tmp_path, outputs, message):
    with pytest.raises(UserError, match=f"wrong.onnx.*{message}"):
        Detector(rewired(tmp_path / "wrong.onnx", **outputs))(grey(60, 80, 102))


def test_an_image_that_the_model_fails_on_is_named(tmp_path, image_folder, capsys):
    model = rewired(tmp_path / "nan.onnx", scores=(np.float32([[np.nan, 0.5]]), ["N", 2]))
    assert main(["detect", str(model), str(image_folder), "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {image_folder / 'a.png'}: {model} gives")


def test_a_model_that_fails_or_never_ends_is_one_line(tmp_path):
    fixed = rewired(tmp_path / "fixed.onnx", boxes=(np.zeros((1, 2, 4), np.float32), [1, 2, 4]))
    with pytest.raises(UserError, match="fixed.onnx: the shapes of its outputs for 2 images"):
        Detector(fixed).detect([grey(60, 80, 102)] * 2)
    model = onnx.load(write_mock(tmp_path / "endless.onnx"))
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [make("Identity", ["go"], ["on"]), make("Add", ["sum", "one"], ["more"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("sum", 1, ["N"])],
        [info("on", 9, []), info("more", 1, ["N"])],
    )
    for name, value in (("most", np.int64(2**60)), ("yes", np.bool_(True)), ("one", np.float32(1))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model.graph.node[3].output[0] = "start"
    loop = make("Loop", ["most", "yes", "start"], ["brightest"], body=body)
    nodes = [*model.graph.node[:4], loop, *model.graph.node[4:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "endless.onnx")
    with pytest.raises(UserError, match="endless.onnx: took more than 0.2 s"):
        Detector(tmp_path / "endless.onnx", seconds=0.2)(grey(60, 80, 102))


# Image files


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected_as_in_detectron2(tmp_path, orientation):
    from detectron2.data.detection_utils import read_image as read_image_by_detectron2

    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8], pixels[-8:, :8] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    expected = read_image_by_detectron2(str(path), format="BGR")
    image = read_image(path)
    assert image.shape == expected.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    # Decoders of JPEG round differently.
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_grey_and_transparent_images_become_bgr(tmp_path):
    Image.new("L", (6, 4), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (6, 4), (1, 2, 3, 128)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "grey.png") == 77).all()
    assert (read_image(tmp_path / "clear.png") == [3, 2, 1]).all()


def test_unreadable_images_are_named(tmp_path):
    with pytest.raises(UserError, match="none.jpg: No such file"):
        read_image(tmp_path / "none.jpg")
    for name, content in (("empty.jpg", b""), ("text.jpg", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not an image"):
            read_image(tmp_path / name)


def test_drawing_changes_a_copy_only(model_file):
    image = grey(400, 400, 102)
    found = Detector(model_file)(image)
    picture = draw_detections(image, found)
    assert (image == 102).all()
    assert found.boxes[0] == pytest.approx([100, 100, 300, 300])
    assert tuple(picture[250, 100]) == tuple(picture[98, 101]) == class_color(1), "edge, label"
    assert tuple(picture[250, 250]) == (102, 102, 102)
