"""voc:FOLDER:SPLIT: registration, and every fault named with its file and object."""

from pathlib import Path

import pytest
import torch
from data_folders import voc_object, voc_xml, write_voc
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from mimicdet.data import register_datasets
from mimicdet.utils.errors import UserError


@pytest.fixture()
def folder(tmp_path):
    return write_voc(tmp_path / "VOC2012")


def register(folder, split="train"):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"voc:{folder}:{split}",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    register_datasets(cfg)
    return cfg


def write_annotation(folder, *objects, name="a"):
    (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(list(objects)))


def test_registers_records_as_detectron2_reads_them(folder):
    cfg = register(folder)
    name = f"voc:{folder}:train"
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["cat", "dog"]
    assert (meta.dirname, meta.split, meta.year) == (str(folder), "train", 2012)
    assert meta.evaluator_type == "pascal_voc"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    first, second = DatasetCatalog.get(name)
    assert (first["image_id"], first["width"], first["height"]) == ("a", 64, 48)
    assert [Path(x["file_name"]).name for x in (first, second)] == ["a.jpg", "b.jpeg"]
    # Counted from 1, last pixel inside -> from 0, exclusive.
    assert [x["bbox"] for x in first["annotations"]] == [[0, 0, 64, 48], [10, 5, 30, 25]]
    assert [x["category_id"] for x in first["annotations"]] == [1, 0]
    assert first["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS
    assert second["annotations"] == []
    first["annotations"].clear()  # what a user does to the records stays with the user
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 2


def test_png_and_difficult_objects_and_the_year_in_the_name(tmp_path):
    folder = write_voc(tmp_path / "VOC2007")
    register(folder, "val")
    name = f"voc:{folder}:val"
    (record,) = DatasetCatalog.get(name)
    assert Path(record["file_name"]).name == "c.png" and len(record["annotations"]) == 1
    assert MetadataCatalog.get(name).year == 2007
    # Names come from the whole folder, so that splits agree.
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]


def test_missing_folders_and_splits(folder, tmp_path):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        register(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no split file .*test.txt.*: train, val"):
        register(folder, "test")
    (folder / "JPEGImages" / "b.jpeg").unlink()
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(UserError) as error:
        register(folder)
    message = str(error.value)
    assert "train.txt" in message
    assert "image file missing (1): JPEGImages/b (.jpg, .jpeg, .png)" in message
    assert "image without annotation file (1): Annotations/a.xml" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", r"image listed twice \(1\): a"),
        ("a 1\nb -1\n", r"not one image name a line \(2\): line 1: 'a 1'"),
        ("\n\n", "lists no image"),
    ],
)
def test_faulty_split_files(folder, text, message):
    (folder / "ImageSets" / "Main" / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        register(folder)
    assert "train.txt" in str(error.value)


DOG = voc_object("dog", (1, 1, 9, 9))


@pytest.mark.parametrize(
    ("content", "kind", "record"),
    [
        ("<annotation><size>", "broken XML", "a.xml: no element found"),
        (voc_xml([DOG, "<name>cat</name>"]), "object without a bndbox", "a.xml: object 2 (cat)"),
        (voc_xml([voc_object("cat", (1, 2, "x", 4))]), "bndbox of 4 numbers", "object 1 (cat)"),
        (voc_xml([voc_object("cat", (9, 2, 3, 4))]), "negative size", "a.xml: object 1 (cat)"),
        (voc_xml([voc_object("", (1, 2, 3, 4))]), "without a name", "a.xml: object 1 (no name)"),
        (voc_xml([voc_object("a/b", (1, 2, 3, 4))]), "with a slash", "a.xml: object 1 (a/b)"),
        (voc_xml([DOG], size=""), "without a positive <size>", "a.xml"),
    ],
)
def test_faulty_annotations_are_named(folder, content, kind, record):
    (folder / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(ValueError) as error:
        register(folder)
    message = str(error.value)
    assert str(folder) in message and kind in message and record in message
    assert "\n" not in message
    assert f"voc:{folder}:train" not in DatasetCatalog


def test_no_object_anywhere_is_an_error(folder):
    for name in "abc":
        write_annotation(folder, name=name)
    with pytest.raises(ValueError, match="Annotations: no <object>"):
        register(folder)


def test_harmless_oddities_are_warnings(folder, caplog):
    write_annotation(
        folder,
        voc_object("dog", (9, 1, 8, 9)),
        voc_object("dog", (1, 1, 70, 9)),
    )
    with caplog.at_level("WARNING", logger="mimicdet"):
        register(folder)
    assert "without area, left out of training (1): a.xml: object 1 (dog)" in caplog.text
    assert "outside its image, clipped in training (1): a.xml: object 2 (dog)" in caplog.text
    assert "no object of cat in this split" in caplog.text


def _perfect_ap(name):
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = Instances((record["height"], record["width"]))
        boxes = [x["bbox"] for x in record["annotations"]]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([x["category_id"] for x in record["annotations"]])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


def test_detectron2s_evaluator_reads_it(folder):
    register(folder)
    assert _perfect_ap(f"voc:{folder}:train") == pytest.approx(100)


@pytest.mark.parametrize("odd", ["no flags", "fractions", "spaces", "blank line"])
def test_what_the_evaluator_cannot_read_is_completed(folder, odd, caplog):
    dog = voc_object("dog", (1, 1, 64, 48))
    cat = {
        "no flags": voc_object("cat", (11, 6, 30, 25), flags=False),
        "fractions": voc_object("cat", ("11.0", "6.0", "30.0", "25.0")),
        "spaces": voc_object(" cat ", (11, 6, 30, 25)),
        "blank line": voc_object("cat", (11, 6, 30, 25)),
    }[odd]
    write_annotation(folder, dog, cat)
    if odd == "blank line":
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n\nb\n")
    with caplog.at_level("WARNING", logger="mimicdet"):
        register(folder)
    assert "completed copy" in caplog.text
    name = f"voc:{folder}:train"
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get(name).dirname != str(folder)
    assert _perfect_ap(name) == pytest.approx(100)
