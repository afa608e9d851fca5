"""A kind of data address is one file: in a user's own code, or in the package's folder."""

import importlib
import sys

import pytest
from data_folders import write_image
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from mimicdet.data import (
    MimicDatasetMapper,
    addresses,
    class_names,
    datasets,
    output_name,
    register_datasets,
)

LINES = '''
"""lines:FILE, "IMAGE CLASS X0 Y0 X1 Y1" a line."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from mimicdet.data.addresses import address_kind


@address_kind("lines:FILE")
def register_lines(name, file):
    rows = [line.split() for line in Path(file).read_text().splitlines()]
    classes = sorted({row[1] for row in rows})
    records = [
        {
            "file_name": str(Path(file).parent / row[0]),
            "image_id": i,
            "annotations": [
                {
                    "category_id": classes.index(row[1]),
                    "bbox": [float(x) for x in row[2:]],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            ],
        }
        for i, row in enumerate(rows)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="coco")
'''


@pytest.fixture(params=["own code", "package"])
def lines(request, tmp_path, monkeypatch):
    """The file above is there and imported; afterwards its kind is unknown again."""
    monkeypatch.setattr(addresses, "_KINDS", dict(addresses._KINDS))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "lines_kind.py").write_text(LINES)
    if request.param == "package":
        monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "code")])
        datasets.__loader__.exec_module(datasets)
        name = "mimicdet.data.datasets.lines_kind"
    else:
        monkeypatch.syspath_prepend(tmp_path / "code")
        name = "lines_kind"
        importlib.import_module(name)
    yield
    del sys.modules[name]


def test_a_kind_of_address_is_a_file(lines, tmp_path):
    file = tmp_path / "boxes.txt"
    file.write_text("1.png dog 4 5 24 15\n2.png cat 0 0 64 48\n")
    for i in (1, 2):
        write_image(tmp_path / f"{i}.png")
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES = (f"lines:{file}",), 0
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    register_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2 and class_names(cfg) == ("cat", "dog")
    assert output_name(f"lines:{file}").startswith("lines_")
    loader = build_detection_train_loader(cfg, mapper=MimicDatasetMapper(cfg))
    batch = next(iter(loader))
    assert {x["instances"].gt_classes.item() for x in batch} <= {0, 1}
    DatasetCatalog.remove(f"lines:{file}")
    MetadataCatalog.remove(f"lines:{file}")
    cfg.DATASETS.TRAIN = ("line:x",)
    with pytest.raises(ValueError, match="'line:x' is neither.*coco:.*kitti:.*voc:.*or lines:FILE"):
        register_datasets(cfg)


def test_a_prefix_is_taken_once():
    with pytest.raises(ValueError, match="'voc' already"):
        addresses.address_kind("voc:FILE")(print)
