"""
The rules of COCO's detection format: reads a file and names every record that breaks one.

Detectron2 and pycocotools take such a file as it is and fail late: a missing "area" shows when
the first evaluation runs, a wrong image_id as boxes that are silently dropped.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, read_json
from .images import check_pixels
from .problems import MAX_COORDINATE, Problems, is_number, printable, shown

_LISTS = ("images", "annotations", "categories")
# Boxes that leave the image by less are rounding, not a fault.
_OUTSIDE_TOLERANCE = 0.5
_MAX_ID = 2**63 - 1  # pycocotools keeps ids in arrays of 64 bits
_MAX_DEPTH = 50  # of what pycocotools copies, a level of Python's stack for each


def read_coco(path: Path) -> dict[str, Any]:
    """Read the JSON; errors when it is missing, no JSON, or has not COCO's three lists."""
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is no COCO detection file: its top level is a {type(content).__name__}, "
            "not an object"
        )
    missing = [key for key in _LISTS if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{path} is no COCO detection file: no list {', '.join(map(repr, missing))} "
            f"(keys found: {', '.join(map(repr, content)) or 'none'})"
        )
    for key, word in (("images", "image"), ("categories", "category")):
        if not content[key]:
            raise UserError(f"{path} lists no {word}")
    return content


def check_coco(path: Path, content: Mapping[str, Any]) -> list[int]:
    """
    Raise UserError naming every faulty record; log a warning for harmless oddities.

    Returns:
        the annotations, by index, that lack something which the evaluation or Detectron2 needs:
        a positive whole number as id, area, iscrowd, polygons of three corners or more.
    """
    problems, warnings = Problems(path), Problems(path)
    for key in _LISTS:
        for i, record in enumerate(content[key]):
            if not isinstance(record, dict):
                problems.add("no JSON object", f"{key}[{i}]")
    problems.raise_if_any()
    for key in ("info", "categories"):
        if _is_deep(content.get(key)):
            problems.add(f"nested deeper than {_MAX_DEPTH} levels", key)
    sizes = _check_images(content["images"], problems)
    category_ids = _check_categories(content["categories"], problems)
    faults = Faults(problems, warnings)
    for index, annotation in enumerate(content["annotations"]):
        faults.annotation, faults.index = annotation, index
        _check_annotation(annotation, faults, sizes, category_ids)
        _check_shapes(annotation, faults)
    ids = [x["id"] for x in content["annotations"] if is_id(x.get("id"))]
    if len(set(ids)) < len(ids):
        described = ((x.get("id"), describe(x, i)) for i, x in enumerate(content["annotations"]))
        with_id = ((key, record) for key, record in described if is_id(key))
        problems.add_repeated("annotation id used twice", with_id)
    problems.raise_if_any()
    warnings.warn_if_any()
    return sorted(faults.incomplete)


def describe(annotation: Mapping[str, Any], index: int) -> str:
    return f"annotations[{index}] (id {_shown_id(annotation)})"


def _shown_id(record: Mapping[str, Any]) -> str:
    key = record.get("id")
    return printable(key) if isinstance(key, str) else shown(key)


def is_id(value: object) -> bool:
    return type(value) is int and -_MAX_ID <= value <= _MAX_ID or type(value) is str


class Faults:
    """Adds what is wrong with an annotation, which is described only then."""

    annotation: Mapping[str, Any]
    index: int

    def __init__(self, problems: Problems, warnings: Problems):
        self.problems, self.warnings = problems, warnings
        self.incomplete: set[int] = set()

    def add(self, kind: str, value: object, label: str = "") -> None:
        record = describe(self.annotation, self.index)
        self.problems.add(kind, f"{record}: {label}{shown(value)}")

    def warn(self, kind: str, value: object) -> None:
        self.warnings.add(kind, f"{describe(self.annotation, self.index)}: {shown(value)}")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [x.values() if isinstance(x, dict) else x for x in level if _is_container(x)]
        level = [x for values in inner for x in values if _is_container(x)]
    return bool(level)


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list)


def _check_images(images: list[dict[str, Any]], problems: Problems) -> dict[Any, Any]:
    """Image id -> (width, height), None where the size is faulty."""
    sizes: dict[Any, Any] = {}
    for i, image in enumerate(images):
        size: Any = image.get("width"), image.get("height")
        size_ok = all(is_number(v) and v > 0 and v == int(v) for v in size)
        named = isinstance(image.get("file_name"), str) and image["file_name"]
        key = image.get("id")
        if size_ok and named and is_id(key) and key not in sizes and not check_pixels(*size):
            sizes[key] = size
            continue
        record = f"images[{i}] (id {_shown_id(image)}, file_name {shown(image.get('file_name'))})"
        if not size_ok:
            problems.add(
                "image without a positive width and height (whole numbers)",
                f"{record}: {shown(size)}",
            )
        elif too_large := check_pixels(*size):
            problems.add("image too large", f"{record}: {too_large}")
        if not named:
            problems.add("image without file_name", record)
        if not is_id(key):
            problems.add("image without an id (a number or text)", record)
            continue
        if key in sizes:
            problems.add("image id used twice", record)
        sizes[key] = size if size_ok else None
    if len({type(key) for key in sizes}) > 1:
        problems.add("image ids are partly numbers, partly text", f"{len(sizes)} images")
    return sizes


def _check_categories(categories: list[dict[str, Any]], problems: Problems) -> set[int]:
    ids, names = [], []
    for i, category in enumerate(categories):
        key, name = category.get("id"), category.get("name")
        record = f"categories[{i}] (id {_shown_id(category)}, name {shown(name)})"
        if isinstance(name, str) and name and name.isprintable():
            names.append((name, record))
        else:
            problems.add("category without a name of printable characters", record)
        if type(key) is int and is_id(key):
            ids.append((key, record))
        else:
            problems.add("category without a whole number as id", record)
    problems.add_repeated("category name used twice", names)
    problems.add_repeated("category id used twice", ids)
    return {key for key, _ in ids}


def _check_annotation(
    annotation: Mapping[str, Any], faults: Faults, sizes: Mapping[Any, Any], category_ids: set[int]
) -> None:
    get = annotation.get
    key, image_id, category_id, area = get("id"), get("image_id"), get("category_id"), get("area")
    if type(key) is not int or not 0 < key <= _MAX_ID:
        faults.incomplete.add(faults.index)
        if "id" in annotation and not is_id(key):
            faults.add("annotation id that is neither a whole number nor text", key)
    known_image = is_id(image_id) and image_id in sizes
    if not known_image:
        faults.add("annotation of an unknown image_id", image_id, "image_id ")
    if type(category_id) is not int or category_id not in category_ids:
        faults.add("annotation of an unknown category_id", category_id)
    if "area" not in annotation:
        faults.incomplete.add(faults.index)
    elif not is_number(area) or area < 0:
        faults.add("area that is no finite number from 0", area)
    if "iscrowd" not in annotation:
        faults.incomplete.add(faults.index)
    elif annotation["iscrowd"] not in (0, 1):
        faults.add("iscrowd is neither 0 nor 1", annotation["iscrowd"])
    if get("ignore", 0) != 0:
        faults.add('"ignore" is not supported, use iscrowd', annotation["ignore"])
    box = get("bbox")
    if type(box) is not list or len(box) != 4 or not all(map(is_number, box)):
        faults.add("bbox is not 4 finite numbers [x, y, width, height]", box)
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        if w < 0 or h < 0:
            faults.add("bbox with a negative size", box)
        else:
            faults.warn("bbox without area, left out of training", box)
    size = sizes[image_id] if known_image else None
    if size is None:
        return
    width, height = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        if w > 0 and h > 0:
            faults.warn("bbox outside its image, left out of training", box)
    elif (
        x < -_OUTSIDE_TOLERANCE
        or y < -_OUTSIDE_TOLERANCE
        or x + w > width + _OUTSIDE_TOLERANCE
        or y + h > height + _OUTSIDE_TOLERANCE
    ):
        faults.warn("bbox reaches outside its image, clipped in training", box)


def _check_shapes(annotation: Mapping[str, Any], faults: Faults) -> None:
    """Segmentation and keypoints: of use to other detectors, and read by Detectron2 with these."""
    shape, points = annotation.get("segmentation"), annotation.get("keypoints")
    if shape:
        if type(shape) is list and all(type(x) is list and _are_numbers(x) for x in shape):
            if not any(map(is_polygon, shape)):
                # Detectron2 would leave out the object, box and all.
                faults.warn("segmentation without polygon of 3 corners, left out", shape)
                faults.incomplete.add(faults.index)
        elif not _is_rle(shape):
            faults.add("segmentation that is neither polygons nor a run-length code", shape)
    elif shape is not None and shape != []:
        faults.add("segmentation that is neither polygons nor a run-length code", shape)
    if points is not None and (
        type(points) is not list or len(points) % 3 or not _are_numbers(points)
    ):
        faults.add("keypoints that are no list of x, y, visibility", points)


def is_polygon(corners: list) -> bool:
    """Whether a list of x, y, x, y ... has three corners or more."""
    return len(corners) >= 6 and len(corners) % 2 == 0


def _are_numbers(values: list) -> bool:
    """Whether all are finite; by their sum, which is the fast way."""
    if not {int, float}.issuperset(map(type, values)):
        return False
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # an integer that is no float
        return False


def _is_rle(shape: object) -> bool:
    """COCO's run-length code: {"size": [height, width], "counts": text or runs of pixels}."""
    if not isinstance(shape, dict):
        return False
    size, counts = shape.get("size"), shape.get("counts")
    if type(size) is not list or len(size) != 2 or not {int}.issuperset(map(type, size)):
        return False
    if not all(0 < x <= MAX_COORDINATE for x in size):
        return False
    if type(counts) is not list:
        return type(counts) is str and counts.isascii()
    whole = {int}.issuperset(map(type, counts)) and all(x >= 0 for x in counts)
    return whole and sum(counts) == size[0] * size[1]
