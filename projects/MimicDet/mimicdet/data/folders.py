"""What data sets that lie in folders have in common: lists of images, image files, records."""

import copy
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from ..utils.errors import UserError, read_text
from .problems import MAX_COORDINATE, Problems, printable, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def check_folders(*folders: Path) -> None:
    """Raise UserError where a folder is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")


def read_image_list(path: Path, word: str) -> list[str]:
    """
    The images of a split file, one a line; blank lines are skipped.

    Args:
        word: what a line holds, "name" or "id", for the errors.

    Raises:
        UserError: no such file, lines of several words, an image listed twice, no image.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise UserError(f"no split file {path}; splits found there: {known}")
    problems = Problems(path)
    images: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if len(words) > 1:
            problems.add(f"not one image {word} a line", f"line {number}: {line.strip()!r}")
        images += words[:1]
    problems.add_repeated("image listed twice", ((image, image) for image in images))
    problems.raise_if_any()
    if not images:
        raise UserError(f"{path} lists no image")
    return images


def check_image_files(source: str | Path, root: str | Path, names: Sequence[str]) -> None:
    """
    Check that files are there, and lie in their folder.

    The folder itself may be a link; no name and no link in it may lead out of it, unless the
    environment has MIMICDET_FOLLOW_LINKS=1, which allows links (but no names) to do so.

    Args:
        source: what lists the files, for the error.
        root: the folder; names: paths that start from it, as it comes to names from JSON.

    Raises:
        UserError: with the files that are missing, and those outside.
    """
    follow = os.environ.get("MIMICDET_FOLLOW_LINKS") == "1"
    resolve = os.path.abspath if follow else os.path.realpath
    real_root = resolve(root)
    folders: dict[str, bool] = {}

    def is_inside(path: str) -> bool:
        return os.path.commonpath((resolve(path), real_root)) == real_root

    missing, outside = [], []
    for name in names:
        path = os.path.join(root, name)
        folder = os.path.dirname(path)
        try:
            if folder not in folders:
                folders[folder] = is_inside(folder)
            inside, mode = folders[folder], os.lstat(path).st_mode if folders[folder] else 0
            if stat.S_ISLNK(mode):
                inside, mode = is_inside(path), os.stat(path).st_mode
        except (OSError, ValueError):  # also a name that no file can have
            inside, mode = True, 0
        if not inside:
            outside.append(name)
        elif not stat.S_ISREG(mode):
            missing.append(name)
    reasons = [(missing, "not in"), (outside, "outside, by their names or as links, of")]
    told = [
        f"{len(files)} of {len(names)} images are {where} {root}: "
        + ", ".join(map(printable, files[:5]))
        + (" ..." if len(files) > 5 else "")
        for files, where in reasons
        if files
    ]
    if told:
        hint = "; MIMICDET_FOLLOW_LINKS=1 allows links" if outside and not follow else ""
        raise UserError(f"{source}: {'; '.join(told)}{hint}")


def image_files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their file names without suffix."""
    return {x.stem: x for x in folder.iterdir() if x.suffix.lower() in IMAGE_SUFFIXES}


def image_record(
    image_id: str,
    file: Path,
    size: tuple[int, int],
    annotations: Iterable[tuple[int, Sequence[float], bool]],
) -> dict[str, Any]:
    """
    Detectron2's record of an image.

    Args:
        size: (width, height).
        annotations: of each object its class, its box (XYXY, pixels) and whether it is a crowd.
    """
    return {
        "file_name": str(file),
        "image_id": image_id,
        "width": size[0],
        "height": size[1],
        "annotations": [
            {
                "category_id": class_id,
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "iscrowd": int(crowd),
            }
            for class_id, box, crowd in annotations
        ],
    }


def check_records(name: str, records: Sequence[dict[str, Any]]) -> None:
    """
    Check records in Detectron2's format that a user's own code made; UserError with all faults.

    Boxes with an angle, and what boxes do not need, are not looked at.
    """
    problems = Problems(name)
    num_classes = len(MetadataCatalog.get(name).get("thing_classes", ()))
    ids = []
    for index, record in enumerate(records):
        where = f"record {index} (image_id {shown(record.get('image_id'))})"
        file, size = record.get("file_name"), (record.get("width", 1), record.get("height", 1))
        if not isinstance(file, str | Path) or not file:
            problems.add("no file_name", where)
        elif "://" not in str(file) and not os.path.isfile(file):
            problems.add("image file missing", f"{where}: {printable(str(file))}")
        if not all(isinstance(v, Real) and 0 < v <= MAX_COORDINATE for v in size):
            problems.add("no positive width and height", f"{where}: {shown(size)}")
        if isinstance(record.get("image_id"), Hashable) and "image_id" in record:
            ids.append((record["image_id"], where))
        for number, x in enumerate(record.get("annotations", ())):
            if fault := _annotation_fault(x, num_classes):
                problems.add(fault, f"{where}, annotation {number}")
    problems.add_repeated("image_id used twice", ids)
    problems.raise_if_any()


def _annotation_fault(annotation: Any, num_classes: int) -> str:
    if not isinstance(annotation, dict):
        return "annotation that is no dict"
    label, mode = annotation.get("category_id"), annotation.get("bbox_mode")
    if not isinstance(label, Integral) or label < 0 or (num_classes and label >= num_classes):
        return f"category_id that is no whole number from 0 to {num_classes - 1}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "iscrowd is neither 0 nor 1"
    if mode == BoxMode.XYWHA_ABS:
        return ""
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return "bbox_mode is neither BoxMode.XYXY_ABS nor XYWH_ABS"
    box = annotation.get("bbox")
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4:
        return "bbox is not 4 numbers"
    if not all(isinstance(v, Real) and abs(v) <= MAX_COORDINATE for v in box):
        return "bbox is not 4 finite numbers"
    x0, y0, x1, y1 = box
    width, height = (x1 - x0, y1 - y0) if mode == BoxMode.XYXY_ABS else (x1, y1)
    return "bbox with a negative size" if width < 0 or height < 0 else ""


def register_coco_file(
    name: str,
    json_file: Path,
    image_root: Path,
    thing_classes: Sequence[str],
    prepare: Callable[[], object] = lambda: None,
    **metadata: Any,
) -> None:
    """
    Register a COCO file and its metadata in Detectron2's catalogs.

    Args:
        prepare: called before the file is read: makes it, or says that it is missing.
        metadata: further entries.
    """

    def load() -> list[dict[str, Any]]:
        prepare()
        return load_coco_json(str(json_file), str(image_root), name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(thing_classes),
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type="coco",
        **metadata,
    )


def register_records(name: str, records: list[dict[str, Any]], **metadata: Any) -> None:
    """Register records, of which each caller gets a copy, and metadata in Detectron2's catalogs."""
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).set(**metadata)
