"""
Data sets named in a config: the embedded ones, and custom ones by address, without Python.

An entry of DATASETS.TRAIN or DATASETS.TEST is the name of a registered data set or an address, see
addresses.py and the files of datasets/. The address is the data set's name in Detectron2's
catalogs.
"""

import difflib
import hashlib
import logging
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..utils.errors import UserError, file_errors
from .addresses import find_kind, how_to_write
from .cache import cache_root
from .datasets import bccd
from .datasets.shape_drawing import SHAPE_NAMES
from .datasets.shapes import NUM_IMAGES, SHAPES_VERSION, SPLITS, write_shapes
from .folders import check_records, register_coco_file

logger = logging.getLogger(__name__)


def register_embedded() -> None:
    """
    Register mimicdet_shapes_train and _val, mimicdet_bccd_train, _val and _test.

    Their paths are known at once; the shapes are drawn at the first DatasetCatalog.get.
    """
    for split in SPLITS:
        name = f"mimicdet_shapes_{split}"
        if name not in DatasetCatalog:
            _register_shapes(name, split)
    for split in bccd.SPLITS:
        if f"mimicdet_bccd_{split}" not in DatasetCatalog:
            bccd.register_bccd(split)


def _register_shapes(name: str, split: str) -> None:
    root = cache_root() / f"shapes-v{SHAPES_VERSION}"
    register_coco_file(
        name,
        root / split / "annotations.json",
        root / split / "images",
        SHAPE_NAMES,
        lambda: write_shapes(root, split, NUM_IMAGES[split]),
    )


def register_datasets(cfg: CfgNode) -> None:
    """
    Register the addresses in DATASETS.TRAIN and TEST, check classes, fill in their number.

    All data sets of the config must have the same classes in the same order.
    MODEL.ROI_HEADS.NUM_CLASSES is set to their number where it is 0 and must equal it otherwise;
    MODEL.RETINANET.NUM_CLASSES is set alike. A frozen config is frozen again.

    Raises:
        UserError: unknown name, faulty address or records, a file or folder that is missing,
            classes that disagree.
    """
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    for name in names:
        if name in DatasetCatalog:
            continue
        kind = find_kind(name)
        if kind is None:
            key = "DATASETS.TRAIN" if name in cfg.DATASETS.TRAIN else "DATASETS.TEST"
            close = difflib.get_close_matches(name, list(DatasetCatalog.keys()), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UserError(
                f"{key}: {name!r} is neither a registered data set nor a data address.{hint} "
                f"An address is {how_to_write()}."
            )
        kind.register(name, *kind.parse(name))
    _set_num_classes(cfg, _common_classes(names))


def output_name(name: str) -> str:
    """
    A data set's name as a folder or file name: itself where that is possible, else a readable
    part of the address and a hash of the whole.
    """
    if re.fullmatch(r"[\w-][\w.-]*", name):
        return name
    kind = find_kind(name)
    readable = f"{name.partition(':')[0]}_{kind.readable(*kind.parse(name))}" if kind else name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return re.sub(r"[^\w-]+", "_", readable).strip("_") + "_" + digest


def load_records(name: str) -> list[dict[str, Any]]:
    """
    The records of a registered data set.

    Raises:
        UserError: a file of it cannot be read, or records are faulty that a user's own code made;
            those of an address were checked when it was registered.
    """
    with file_errors():
        records = DatasetCatalog.get(name)
    if find_kind(name) is None and isinstance(records, list):
        check_records(name, records)
    return records


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Of the config's first registered set, DATASETS.TEST before TRAIN; else the numbers."""
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    names = MetadataCatalog.get(datasets[0]).get("thing_classes", ()) if datasets else ()
    return tuple(names or map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))


def _source(name: str) -> str:
    """What to call a data set in an error: the file or folder it comes from."""
    meta = MetadataCatalog.get(name).as_dict()
    return meta.get("source_file") or meta.get("json_file") or meta.get("dirname") or name


def _common_classes(names: list[str]) -> list[str]:
    """The classes all named sets agree on; empty where no set's metadata tells them."""
    classes_of = {name: MetadataCatalog.get(name).get("thing_classes", None) for name in names}
    known = [(name, list(classes)) for name, classes in classes_of.items() if classes]
    if not known:
        return []
    first_name, first = known[0]
    for name, classes in known[1:]:
        if classes == first:
            continue
        difference = f"order {', '.join(first)} against {', '.join(classes)}"
        if set(classes) != set(first):
            only_first = ", ".join(x for x in first if x not in classes) or "none"
            only_second = ", ".join(x for x in classes if x not in first) or "none"
            difference = f"only in the first: {only_first}; only in the second: {only_second}"
        raise UserError(
            f"the classes of {_source(first_name)} and {_source(name)} disagree: {difference}"
        )
    return first


def _set_num_classes(cfg: CfgNode, classes: list[str]) -> None:
    key, configured = "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not classes:
        if configured == 0 and (cfg.DATASETS.TRAIN or cfg.DATASETS.TEST):
            raise UserError(
                f"{key} is 0 (take it from the data), but the metadata of the data sets in "
                "DATASETS.TRAIN and TEST names no thing_classes: set the key"
            )
        return
    listed = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
    if configured not in (0, len(classes)):
        raise UserError(
            f"{key} is {configured}, but the data has {len(classes)} classes: {listed}. "
            "Set the key to that number, or to 0 to take it from the data"
        )
    if configured == 0:
        logger.info(f"{key} = {len(classes)}, from the data: {listed}")
    frozen = cfg.is_frozen()
    cfg.defrost()
    set_num_classes(cfg, len(classes))
    if frozen:
        cfg.freeze()


def set_num_classes(cfg: CfgNode, number: int) -> None:
    """Write the number of foreground classes to the keys of every meta-architecture."""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = number
    if "RETINANET" in cfg.MODEL:
        cfg.MODEL.RETINANET.NUM_CLASSES = number
