"""tools/prepare_bccd.py on a made-up clone, and data/bccd, which it made."""

import json

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from mimicdet import model_zoo
from mimicdet.commands.prepare_bccd import CLASSES, SPLITS, main
from mimicdet.data import load_records
from mimicdet.data.datasets import bccd
from mimicdet.utils.errors import UserError
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


def files_of(folder):
    return {x.relative_to(folder): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def test_resized_images_and_boxes_are_the_same_bytes_again(tmp_path):
    clone = write_clone(tmp_path / "clone")
    for name in ("a", "b"):
        assert main([str(clone), str(tmp_path / name), "--width", "40", "--quality", "80"]) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    content = json.loads((tmp_path / "a" / "annotations" / "instances_train.json").read_text())
    assert [(x["width"], x["height"]) for x in content["images"]] == [(40, 30)] * 2
    boxes = [x["bbox"] for x in content["annotations"]]
    assert boxes == [[2.5, 2.5, 10, 10.62], [0, 0, 40, 30], [6.25, 3.12, 12.5, 12.5]]
    assert [x["area"] for x in content["annotations"]] == [106.2, 1200, 156.25]
    with Image.open(tmp_path / "a" / "images" / "1.jpg") as image:
        assert image.size == (40, 30)
    source = (tmp_path / "a" / "SOURCE.md").read_text()
    assert "train 2, val 1, test 1" in source and "--width 40 --quality 80" in source


def test_an_image_that_cannot_be_read_is_named(tmp_path, capsys):
    clone = write_clone(tmp_path / "clone")
    path = clone / "BCCD" / "JPEGImages" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert main([str(clone), str(tmp_path / "out"), "--width", "40"]) == 2
    assert f"{path}: no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_embedded_data_is_whole_and_small():
    files = files_of(bccd.ROOT)
    assert sum(map(len, files.values())) <= 6_000_000
    for split, images, boxes in (("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)):
        records = load_records(f"mimicdet_bccd_{split}")
        assert (len(records), sum(len(x["annotations"]) for x in records)) == (images, boxes)
        for record in records:
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"]) == (480, 360)
            for item in record["annotations"]:
                x, y, w, h = item["bbox"]
                assert 0 <= x < x + w <= 480 and 0 <= y < y + h <= 360
        assert MetadataCatalog.get(f"mimicdet_bccd_{split}").thing_classes == list(CLASSES)
    # The images of all splits, the annotations, LICENSE and SOURCE.md.
    assert len(files) == 364 + 3 + 2
    assert (bccd.ROOT / "LICENSE").read_text().startswith("MIT License")
    assert "--width 480 --quality 75" in (bccd.ROOT / "SOURCE.md").read_text()


def test_without_a_checkout_the_data_says_what_is_missing(clean_catalogs, tmp_path):
    bccd.register_bccd("absent", tmp_path)
    with pytest.raises(UserError, match="mimicdet_bccd_absent: no file .*come with a checkout"):
        load_records("mimicdet_bccd_absent")


@pytest.mark.parametrize(
    "config", ["Quickstart/mimicdet_R_18_FPN_bccd", "Distillation/bccd/retinanet_lite0_bccd"]
)
def test_configs_read_the_embedded_data(config):
    datasets = model_zoo.get_config(config).DATASETS
    assert datasets.TRAIN == ("mimicdet_bccd_train",)
    assert datasets.TEST == ("mimicdet_bccd_test",)
