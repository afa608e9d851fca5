"""tools/visualize_sampling.py on a tiny data set and untrained checkpoints."""

import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from mimicdet.commands.visualize_sampling import load_predictor, main
from mimicdet.engine import setup_cfg
from tests.engine.tiny_run import SIZE, write_coco, write_config


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Address of a data set, a config file and two checkpoints of other seeds."""
    root = tmp_path_factory.mktemp("sampling")
    address = write_coco(root)
    config = write_config(root / "config.yaml", address)
    cfg = setup_cfg(str(config))
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        weights.append(str(root / f"{seed}.pth"))
        torch.save({"model": build_model(cfg).state_dict()}, weights[-1])
    return root, address, str(config), weights


def test_two_checkpoints_side_by_side_on_a_data_set(setup, tmp_path, capsys):
    _, address, config, weights = setup
    status = main(
        ["--config-file", config, "--input", address, "--num-images", "2", "--labels", "a", "b"]
        + ["--compare-weights", weights[1], "--choose", "ground-truth", "--width", "200"]
        + ["--show", "ground-truth", "--output", str(tmp_path), "MODEL.WEIGHTS", weights[0]]
    )
    written = capsys.readouterr()
    assert status == 0, written.err
    assert written.out.split() == [
        str(tmp_path / name) for name in ("01_1.jpg", "02_4.jpg", "sampling.json")
    ]
    with Image.open(tmp_path / "01_1.jpg") as picture:
        assert picture.width == 2 * 200 + 12 and picture.height > 200
    records = json.loads((tmp_path / "sampling.json").read_text())
    assert [x["label"] for x in records] == ["a", "b"] * 2
    assert all(len(x["points"]) == 1 for x in records)  # one annotated object in either image
    assert records[0]["points"] != records[1]["points"]


@pytest.mark.parametrize("name", ["3.jpg", ""])
def test_an_image_file_or_folder_and_its_best_detections(setup, tmp_path, name):
    root, _, config, weights = setup
    (tmp_path / "folder").mkdir()
    shutil.copy(root / "images" / "3.jpg", tmp_path / "folder")
    arguments = ["--config-file", config, "--input", str(tmp_path / "folder" / name)]
    arguments += ["--num-objects", "3", "--score-threshold", "0", "--output", str(tmp_path)]
    assert main([*arguments, "MODEL.WEIGHTS", weights[0]]) == 0
    (record,) = json.loads((tmp_path / "sampling.json").read_text())
    assert len(record["boxes"]) == 3 and record["image_size"] == [SIZE, SIZE]
    assert record["scores"] == sorted(record["scores"], reverse=True)


def test_the_input_is_resized_as_in_evaluation(setup):
    _, _, config, weights = setup
    opts = ["INPUT.MIN_SIZE_TEST", "48", "MODEL.WEIGHTS", weights[0]]
    predictor = load_predictor(config, opts)
    inputs = predictor.preprocess(np.full((100, 200, 3), 7, np.uint8))
    assert inputs["image"].shape == (3, 48, 96) and float(inputs["image"].max()) == 7
    assert (inputs["height"], inputs["width"]) == (100, 200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "IMAGE"], "MODEL.WEIGHTS"),
        (["--input", "IMAGE", "none.jpg", "--width", "9", "WEIGHTS"], "none.jpg"),
        (["--input", "none.jpg", "--width", "9", "WEIGHTS"], "none.jpg"),
        (["--input", "CONFIG", "--width", "9", "WEIGHTS"], "not an image"),
        (["--input", "IMAGE", "--choose", "ground-truth", "WEIGHTS"], "needs a data set"),
        (["--input", "IMAGE", "--width", "0", "WEIGHTS"], "--width"),
        (["--input", "IMAGE", "--labels", "a", "b", "--width", "9", "WEIGHTS"], "2 labels"),
        (["--input", "IMAGE", "--compare-config", "CONFIG", "WEIGHTS"], "--compare-weights"),
    ],
)
def test_errors_are_one_line(setup, tmp_path, capsys, arguments, message):
    root, _, config, weights = setup
    names = {"IMAGE": [str(root / "images" / "1.jpg")], "CONFIG": [config]}
    names["WEIGHTS"] = ["MODEL.WEIGHTS", weights[0]]
    arguments = [part for name in arguments for part in names.get(name, [name])]
    assert main(["--config-file", config, "--output", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
