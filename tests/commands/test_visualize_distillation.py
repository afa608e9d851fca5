"""tools/visualize_distillation.py on a tiny data set and untrained pairs."""

import json

import pytest
import torch
from PIL import Image

from mimicdet.commands.visualize_distillation import main
from tests.distillation.tiny_detectors import build_tiny, taught_cfg, write_teacher
from tests.engine.tiny_run import CLASSES, SIZE, write_coco

CHANGES = {
    "ROI_HEADS__NUM_CLASSES": len(CLASSES),
    "RETINANET__NUM_CLASSES": len(CLASSES),
    "INPUT__MIN_SIZE_TEST": SIZE,
    "DATASETS__TRAIN": (),
}


def write_pair(folder, address, family, method, **teacher_changes):
    """Arguments of the tool for a student and a teacher of one family."""
    folder.mkdir()
    write_teacher(folder, family, **CHANGES, **teacher_changes)
    cfg = taught_cfg(folder, family, [method], DATASETS__TEST=(address,), **CHANGES)
    (folder / "student.yaml").write_text(cfg.dump())
    weights = str(folder / "student.pth")
    torch.save({"model": build_tiny(family, **CHANGES).state_dict()}, weights)
    return ["--config-file", str(folder / "student.yaml")], ["MODEL.WEIGHTS", weights]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("distillation_tool")
    address = write_coco(root)
    return {
        "RetinaNet": write_pair(root / "dense", address, "RetinaNet", "PredictionGuided"),
        "MimicDet": write_pair(root / "mimicdet", address, "MimicDet", "RankMimicking"),
        "GeneralizedRCNN": write_pair(root / "rcnn", address, "GeneralizedRCNN", "FineGrained"),
    }


def run(pair, output, *arguments):
    config, weights = pair
    # An option that takes several values would take the overrides too.
    return main([*config, *arguments, "--output", str(output), *weights])


def test_all_pictures_of_dense_detectors(pairs, tmp_path, capsys):
    arguments = ["--num-images", "2", "--num-objects", "1", "--psi", "0.5", "--iou-thresholds"]
    assert run(pairs["RetinaNet"], tmp_path, *arguments) == 0
    written = capsys.readouterr()
    assert written.err == ""
    names = [path.rsplit("/", 1)[1] for path in written.out.split()]
    parts = ("masks", "differences", "ranks_1")
    expected = [f"{i:02d}_{name}_{x}.png" for i, name in ((1, "1"), (2, "4")) for x in parts]
    assert names == [*expected, "variance.png", "distillation.json"]
    for name in names[:-1]:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("L").getcolors()) > 2  # something is drawn
    content = json.loads((tmp_path / "distillation.json").read_text())
    assert content["strides"] == [8, 16, 32, 64, 128] and len(content["variance"]) == 5
    first = content["images"][0]
    assert first["mask_shares"].keys() == {"psi 0.5"}
    assert all(value > 0 for value in first["mean_differences"]["feature"])
    assert first["ranks"][0]["class"] == CLASSES[1] and first["ranks"][0]["anchors"] > 1


def test_ranks_of_mimicdets(pairs, tmp_path):
    arguments = ["--num-images", "1", "--pictures", "ranks"]
    assert run(pairs["MimicDet"], tmp_path, *arguments) == 0
    (image,) = json.loads((tmp_path / "distillation.json").read_text())["images"]
    assert image["ranks"][0]["anchors"] == 4  # locations within the central area, 2 x 2 on P3


def test_what_a_pair_does_not_offer_is_left_out(pairs, tmp_path, capsys):
    assert run(pairs["GeneralizedRCNN"], tmp_path, "--num-images", "1", "--psi", "0.5") == 0
    written = capsys.readouterr()
    names = [path.rsplit("/", 1)[1] for path in written.out.split()]
    assert names == ["01_1_masks.png", "variance.png", "distillation.json"]
    assert "no differences:" in written.err and "no ranks:" in written.err
    assert run(pairs["GeneralizedRCNN"], tmp_path, "--pictures", "ranks") == 2
    assert "does not offer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-images", "0"], "--num-images"),
        (["--psi", "1.5"], "--psi"),
        (["--psi", "--iou-thresholds"], "both empty"),
        (["--input", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line(pairs, tmp_path, capsys, arguments, message):
    assert run(pairs["RetinaNet"], tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_student_needs_a_teacher_and_weights(pairs, tmp_path, capsys):
    config, weights = pairs["RetinaNet"]
    output = ["--output", str(tmp_path)]
    assert main([*config, *output]) == 2
    assert "MODEL.WEIGHTS" in capsys.readouterr().err
    nobody = ["DISTILLATION.TEACHER.WEIGHTS", str(tmp_path / "none.pth")]
    assert main([*config, *output, *weights, *nobody]) == 2
    assert "none.pth" in capsys.readouterr().err
