"""coco:ANNOTATIONS.json:IMAGE_FOLDER: registration, and every fault named with its record."""

import json

import pytest
import torch
from data_folders import coco_content, write_coco
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from mimicdet.data import register_datasets
from mimicdet.utils.errors import UserError


def register(*train, test=(), num_classes=0):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    register_datasets(cfg)
    return cfg


def test_registers_with_classes_in_the_order_of_their_ids(tmp_path):
    path = write_coco(tmp_path, coco_content())
    name = f"coco:{path}:{tmp_path / 'images'}"
    cfg = register(name)
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["cat", "dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert (meta.json_file, meta.image_root) == (str(path), str(tmp_path / "images"))
    assert meta.evaluator_type == "coco"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2
    records = DatasetCatalog.get(name)
    assert [x["category_id"] for x in records[0]["annotations"]] == [1, 0]
    assert records[1]["annotations"][0]["iscrowd"] == 1
    assert records[0]["file_name"] == str(tmp_path / "images" / "1.png")
    register(name)  # again: nothing to do


@pytest.mark.parametrize("folder", ["images", "annotations/images", "annotations"])
def test_finds_the_image_folder(tmp_path, folder):
    path = write_coco(tmp_path, coco_content(), folder)
    register(f"coco:{path}")
    assert MetadataCatalog.get(f"coco:{path}").image_root == str(tmp_path / folder)


def test_no_image_folder_lists_what_was_tried(tmp_path):
    path = write_coco(tmp_path, coco_content(), "elsewhere")
    with pytest.raises(UserError) as error:
        register(f"coco:{path}")
    for folder in ("images", "annotations/images", "annotations"):
        assert str(tmp_path / folder) in str(error.value)
    assert "1.png" in str(error.value) and str(path) in str(error.value)


def test_missing_files(tmp_path):
    path = write_coco(tmp_path, coco_content())
    with pytest.raises(UserError, match="no annotation file .*nowhere.json"):
        register(f"coco:{tmp_path / 'nowhere.json'}")
    with pytest.raises(UserError, match="no image folder .*nothing"):
        register(f"coco:{path}:{tmp_path / 'nothing'}")
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"data\.json: 1 of 2 images .*: 2\.png"):
        register(f"coco:{path}")
    assert f"coco:{path}" not in DatasetCatalog


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken", "is not JSON: .*line 1"),
        ("[1, 2]", "no COCO detection file: its top level is a list"),
        ('{"images": [], "licenses": 3}', "no list 'annotations', 'categories'.*'licenses'"),
        ('{"images": [], "annotations": [], "categories": [{}]}', "lists no image"),
        ('{"images": [{}], "annotations": [], "categories": []}', "lists no category"),
        ('{"images": [3], "annotations": [], "categories": [{}]}', r"no JSON object.*images\[0\]"),
    ],
)
def test_files_that_are_no_coco_json(tmp_path, text, message):
    path = write_coco(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        register(f"coco:{path}")
    assert str(path) in str(error.value)


RECORD_FAULTS = [
    (("images", 1, "id", 1), "image id used twice", "images[1] (id 1"),
    (("images", 1, "id", None), "image without an id", "images[1]"),
    (("images", 1, "id", "two"), "partly numbers, partly text", "2 images"),
    (("images", 0, "width", None), "positive width and height", "images[0] (id 1"),
    (("images", 0, "height", 0), "positive width and height", "images[0] (id 1"),
    (("images", 0, "file_name", None), "image without file_name", "images[0] (id 1"),
    (("annotations", 2, "image_id", 9), "unknown image_id", "annotations[2] (id 3): image_id 9"),
    (("annotations", 2, "category_id", 1), "unknown category_id", "annotations[2] (id 3): 1"),
    (("annotations", 1, "id", 1), "annotation id used twice", "annotations[1] (id 1)"),
    (("annotations", 1, "bbox", None), "not 4 finite numbers", "annotations[1] (id 2): None"),
    (("annotations", 1, "bbox", [1, 2, 3]), "not 4 finite numbers", "annotations[1] (id 2)"),
    (("annotations", 1, "bbox", [1, 2, 3, "4"]), "not 4 finite numbers", "annotations[1]"),
    (("annotations", 1, "bbox", [1, 2, 3, float("nan")]), "not 4 finite", "annotations[1]"),
    (("annotations", 1, "bbox", [9, 9, -3, 4]), "negative size", "annotations[1] (id 2): [9, 9"),
    (("annotations", 1, "iscrowd", 2), "iscrowd is neither 0 nor 1", "annotations[1] (id 2): 2"),
    (("annotations", 1, "ignore", 1), '"ignore" is not supported', "annotations[1] (id 2)"),
    (("categories", 1, "id", 7), "category id used twice", "categories[1] (id 7, name 'cat')"),
    (("categories", 1, "id", "3"), "whole number as id", "categories[1] (id 3, name 'cat')"),
    (("categories", 1, "name", "dog"), "category name used twice", "categories[1] (id 3"),
    (("categories", 1, "name", ""), "category without a name", "categories[1] (id 3"),
]


@pytest.mark.parametrize(("change", "kind", "record"), RECORD_FAULTS)
def test_faulty_records_are_named(tmp_path, change, kind, record):
    content = coco_content()
    key, index, field, value = change
    content[key][index][field] = value
    path = write_coco(tmp_path, content)
    with pytest.raises(ValueError) as error:
        register(f"coco:{path}")
    message = str(error.value)
    assert message.startswith(f"{path}: ") and kind in message and record in message
    assert "\n" not in message
    assert f"coco:{path}" not in DatasetCatalog


def test_all_faults_are_reported_at_once(tmp_path):
    content = coco_content()
    for annotation in content["annotations"]:
        del annotation["bbox"]
    content["annotations"] += [dict(content["annotations"][0], id=n, image_id=5) for n in (8, 9)]
    del content["images"][0]["width"]
    with pytest.raises(ValueError) as error:
        register(f"coco:{write_coco(tmp_path, content)}")
    message = str(error.value)
    assert "4 finite numbers [x, y, width, height] (5): annotations[0]" in message
    assert "and 2 more" in message
    assert "unknown image_id (2)" in message and "positive width" in message


def test_harmless_oddities_are_warnings(tmp_path, caplog):
    content = coco_content()
    content["annotations"][0]["bbox"] = [4, 4, 0, 10]
    content["annotations"][1]["bbox"] = [50, 20, 30, 20]
    path = write_coco(tmp_path, content)
    with caplog.at_level("WARNING", logger="mimicdet"):
        register(f"coco:{path}")
    assert "bbox without area, left out of training (1): annotations[0] (id 1)" in caplog.text
    assert "outside its image, clipped in training (1): annotations[1] (id 2)" in caplog.text


def _evaluate_perfect(name, output):
    """COCO AP of the ground truth given as detections."""
    evaluator = COCOEvaluator(name, output_dir=str(output))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        objects = [x for x in record["annotations"] if not x.get("iscrowd")]
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([x["category_id"] for x in objects]).long()
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_the_evaluator_reads_it(tmp_path):
    name = f"coco:{write_coco(tmp_path, coco_content())}"
    register(name)
    assert _evaluate_perfect(name, tmp_path)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("lacking", ["id", "area", "iscrowd", "zero id"])
def test_fields_the_evaluation_needs_are_completed(tmp_path, caplog, lacking):
    content = coco_content()
    content["annotations"].pop()
    for number, annotation in enumerate(content["annotations"]):
        if lacking == "zero id":
            annotation["id"] = number
        else:
            del annotation[lacking]
    path = write_coco(tmp_path, content)
    name = f"coco:{path}"
    with caplog.at_level("WARNING", logger="mimicdet"):
        register(name)
    assert f"{path}: " in caplog.text and "annotations lack" in caplog.text
    assert _evaluate_perfect(name, tmp_path)["AP"] == pytest.approx(100)
    assert json.loads(path.read_text()) == content  # the user's file is left alone
    copy = json.loads(open(MetadataCatalog.get(name).json_file).read())
    assert [x["area"] for x in copy["annotations"]] == [200, 600]


def test_image_ids_may_be_text(tmp_path):
    content = coco_content()
    for record in content["images"]:
        record["id"] = f"img{record['id']}"
    for record in content["annotations"]:
        record["image_id"] = f"img{record['image_id']}"
    name = f"coco:{write_coco(tmp_path, content)}"
    register(name)
    assert _evaluate_perfect(name, tmp_path)["AP"] == pytest.approx(100)


def test_relative_addresses_start_from_the_working_folder(tmp_path, monkeypatch):
    write_coco(tmp_path / "set", coco_content())
    monkeypatch.chdir(tmp_path)
    register("coco:set/annotations/data.json:set/images")
    records = DatasetCatalog.get("coco:set/annotations/data.json:set/images")
    assert [x["file_name"] for x in records] == ["set/images/1.png", "set/images/2.png"]
