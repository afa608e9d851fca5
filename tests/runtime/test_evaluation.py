"""AP of an exported model without Detectron2: python -m mimicdet_runtime.evaluation."""

import json

import cv2
import numpy as np
import pytest

from mimicdet_runtime.evaluation import main

# What the mock model finds in an image of 80 x 60 pixels: square in the middle, circle in a corner.
SQUARE, CIRCLE = [20, 15, 40, 30], [0, 0, 40, 30]


@pytest.fixture
def truth(image_folder):
    """Annotations of two images: all squares, one of two circles, which lies elsewhere in b.png."""
    rows = [(1, 2, SQUARE), (1, 1, CIRCLE), (2, 2, SQUARE), (2, 1, [60, 45, 20, 15])]
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 80, "height": 60}
            for i, name in ((1, "a.png"), (2, "b.png"))
        ],
        "categories": [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
            | {"area": box[2] * box[3]}
            for i, (image, category, box) in enumerate(rows, 1)
        ],
    }
    path = image_folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_ap_pictures_and_results(model_file, truth, image_folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert main([str(model_file), str(truth), str(image_folder), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 4 objects" in printed and "Average Precision" not in printed
    rows = dict(line.split() for line in printed.splitlines() if line.startswith("  A"))
    # One of two circles is found, first of two with the same score: precision 1 to recall 0.5.
    assert {name: float(value) for name, value in rows.items()} == {
        "AP": 75.2,
        "AP50": 75.2,
        "AP75": 75.2,
        "AP-circle": 50.5,
        "AP-square": 100.0,
    }
    results = json.loads((output / "results.json").read_text())
    assert len(results) == 4 and results[0]["bbox"] == pytest.approx(SQUARE, abs=1e-2)
    # The square's score is 0.4 in a.png and is drawn; the circle's 0.25 is not.
    picture = cv2.imread(str(output / "images" / "a.png"))
    assert (picture != 102).any() and (picture[:10, :10] == 102).all()


def test_nothing_found_is_ap_0(model_file, truth, image_folder, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(image_folder / name), np.zeros((60, 80, 3), np.uint8))
    assert main([str(model_file), str(truth), str(image_folder), "-o", str(tmp_path / "out")]) == 0
    assert ["AP50", "0.0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "model, text, options, message",
    [
        ("none.onnx", None, [], "none.onnx: no such file; this checkout ships no such model"),
        (None, None, ["SOLVER.MAX_ITER", "9"], "SOLVER.MAX_ITER 9: unknown here"),
        (None, None, ["--config-file", "x.yaml"], "--config-file x.yaml: unknown here"),
        (None, "{half", [], "truth.json: no COCO annotations"),
        (None, "[]", [], "truth.json: no COCO annotations"),
        (None, '{"categories": [{"id": 1, "name": "dog"}]}', [], "truth.json: classes {1: 'dog'}"),
    ],
)
def test_bad_input_is_one_message(
    model_file, truth, image_folder, tmp_path, capsys, model, text, options, message
):
    if text:
        truth.write_text(text)
    arguments = [model or str(model_file), str(truth), str(image_folder), "-o", str(tmp_path / "o")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
