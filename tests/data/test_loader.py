"""Loaders: what a batch depends on, and a UserError that passes out of workers."""

import random
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from broken_images import BROKEN
from data_folders import write_image
from detectron2.data import DatasetCatalog, build_detection_train_loader

from mimicdet.commands.train import main
from mimicdet.config import load_config
from mimicdet.data import MimicDatasetMapper, TrainLoader, build_test_loader
from mimicdet.data.loader import seed_generators, seeded
from mimicdet.utils.errors import UserError
from tests.engine import tiny_run

WORKERS = pytest.mark.parametrize("workers", [0, 2])


def records(count=11):
    """Every third image is upright."""
    sizes = [(48, 64) if i % 3 == 0 else (64, 48) for i in range(count)]
    return [
        {"file_name": str(i), "image_id": i, "width": w, "height": h, "annotations": []}
        for i, (w, h) in enumerate(sizes)
    ]


def draw(record):
    """A mapper that draws from every generator that augmentations may use."""
    drawn = random.random(), np.random.random(), torch.rand(()).item()
    return {**record, "drawn": drawn}


def loader_of(workers=0, mapper=draw, data=None, seed=3, **changes):
    cfg = load_config("configs/COCO-Detection/mimicdet_R_50_FPN_1x.yaml").clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = workers, 3
    cfg.DATALOADER.update(changes)
    return TrainLoader(cfg, data or records(), mapper, seed)


@WORKERS
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_batch_depends_on_seed_and_number_alone(workers, start):
    whole = list(islice(loader_of(), 9))
    loader = loader_of(workers)
    loader.restart(3, start)
    seed_generators(99, start)
    assert list(islice(loader, 9 - start)) == whole[start:]
    drawn = [x["drawn"] for batch in whole for x in batch]
    assert all(len(set(column)) == len(drawn) for column in zip(*drawn))
    assert list(islice(loader_of(seed=4), 9)) != whole


def test_processes_draw_apart():
    def first(rank):
        with patch("detectron2.utils.comm.get_rank", return_value=rank):
            return next(iter(loader_of()))[0]["drawn"]

    assert first(0) == first(0) != first(1)


def test_batches_are_those_of_detectron2():
    """The same images in the same order and groups, without reading one to learn its size."""
    loader = loader_of()
    theirs = build_detection_train_loader(
        records(), mapper=draw, sampler=loader.sampler, total_batch_size=3
    )

    def names(batches):
        return [[x["image_id"] for x in batch] for batch in islice(batches, 12)]

    assert names(loader) == names(theirs)
    ungrouped = build_detection_train_loader(
        records(),
        mapper=draw,
        sampler=loader.sampler,
        total_batch_size=3,
        aspect_ratio_grouping=False,
    )
    assert names(loader_of(ASPECT_RATIO_GROUPING=False)) == names(ungrouped)


def test_batches_before_the_first_one_are_not_read():
    read = []
    loader = loader_of(mapper=lambda record: read.append(record) or record)
    loader.restart(3, 1000)
    next(iter(loader))
    assert len(read) == 3


def test_records_without_a_size_are_batched_apart(caplog):
    data = records()
    for record in data[:4]:
        del record["width"]
    batches = list(islice(loader_of(data=data), 30))
    kinds = [{"width" in x and x["width"] > x["height"] for x in batch} for batch in batches]
    assert all(len({"width" in x for x in batch}) == 1 for batch in batches)
    assert all(len(kind) == 1 for kind in kinds) and len(kinds) == 30
    assert "4 records say no width and height" in caplog.text


def test_the_generators_go_on_as_if_nothing_had_been_drawn():
    def drawn():
        return random.random(), np.random.random(), torch.rand(()).item()

    seed_generators(1)
    expected = [drawn(), drawn()]
    seed_generators(1)
    first = drawn()
    next(iter(loader_of()))
    with seeded(5):
        drawn()
    assert [first, drawn()] == expected


def broken(_, record):
    raise UserError(f"{record['file_name']}: no image")


@WORKERS
def test_an_error_leaves_training_as_it_is(workers):
    def mapper(record):
        return broken(None, record) if record["image_id"] == 4 else draw(record)

    with pytest.raises(UserError) as error:
        list(islice(loader_of(workers, mapper), 20))
    assert str(error.value) == "4: no image"


@WORKERS
def test_an_error_leaves_evaluation_as_it_is(workers, clean_catalogs):
    DatasetCatalog.register("loader_test", records)
    cfg = load_config("configs/COCO-Detection/mimicdet_R_50_FPN_1x.yaml").clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = workers
    with patch.object(MimicDatasetMapper, "__call__", lambda _, record: record):
        loader = build_test_loader(cfg, "loader_test")
        assert len(loader) == 11
        assert [[x["image_id"] for x in batch] for batch in loader] == [[i] for i in range(11)]
    with patch.object(MimicDatasetMapper, "__call__", broken), pytest.raises(UserError) as error:
        list(build_test_loader(cfg, "loader_test"))
    assert str(error.value) == "0: no image"


@WORKERS
@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_image_is_named(kind, workers, clean_catalogs, tmp_path):
    path = tmp_path / "image.png"
    write_image(path)
    BROKEN[kind](path)
    size = {"width": 64, "height": 48}
    record = {"file_name": str(path), "image_id": "an id", "annotations": [], **size}
    DatasetCatalog.register("loader_test", lambda: [record])
    cfg = load_config("", ["DATALOADER.NUM_WORKERS", str(workers), "SOLVER.IMS_PER_BATCH", "1"])
    mapper = MimicDatasetMapper(cfg, is_train=True)
    for loader in (TrainLoader(cfg, [record], mapper, 3), build_test_loader(cfg, "loader_test")):
        with pytest.raises(UserError, match=f"^{path}: .*an id") as error:
            next(iter(loader))
        assert "Traceback" not in str(error.value)


def test_a_fault_in_a_worker_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="in <lambda>"):
        next(iter(loader_of(2, mapper=lambda record: 1 // 0)))


@WORKERS
def test_the_command_prints_one_line(workers, clean_catalogs, tmp_path, capfd):
    address = tiny_run.write_coco(tmp_path / "data")
    config = tiny_run.write_config(tmp_path / "tiny.yaml", address)
    opts = ["DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", tmp_path / "out", *tiny_run.SHORT]
    with patch.object(MimicDatasetMapper, "__call__", broken):
        assert main(list(map(str, ["--config-file", config, *opts]))) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if "no image" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and ".jpg: no image" in lines[0]
    text = captured.out + captured.err + (tmp_path / "out" / "log.txt").read_text()
    assert "Traceback" not in text and "Exception during training" not in text
