"""Files outside their folder, records of a user's own code, and the tool that checks it all."""

import json
import os

import pytest
from broken_images import BROKEN
from data_folders import coco_content, write_coco, write_image, write_voc
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from mimicdet.commands.validate_dataset import main
from mimicdet.data import check_images
from mimicdet.data.catalog import load_records
from mimicdet.engine import setup_cfg
from mimicdet.utils.errors import UserError
from tests.helpers import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "Base-MimicDet.yaml")


def config(name, *opts):
    data = ["DATASETS.TRAIN", f"({name!r},)", "DATASETS.TEST", "()"]
    data += ["MODEL.DEVICE", "cpu"]
    return setup_cfg(CONFIG, [*data, "MODEL.ROI_HEADS.NUM_CLASSES", "0", *opts])


@pytest.mark.parametrize("way", ["../", "absolute", "link", "folder link"])
def test_images_outside_their_folder(tmp_path, monkeypatch, way):
    content = coco_content()
    path = write_coco(tmp_path / "set", content)
    images, outside = tmp_path / "set" / "images", tmp_path / "outside" / "3.png"
    write_image(outside)
    name = {
        "../": "../../outside/3.png",
        "absolute": str(outside),
        "link": "link.png",
        "folder link": "folder/3.png",
    }[way]
    os.symlink(outside, images / "link.png")
    os.symlink(outside.parent, images / "folder")
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"1 of 2 images are outside.*MIMICDET_FOLLOW_LINKS"
    ) as error:
        config(f"coco:{path}:{images}")
    assert str(path) in str(error.value) and f": {name};" in str(error.value)
    monkeypatch.setenv("MIMICDET_FOLLOW_LINKS", "1")
    if "link" in way:
        config(f"coco:{path}:{images}")
    else:
        with pytest.raises(UserError, match="1 of 2 images are outside"):
            config(f"coco:{path}:{images}")


def test_links_that_stay_inside_and_a_folder_that_is_one(tmp_path):
    path = write_coco(tmp_path / "set", coco_content())
    images = tmp_path / "set" / "images"
    (images / "2.png").rename(images / "two.png")
    os.symlink("two.png", images / "2.png")
    os.symlink(images, tmp_path / "pictures")
    config(f"coco:{path}:{tmp_path / 'pictures'}")


def test_links_out_of_a_voc_folder(tmp_path):
    folder = write_voc(tmp_path / "VOC2012")
    image = folder / "JPEGImages" / "a.jpg"
    image.rename(tmp_path / "a.jpg")
    os.symlink(tmp_path / "a.jpg", image)
    with pytest.raises(UserError, match=r"train.txt: 1 of 2 images are outside.*: a.jpg"):
        config(f"voc:{folder}:train")


WRONG = [
    ("area", -1, "area that is no finite number from 0"),
    ("area", "12", "area that is no finite number from 0"),
    ("area", [12], "area that is no finite number from 0"),
    ("area", None, "area that is no finite number from 0"),
    ("area", 10**400, "area that is no finite number from 0"),
    ("bbox", [1, 2, 3, 10**400], "not 4 finite numbers"),
    ("id", 1.5, "annotation id that is neither"),
    ("segmentation", [[1, 2, "3"]], "segmentation that is neither"),
    ("segmentation", {"size": [2, 2], "counts": [1, -1]}, "segmentation that is neither"),
    ("keypoints", ["a"], "keypoints that are no list"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_wrong_fields_of_annotations(tmp_path, key, value, message):
    content = coco_content()
    content["annotations"][1][key] = value
    path = write_coco(tmp_path, content)
    with pytest.raises(UserError) as error:
        config(f"coco:{path}")
    assert f"{path}: {message}" in str(error.value) or message in str(error.value)
    assert "annotations[1]" in str(error.value) and str(path) in str(error.value)


def test_an_object_of_a_poor_polygon_keeps_its_box(tmp_path, caplog):
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[4, 5, 24, 15]]
    name = f"coco:{write_coco(tmp_path, content)}"
    config(name)
    assert "polygon of 3 corners" in caplog.text and "annotations[0] (id 1)" in caplog.text
    assert sum(len(x["annotations"]) for x in load_records(name)) == 3


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses(tmp_path, text):
    path = write_coco(tmp_path, text)
    with pytest.raises(UserError, match="data.json"):
        config(f"coco:{path}")


def record(path, **changes):
    annotation = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    annotation |= {k: v for k, v in changes.items() if k in ("bbox", "category_id", "bbox_mode")}
    rest = {k: v for k, v in changes.items() if k not in annotation}
    made = {"file_name": str(path), "image_id": 5, "width": 64, "height": 48}
    return made | {"annotations": [annotation]} | rest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "none.png"}, "image file missing (1): record 1 (image_id 6): none.png"),
        ({"width": 0}, "no positive width and height"),
        ({"image_id": 5}, "image_id used twice"),
        ({"annotations": [3]}, "annotation that is no dict"),
        ({"category_id": 2}, "category_id that is no whole number from 0 to 1"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox is not 4 finite numbers"),
        ({"bbox": [1, 2]}, "bbox is not 4 numbers"),
        ({"bbox": [5, 2, 3, 4]}, "bbox with a negative size"),
        ({"bbox_mode": None}, "bbox_mode is neither"),
    ],
)
def test_records_of_registered_sets(tmp_path, changes, message):
    write_image(tmp_path / "a.png")
    good = record(tmp_path / "a.png")
    bad = record(tmp_path / "a.png", **{"image_id": 6, **changes})
    for name, records in (("own_good", [good]), ("own_bad", [good, bad])):
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).thing_classes = ["x", "y"]
    assert load_records("own_good") == [good]
    with pytest.raises(UserError) as error:
        load_records("own_bad")
    assert str(error.value).startswith("own_bad: ") and message in str(error.value)


def test_images_are_checked_on_demand(tmp_path):
    name = f"coco:{write_coco(tmp_path, coco_content())}"
    check_images(config(name, "DATALOADER.CHECK_IMAGES", "True"))
    BROKEN["truncated PNG"](tmp_path / "images" / "2.png")
    check_images(config(name))
    with pytest.raises(UserError, match=r"2.png: not an image .*image_id 2"):
        check_images(config(name, "DATALOADER.CHECK_IMAGES", "True"))


def test_the_tool_counts(tmp_path, capsys):
    content = coco_content()
    content["annotations"][0]["bbox"] = [70, 5, 20, 10]
    path = write_coco(tmp_path, content)
    assert main([f"coco:{path}", "--images", "--num-classes", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 images (1 without boxes), 2 boxes, 1 crowds, 1 boxes dropped in training" in out
    assert "boxes: cat 1, dog 1" in out and out.endswith("sound\n")


def test_the_tool_names_everything(tmp_path, capsys):
    path = write_coco(tmp_path / "set", coco_content())
    BROKEN["no image"](tmp_path / "set" / "images" / "1.png")
    BROKEN["other size"](tmp_path / "set" / "images" / "2.png")
    assert main([f"coco:{path}"]) == 0
    assert main([f"coco:{path}", "nothing", "--num-classes", "9"]) == 1
    out = capsys.readouterr().out
    assert "NUM_CLASSES is 9" in out and "'nothing' is neither" in out
    content = coco_content()
    content["annotations"] = [{**x, "area": -1} for x in content["annotations"] * 3]
    worse = write_coco(tmp_path / "worse", content)
    assert main([f"coco:{path}", f"coco:{worse}", "--images"]) == 1
    out = capsys.readouterr().out
    assert "image that cannot be read (1):" in out and "(image_id 1)" in out
    assert "image of another size (1):" in out and "(image_id 2)" in out
    assert "area that is no finite number from 0 (9):" in out
    assert all(f"annotations[{i}]" in out for i in range(9)) and out.endswith("not sound\n")
