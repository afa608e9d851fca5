"""Names in the config, classes against the model, the real data sets."""

import os
import re
from pathlib import Path

import pytest
from data_folders import coco_content, write_coco, write_voc
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from mimicdet.data import MimicDatasetMapper, output_name, register_datasets
from mimicdet.data.datasets.coco import parse_coco_address
from mimicdet.data.datasets.voc import parse_voc_address

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def config(train, test=(), num_classes=0):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return cfg


def coco_set(folder, names=("cat", "dog")):
    content = coco_content()
    content["categories"] = [{"id": i, "name": n} for i, n in zip((3, 7), names, strict=True)]
    return f"coco:{write_coco(folder, content)}"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("coco:a/b.json", ("a/b.json", None)),
        ("coco:a/b.json:c/d", ("a/b.json", "c/d")),
        ("coco:a/b.json:c:d", ("a/b.json", "c:d")),
        ("coco:a:b.json:c", ("a:b.json", "c")),
        ("coco:a/b.json:", ("a/b.json", None)),
        ("coco:a/labels:c", ("a/labels", "c")),
    ],
)
def test_coco_addresses(address, expected):
    assert parse_coco_address(address) == expected


def test_voc_addresses():
    assert parse_voc_address("voc:a/b:train") == ("a/b", "train")
    for address in ("voc:a/b", "voc::train", "voc:a/b:"):
        with pytest.raises(ValueError, match=f"'{address}' is no voc:FOLDER:SPLIT"):
            parse_voc_address(address)
    with pytest.raises(ValueError, match="names no file; write coco:"):
        parse_coco_address("coco:")


def test_unknown_names_say_how_to_write_an_address():
    with pytest.raises(ValueError) as error:
        register_datasets(config(["mimicdet_shapes_train"], ["mimicdet_shape_val"]))
    message = str(error.value)
    assert "DATASETS.TEST: 'mimicdet_shape_val'" in message
    assert "mimicdet_shapes_val" in message
    assert "coco:ANNOTATIONS.json:IMAGE_FOLDER" in message and "voc:FOLDER:SPLIT" in message


def test_number_of_classes_is_taken_from_the_data_and_logged(tmp_path, caplog):
    cfg = config([coco_set(tmp_path)])
    cfg.freeze()
    with caplog.at_level("INFO", logger="mimicdet"):
        register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert "MODEL.ROI_HEADS.NUM_CLASSES = 2, from the data: cat, dog" in caplog.text
    assert cfg.is_frozen()
    cfg = config([coco_set(tmp_path)], num_classes=2)
    register_datasets(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2 and not cfg.is_frozen()


def test_number_of_classes_that_is_not_the_datas(tmp_path):
    with pytest.raises(ValueError) as error:
        register_datasets(config([coco_set(tmp_path)], num_classes=80))
    message = str(error.value)
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 80" in message and "2 classes: cat, dog" in message


def test_registered_sets_are_checked_by_their_metadata_alone():
    cfg = config(["coco_2017_train"], ["coco_2017_val"])
    register_datasets(cfg)  # the files are not there
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    with pytest.raises(ValueError, match="NUM_CLASSES is 5, but the data has 80 classes: person"):
        register_datasets(config(["coco_2017_train"], num_classes=5))
    cfg = config(["mimicdet_shapes_train"], ["mimicdet_shapes_val"])
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5


def test_sets_without_known_classes_need_the_number():
    DatasetCatalog.register("nameless", lambda: [])
    with pytest.raises(ValueError, match="NUM_CLASSES is 0.*set the key"):
        register_datasets(config(["nameless"]))
    cfg = config(["nameless"], num_classes=3)
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_sets_must_have_the_same_classes(tmp_path):
    first, second = coco_set(tmp_path / "a"), coco_set(tmp_path / "b", ("cat", "horse"))
    with pytest.raises(ValueError) as error:
        register_datasets(config([first], [second]))
    message = str(error.value)
    assert f"{tmp_path}/a/annotations/data.json" in message
    assert f"{tmp_path}/b/annotations/data.json" in message
    assert "only in the first: dog; only in the second: horse" in message
    third = coco_set(tmp_path / "c", ("dog", "cat"))
    with pytest.raises(ValueError, match="disagree: order cat, dog against dog, cat"):
        register_datasets(config([first], [third]))
    # COCO and VOC together are fine where the classes agree.
    voc = f"voc:{write_voc(tmp_path / 'v')}:val"
    cfg = config([first], [voc])
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_output_names_are_one_harmless_path_component():
    assert output_name("mimicdet_shapes_val") == "mimicdet_shapes_val"
    names = ["coco:../x/a.json:../x/images", "coco:../y/a.json", "voc:/d/VOC2007:test", "a/b", ".."]
    safe = [output_name(x) for x in names]
    assert len(set(safe)) == len(names)
    assert all(re.fullmatch(r"[\w-]+", x) for x in safe)
    assert safe[0].startswith("coco_a_") and safe[2].startswith("voc_VOC2007_test_")


def test_the_train_loader_reads_an_address(tmp_path):
    cfg = config([coco_set(tmp_path)])
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    register_datasets(cfg)
    loader = build_detection_train_loader(cfg, mapper=MimicDatasetMapper(cfg, True))
    batches = [batch for batch, _ in zip(loader, range(4), strict=False)]
    crowds = {x["image_id"]: len(x["crowd_boxes"]) for batch in batches for x in batch}
    assert crowds == {1: 0, 2: 1}


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("data", "split", "images", "boxes", "num_classes"),
    [
        ("bccd", "train", 205, 2804, 3),
        ("bccd", "test", 72, 945, 3),
        ("coco_tiny", "train", 39, 407, 80),
        ("coco_tiny", "val", 44, 304, 80),
    ],
)
def test_real_data(data, split, images, boxes, num_classes):
    folder = REAL_DATA / data
    name = f"coco:{folder}/annotations/instances_{split}.json:{folder}/images"
    cfg = config([name])
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == num_classes
    if data == "bccd":
        assert MetadataCatalog.get(name).thing_classes == ["RBC", "WBC", "Platelets"]
    else:
        coco = MetadataCatalog.get("coco_2017_val")
        assert MetadataCatalog.get(name).thing_classes == coco.thing_classes
    records = DatasetCatalog.get(name)
    assert (len(records), sum(len(x["annotations"]) for x in records)) == (images, boxes)
    assert all(os.path.isfile(x["file_name"]) for x in records)
