"""The embedded data set: what is drawn, how it is written and registered."""

import contextlib
import io
import json
import threading

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from mimicdet.data import cache_root
from mimicdet.data.datasets.shape_drawing import SHAPE_NAMES, placed_outline
from mimicdet.data.datasets.shapes import Scene, make_scene, write_shapes

NUM_IMAGES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), "train", NUM_IMAGES, seed=3)


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "annotations.json").read_text())


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _empty_scene(min_visible=0.7, side=200):
    image, owner = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.int32)
    return Scene(image, owner, min_visible=min_visible)


def test_same_arguments_give_the_same_bytes(tmp_path, folder):
    first = _files(write_shapes(tmp_path / "a", "train", 4, seed=3))
    again = _files(write_shapes(tmp_path / "b", "train", 4, seed=3))
    assert len(first) == 5 and first == again
    # An image does not depend on how many there are.
    name = next(p for p in first if p.name == "000003.png")
    assert first[name] == (folder / name).read_bytes()


def test_index_split_and_seed_change_the_image(tmp_path, folder):
    image = (folder / "images" / "000000.png").read_bytes()
    assert image != (folder / "images" / "000001.png").read_bytes()
    val = write_shapes(tmp_path, "val", 1, seed=3)
    other_seed = write_shapes(tmp_path, "train", 1, seed=4)
    for other in (val, other_seed):
        assert image != (other / "images" / "000000.png").read_bytes()


def test_scales_cover_16_to_512_and_lie_mostly_in_the_middle(content):
    boxes = np.array([x["bbox"] for x in content["annotations"] if not x["iscrowd"]])
    scales = np.sqrt(boxes[:, 2] * boxes[:, 3])
    assert scales.min() >= 15 and scales.min() < 32
    assert scales.max() <= 514 and scales.max() > 400
    assert ((scales >= 40) & (scales <= 320)).mean() > 0.8
    aspects = boxes[:, 2] / boxes[:, 3]
    assert aspects.min() > 0.4 and aspects.max() < 2.5


def test_boxes_lie_inside_their_images_and_files_match(folder, content):
    sizes = {x["id"]: (x["width"], x["height"]) for x in content["images"]}
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        assert left >= 0 and top >= 0 and width > 0 and height > 0
        assert left + width <= sizes[x["image_id"]][0] and top + height <= sizes[x["image_id"]][1]
        assert 0 < x["area"] <= width * height
    for image in content["images"][:5]:
        pixels = cv2.imread(str(folder / "images" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)


def test_there_are_empty_crowded_and_crowd_images_of_all_classes(content):
    annotations = content["annotations"]
    counts = np.bincount([x["image_id"] for x in annotations], minlength=NUM_IMAGES + 1)[1:]
    assert (counts == 0).any() and counts.max() >= 10
    assert 0 < sum(x["iscrowd"] for x in annotations) < 0.1 * len(annotations)
    share = np.bincount([x["category_id"] for x in annotations])[1:] / len(annotations)
    assert len(share) == len(SHAPE_NAMES) and share.min() > 0.1


def test_box_is_tight_around_the_drawn_pixels():
    rng = np.random.default_rng(0)
    for class_id, name in enumerate(SHAPE_NAMES):
        scene = _empty_scene()
        outline = placed_outline(name, 0.4, (60.0, 190.0), (80.0, 60.0))
        assert scene.add(rng, class_id, outline)
        y, x = np.nonzero(scene.image.any(axis=2) | (scene.owner > 0))
        expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert scene.objects[0]["bbox"] == [int(v) for v in expected]
        assert y.max() == 199  # clipped at the lower edge
        assert scene.objects[0]["category_id"] == class_id + 1


def test_nothing_is_hidden_beyond_the_limit():
    rng = np.random.default_rng(0)
    scene = _empty_scene(min_visible=0.7)
    assert scene.add(rng, 1, placed_outline("square", np.pi / 4, (60.0, 60.0), (40.0, 40.0)))
    # A larger square over three quarters of the first: refused, and nothing is drawn.
    before = scene.image.copy()
    cover = placed_outline("square", np.pi / 4, (85.0, 60.0), (70.0, 120.0))
    assert not scene.add(rng, 1, cover)
    assert (scene.image == before).all() and len(scene.objects) == 1
    # Over a quarter: allowed, and what it hides is counted.
    beside = placed_outline("square", np.pi / 4, (110.0, 60.0), (80.0, 120.0))
    assert scene.add(rng, 1, beside)
    assert scene.visible[0] == (scene.owner == 1).sum() < scene.areas[0]

    for index in range(15):
        scene = make_scene(np.random.Generator(np.random.PCG64([0, 0, index])))
        seen = np.bincount(scene.owner.ravel(), minlength=len(scene.areas) + 1)[1:]
        assert (seen >= 0.39 * np.array(scene.areas)).all()


def test_loads_with_detectron2_and_pycocotools(folder, content):
    file, images = str(folder / "annotations.json"), str(folder / "images")
    records = load_coco_json(file, images)
    assert len(records) == NUM_IMAGES
    assert sum(len(r["annotations"]) for r in records) == len(content["annotations"])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SHAPE_NAMES)
    assert len(coco.getAnnIds(iscrowd=True)) == sum(x["iscrowd"] for x in content["annotations"])


def test_a_folder_that_is_there_is_left_untouched(tmp_path, monkeypatch):
    target = write_shapes(tmp_path, "val", 2)
    (target / "annotations.json").write_text("mine")
    monkeypatch.setattr(
        "mimicdet.data.datasets.shapes.make_scene", lambda rng: pytest.fail("drawn again")
    )
    assert write_shapes(tmp_path, "val", 3) == target
    assert (target / "annotations.json").read_text() == "mine"
    assert len(list((target / "images").iterdir())) == 2


def test_writers_at_once_leave_one_whole_folder(tmp_path):
    threads = [threading.Thread(target=write_shapes, args=(tmp_path, "val", 3)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["val"]
    assert len(list((tmp_path / "val" / "images").iterdir())) == 3


def test_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'test'.*train.*val"):
        write_shapes(tmp_path, "test", 1)


def test_registered_with_paths_known_before_anything_is_drawn():
    for split in ("train", "val"):
        name = f"mimicdet_shapes_{split}"
        assert name in DatasetCatalog
        meta = MetadataCatalog.get(name)
        assert meta.thing_classes == list(SHAPE_NAMES)
        assert meta.evaluator_type == "coco"
        assert meta.json_file.endswith(f"/{split}/annotations.json")
        assert meta.image_root.endswith(f"/{split}/images")


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMICDET_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_root() == tmp_path / "a"
    monkeypatch.delenv("MIMICDET_CACHE")
    assert cache_root() == tmp_path / "b" / "mimicdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c" / ".cache" / "mimicdet"
