"""kitti:LABELS:IMAGES[:IDS]: registration, faults named with file and line, the split."""

import runpy
import sys
from pathlib import Path

import pytest
from data_folders import write_image
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from mimicdet.data import output_name, register_datasets
from mimicdet.data.datasets.kitti import KittiObject, parse_label, read_sequences, split_by_sequence
from mimicdet.utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
BOX_3D = "1.5 1.6 3.9 1.0 1.5 20.0 0.1"


def label(kind="Car", truncated=0.0, occluded=0, box=(10, 5, 40, 25)) -> str:
    return f"{kind} {truncated} {occluded} -1.57 {' '.join(map(str, box))} {BOX_3D}"


REGION = "DontCare -1 -1 -10 0.0 0.0 9.5 9.5 -1 -1 -1 -1000 -1000 -1000 -10"


@pytest.fixture()
def folder(tmp_path) -> Path:
    lines = {
        "000000": [label(), label("Pedestrian", 0.3, 1, (1.5, 2, 8, 30)), REGION],
        "000001": [label("Van"), label("Truck"), label("Cyclist"), label("Person_sitting")],
        "000002": [],
    }
    for image_id, rows in lines.items():
        write_image(tmp_path / "image_2" / f"{image_id}.png")
        (tmp_path / "label_2").mkdir(exist_ok=True)
        (tmp_path / "label_2" / f"{image_id}.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "train.txt").write_text("000001\n\n000000\n")
    return tmp_path


def register(address: str) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (address,), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    register_datasets(cfg)
    return cfg


def address(folder: Path, ids: str = "") -> str:
    return f"kitti:{folder / 'label_2'}:{folder / 'image_2'}" + (f":{folder / ids}" if ids else "")


def test_registers_three_classes_and_ignores_the_rest(folder):
    cfg = register(address(folder))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    name = address(folder)
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["Car", "Pedestrian", "Cyclist"]
    assert meta.evaluator_type == "kitti"
    first, second, third = DatasetCatalog.get(name)
    assert (first["image_id"], first["width"], first["height"]) == ("000000", 64, 48)
    found = [(x["category_id"], x["bbox"], x["iscrowd"]) for x in first["annotations"]]
    assert found == [
        (0, [10, 5, 40, 25], 0),
        (1, [1.5, 2, 8, 30], 0),
        (0, [0, 0, 9.5, 9.5], 1),
    ]
    # The van and the sitting person are left out of training, the truck is background.
    kinds = [(x["category_id"], x["iscrowd"]) for x in second["annotations"]]
    assert kinds == [(0, 1), (2, 0), (0, 1)]
    assert third["annotations"] == []


def test_a_list_of_ids_chooses_the_images(folder):
    register(address(folder, "train.txt"))
    records = DatasetCatalog.get(address(folder, "train.txt"))
    assert [x["image_id"] for x in records] == ["000001", "000000"]
    assert output_name(address(folder, "train.txt")).startswith("kitti_train_")


def test_label_fields():
    assert parse_label(label("Cyclist", 0.25, 2, (1, 2, 3.5, 4))) == KittiObject(
        "Cyclist", 0.25, 2, (1.0, 2.0, 3.5, 4.0)
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ("Car 0 0 0 1 2 3 4", r"not 15 fields \(1\): 000001.txt line 2"),
        (label("Bus"), r"unknown type 'Bus' \(1\): 000001.txt line 2"),
        (label(truncated="x"), "no number .*000001.txt line 2"),
        (label(box=(1, 2, "nan", 4)), "no number .*000001.txt line 2"),
        (label(occluded=7), "occlusion that is not .*000001.txt line 2"),
        (label(box=(5, 2, 5, 4)), "box without area .*000001.txt line 2"),
    ],
)
def test_faulty_lines_are_named_with_their_file(folder, line, message):
    (folder / "label_2" / "000001.txt").write_text(f"{label()}\n{line}\n")
    with pytest.raises(ValueError, match=message) as error:
        register(address(folder))
    assert str(folder / "label_2") in str(error.value)
    assert address(folder) not in DatasetCatalog


def test_missing_files_are_named(folder):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        register(f"kitti:{folder / 'nowhere'}:{folder / 'image_2'}")
    with pytest.raises(UserError, match="no split file .*val.txt"):
        register(address(folder, "val.txt"))
    (folder / "image_2" / "000000.png").unlink()
    (folder / "val.txt").write_text("000000\n000009\n")
    with pytest.raises(UserError) as error:
        register(address(folder, "val.txt"))
    assert "label file missing (1): 000009.txt" in str(error.value)
    assert "image missing (2): " in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("000000\n000000\n", "image listed twice .*000000"),
        ("000000 1\n", "not one image id a line .*line 1"),
        ("\n", "lists no image"),
    ],
)
def test_faulty_lists_of_ids(folder, text, message):
    (folder / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        register(address(folder, "val.txt"))


@pytest.mark.parametrize("text", ["kitti:a", "kitti:a::c", "kitti:a:b:c:d"])
def test_faulty_addresses(text):
    with pytest.raises(ValueError, match=r"no kitti:LABEL_FOLDER:IMAGE_FOLDER\[:IDS.txt\]"):
        register(text)


def test_labels_without_the_classes_are_an_error(folder):
    for path in (folder / "label_2").glob("*.txt"):
        path.write_text(label("Tram") + "\n")
    with pytest.raises(ValueError, match="no Car, Pedestrian, Cyclist in any label file"):
        register(address(folder))


# ---------------------------------------------------------------- the split


def write_mapping(folder: Path, drives: list[str], order: list[int]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"2011_09_26 {drive} {i:010d}" for i, drive in enumerate(drives)]
    (folder / "train_mapping.txt").write_text("\n".join(rows) + "\n")
    (folder / "train_rand.txt").write_text(",".join(map(str, order)) + "\n")
    return folder


def test_sequences_are_looked_up_through_the_devkits_order(tmp_path):
    write_mapping(tmp_path, ["drive_1", "drive_1", "drive_2"], [3, 1, 2])
    found = read_sequences(tmp_path / "train_mapping.txt", tmp_path / "train_rand.txt")
    assert found == {"000000": "drive_2", "000001": "drive_1", "000002": "drive_1"}
    write_mapping(tmp_path, ["drive_1"], [1, 2])
    with pytest.raises(ValueError, match="train_rand.txt: entry 2 is '2'.*1 to 1"):
        read_sequences(tmp_path / "train_mapping.txt", tmp_path / "train_rand.txt")
    (tmp_path / "train_mapping.txt").write_text("drive_1 0\n")
    with pytest.raises(ValueError, match="train_mapping.txt line 1"):
        read_sequences(tmp_path / "train_mapping.txt", tmp_path / "train_rand.txt")


@pytest.mark.parametrize("share, seed", [(0.5, 0), (0.5, 1), (0.75, 0)])
def test_no_sequence_is_on_both_sides(share, seed):
    sequences = {f"{i:06d}": f"drive_{(i * i) % 23}" for i in range(400)}
    train, validation = split_by_sequence(sequences, share, seed)
    assert sorted(train + validation) == sorted(sequences)
    assert not {sequences[i] for i in train} & {sequences[i] for i in validation}
    # No sequence here is longer than a ninth of all.
    assert abs(len(train) / 400 - share) < 0.1
    assert split_by_sequence(sequences, share, seed) == (train, validation)


def test_share_outside_of_its_range():
    with pytest.raises(ValueError, match="got 1.0"):
        split_by_sequence({"000000": "drive"}, 1.0)


def run_tool(monkeypatch, *arguments: Path) -> int:
    tool = str(REPOSITORY / "tools" / "split_kitti.py")
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(tool, run_name="__main__")
    return done.value.code


def test_tool_writes_both_lists(tmp_path, monkeypatch, capsys):
    mapping = write_mapping(tmp_path / "mapping", ["a", "a", "b", "b"], [1, 2, 3, 4])
    assert run_tool(monkeypatch, mapping, tmp_path / "out") == 0
    lists = {(tmp_path / "out" / f"{x}.txt").read_text() for x in ("train", "val")}
    assert lists == {"000000\n000001\n", "000002\n000003\n"}
    assert "2 images in" in capsys.readouterr().out
    assert run_tool(monkeypatch, tmp_path, tmp_path / "out") == 2
    assert "train_mapping.txt" in capsys.readouterr().err
