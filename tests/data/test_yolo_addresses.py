"""yolo:DATA.yaml:SPLIT: registration, what a label line may hold, faults named with their line."""

from pathlib import Path

import pytest
from data_folders import write_image
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mimicdet.data import output_name, register_datasets
from mimicdet.data.datasets.yolo import parse_label
from mimicdet.utils.errors import UserError

SQUARE = "1 0.5 0.5 0.25 0.5"  # of 64 x 48 pixels: 24, 12, 16, 24


@pytest.fixture()
def folder(tmp_path) -> Path:
    labels = {"a": [SQUARE, SQUARE, "0 0.1 0.1 0.5 0.1 0.3 0.9"], "b": [], "c": None}
    for name, lines in labels.items():
        write_image(tmp_path / "images" / "train" / f"{name}.png")
        if lines is not None:
            (tmp_path / "labels" / "train").mkdir(parents=True, exist_ok=True)
            text = "\n".join(lines) + "\n"
            (tmp_path / "labels" / "train" / f"{name}.txt").write_text(text)
    write(tmp_path, "names: [cat, dog]\ntrain: images/train\n")
    return tmp_path


def write(folder: Path, text: str) -> None:
    (folder / "data.yaml").write_text(text)


def label_file(folder: Path) -> Path:
    return folder / "labels" / "train" / "a.txt"


def register(folder: Path, split: str = "train") -> str:
    name = f"yolo:{folder / 'data.yaml'}:{split}"
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    return name


def test_registers_boxes_polygons_and_empty_images(folder, caplog):
    name = register(folder)
    records = DatasetCatalog.get(name)
    assert [Path(r["file_name"]).name for r in records] == ["a.png", "b.png", "c.png"]
    assert [(r["width"], r["height"]) for r in records] == [(64, 48)] * 3
    boxes = [(x["category_id"], x["bbox"]) for x in records[0]["annotations"]]
    assert boxes == [(1, [24.0, 12.0, 16.0, 24.0]), (0, [6.4, 4.8, 25.6, 38.4])]
    assert [len(r["annotations"]) for r in records[1:]] == [0, 0]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"] and metadata.evaluator_type == "coco"
    assert metadata.source_file == str(folder / "data.yaml")
    assert "without label file, taken as empty (1)" in caplog.text
    assert "listed twice, taken once (1)" in caplog.text
    assert output_name(name).startswith("yolo_data_train_")


@pytest.mark.parametrize(
    "text",
    [
        "path: images\nnames: {0: cat, 1: dog}\ntrain: train",
        "path: elsewhere\nnames: {1: dog, 0: cat}\ntrain: images/train",
        "names: [cat, dog]\ntrain: ../images/train",
        "names: [cat, dog]\ntrain: [images/train]",
        "names: [cat, dog]\ntrain: list.txt",
    ],
)
def test_ways_to_name_the_images(folder, text):
    (folder / "list.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    write(folder, text)
    records = DatasetCatalog.get(register(folder))
    assert len(records) == (2 if "list.txt" in text else 3)
    assert len(records[0]["annotations"]) == 2


def test_size_of_a_turned_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "images" / "train" / "a.jpg", exif=exif)
    (folder / "images" / "train" / "a.png").unlink()
    record = DatasetCatalog.get(register(folder))[0]
    assert (record["width"], record["height"]) == (48, 64)
    assert record["annotations"][0]["bbox"] == [18.0, 16.0, 12.0, 32.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", "no number from 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "no number from 0 to 1"),
        ("0 0.5 0.5 0.2", "neither 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.1", "neither 4 numbers"),
        ("0 0.5 0.5 nan 0.2", "no shares of the image"),
        ("0 32 24 10 10", "no shares of the image"),
        ("0 0.5 0.5 x 0.2", "no shares of the image"),
        ("0 0.5 0.5 0 0.2", "without area"),
    ],
)
def test_faulty_lines_are_named(folder, line, message):
    with pytest.raises(ValueError, match=message):
        parse_label(line, 2)
    label_file(folder).write_text(f"{SQUARE}\n{line}\n")
    with pytest.raises(UserError, match=rf"data.yaml: .*{message}.*a.txt line 2"):
        register(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat, dog]", "no folder under the key 'train'; splits: none"),
        ("names: [cat, dog]\nval: images/train", "'train'; splits: val"),
        ("names: [cat, dog]\ntrain: nowhere", "train is 'nowhere', but there is no"),
        ("names: [cat, dog]\ntrain: labels", "train holds no image"),
        ("names: {1: cat}\ntrain: images/train", "`names` must list the classes"),
        ("train: images/train", "`names` must list the classes"),
        ("- 1", "top level must be keys"),
        ("names: [", "is no YAML"),
        ("names: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_faulty_files_are_named(folder, text, message):
    write(folder, text)
    with pytest.raises(UserError, match=message):
        register(folder)


def test_what_is_missing_is_named(folder):
    with pytest.raises(UserError, match="no data set file"):
        register(folder / "nowhere")
    with pytest.raises(UserError, match="is no yolo:DATA.yaml:SPLIT"):
        register(folder, "")
    (folder / "images" / "train" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image that cannot be read \(1\): .*b.png"):
        register(folder)
