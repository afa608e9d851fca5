"""tools/prepare_bccd.py on a made-up clone, and the configs that read what it writes."""

import json

import pytest

from mimicdet import model_zoo
from mimicdet.commands.prepare_bccd import SPLITS, main
from tests.data.data_folders import voc_object, voc_xml, write_image


def write_clone(folder, name="Platelets"):
    """Images 1 and 2 for training, 3 for validation, 4 for testing; 1 has boxes without area."""
    (folder / "LICENSE").parent.mkdir(parents=True)
    (folder / "LICENSE").write_text("MIT")
    voc = folder / "BCCD"
    for part in ("Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True)
    point, line = ("RBC", (9, 9, 9, 9)), ("RBC", (9, 9, 30, 9))
    boxes = {1: [point, ("WBC", (1, 1, 64, 48)), line, (name, (11, 6, 30, 25))]}
    for i in range(1, 5):
        objects = [voc_object(*x) for x in boxes.get(i, [("RBC", (5, 5, 20, 21))])]
        (voc / "Annotations" / f"{i}.xml").write_text(voc_xml(objects))
        write_image(voc / "JPEGImages" / f"{i}.jpg")
    for split, ids in zip(SPLITS, ("2\n1\n", "3\n", "4\n")):
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text(ids)
    return folder


def test_boxes_images_and_licence(tmp_path, capsys):
    clone, output = write_clone(tmp_path / "clone"), tmp_path / "out" / "bccd"
    assert main([str(clone), str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 images, 3 boxes",
        "val: 1 images, 1 boxes",
        "test: 1 images, 1 boxes",
    ]
    content = json.loads((output / "annotations" / "instances_train.json").read_text())
    assert [x["name"] for x in content["categories"]] == ["RBC", "WBC", "Platelets"]
    assert content["images"] == [
        {"id": i, "file_name": f"{name}.jpg", "width": 64, "height": 48}
        for i, name in ((1, "2"), (2, "1"))
    ]
    rows = [(1, 1, [4, 4, 16, 17]), (2, 2, [0, 0, 64, 48]), (2, 3, [10, 5, 20, 20])]
    assert content["annotations"] == [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        | {"area": box[2] * box[3]}
        for i, (image, category, box) in enumerate(rows, 1)
    ]
    for i in range(1, 5):
        written = (output / "images" / f"{i}.jpg").read_bytes()
        assert written == (clone / "BCCD" / "JPEGImages" / f"{i}.jpg").read_bytes()
    assert (output / "LICENSE").read_text() == "MIT"


def test_errors_leave_nothing_behind(tmp_path, capsys):
    clone = write_clone(tmp_path / "clone", name="Platelet")
    out = tmp_path / "out"
    for folder, message in (
        (clone, "1.xml: object 'Platelet' is none of RBC, WBC, Platelets"),
        (tmp_path, "LICENSE: not a clone of https://github.com/Shenggan/BCCD_Dataset"),
    ):
        assert main([str(folder), str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main([str(clone), str(clone)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [x.name for x in tmp_path.iterdir()] == ["clone"]


@pytest.mark.parametrize(
    "config", ["Quickstart/mimicdet_R_18_FPN_bccd", "Distillation/bccd/retinanet_R_34_bccd"]
)
def test_configs_read_this_layout(config):
    datasets = model_zoo.get_config(config).DATASETS
    for (address,), split in ((datasets.TRAIN, "train"), (datasets.TEST, "test")):
        kind, json_file, images = address.split(":")
        assert json_file.endswith(f"/annotations/instances_{split}.json") and kind == "coco"
        assert images == json_file.removesuffix(f"annotations/instances_{split}.json") + "images"
