"""
Custom data sets in YOLO's format, as Ultralytics and most annotation tools write it.

A YAML file names the classes and the folders of images; every image has a text file, at the same
path with "labels" for "images", with a line for each object: class, then centre, width and height
or the corners of a polygon, all as shares of the image's size.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import UserError, read_text
from ..addresses import address_kind
from ..cache import cached_json
from ..folders import IMAGE_SUFFIXES
from ..images import image_size
from ..problems import Problems
from .coco import register_coco

USAGE = "yolo:DATA.yaml:SPLIT"

# Shares that leave [0, 1] by less are rounding, and are clipped.
_TOLERANCE = 1e-3


def parse_yolo_address(address: str) -> tuple[str, str]:
    """(YAML file, split) of "yolo:DATA.yaml:SPLIT"."""
    file, _, split = address.removeprefix("yolo:").rpartition(":")
    if not file or not split:
        raise UserError(f"data set {address!r} is no {USAGE}")
    return file, split


@address_kind(USAGE, parse_yolo_address, lambda file, split: f"{Path(file).stem}_{split}")
def register_yolo(name: str, yaml_file: str, split: str) -> None:
    """
    Check a data set in YOLO's format and register one split in Detectron2's catalogs as `name`.

    Its records are written as COCO JSON into the cache folder, and evaluated by COCO's metric. An
    image without label file has no objects. A polygon becomes the box around it.

    Args:
        yaml_file: has `names` (list, or classes by number), a key for each split (a folder, a list
            of folders, or a .txt that lists images) and maybe `path`, the folder they start from.

    Raises:
        UserError: a file, folder or key is missing, or lines are faulty; names them all.
    """
    path = Path(yaml_file).expanduser()
    content = _read_yaml(path)
    names = _class_names(path, content)
    images = _split_images(path, content, split)
    root = Path(os.path.commonpath([image.parent for image in images]))
    copy = cached_json("yolo", json.dumps(_to_coco(path, images, root, names)))
    register_coco(name, str(copy), str(root), source=path)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no data set file {path}")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level must be keys with values")
    return content


def _class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(str(x).strip() for x in names):
        raise UserError(f"{path}: `names` must list the classes, or number them from 0: {names!r}")
    return [str(name) for name in names]


def _split_images(path: Path, content: Mapping[str, Any], split: str) -> list[Path]:
    """The sorted images of a split."""
    entry = content.get(split)
    places = entry if isinstance(entry, list) else [entry]
    if not entry or not all(isinstance(place, str) for place in places):
        known = ", ".join(k for k, v in content.items() if k in ("train", "val", "test") and v)
        raise UserError(f"{path}: no folder under the key {split!r}; splits: {known or 'none'}")
    roots = [path.parent / str(content.get("path") or ""), path.parent]
    images: set[Path] = set()
    for place in places:
        # Exporters write "../train/images" for a folder beside the file.
        tried = [root / x for x in (place, place.removeprefix("../")) for root in roots]
        found = next((x for x in tried if x.exists()), None)
        if found is None:
            raise UserError(f"{path}: {split} is {place!r}, but there is no {tried[0]}")
        if found.is_dir():
            images.update(x for x in found.rglob("*") if x.suffix.lower() in IMAGE_SUFFIXES)
        else:
            lines = (line.strip() for line in read_text(found).splitlines())
            images.update(found.parent / line for line in lines if line)
    if not images:
        raise UserError(f"{path}: {split} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(Path(os.path.normpath(image)) for image in images)


def _to_coco(path: Path, images: Sequence[Path], root: Path, names: list[str]) -> dict[str, Any]:
    problems, warnings = Problems(path), Problems(path)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        size = _image_size(image, problems)
        if size is None:
            continue
        records.append(
            {
                "id": image_id,
                "file_name": str(image.relative_to(root)),
                "width": size[0],
                "height": size[1],
            }
        )
        for label, box in _read_labels(image, len(names), problems, warnings):
            x0, y0, x1, y1 = (round(v * s, 3) for v, s in zip(box, (*size, *size)))
            bbox = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    problems.raise_if_any()
    warnings.warn_if_any()
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return {"images": records, "annotations": annotations, "categories": categories}


def _image_size(path: Path, problems: Problems) -> tuple[int, int] | None:
    """(width, height) after EXIF rotation, from the header."""
    try:
        return image_size(path)
    except UserError as error:
        problems.add("image that cannot be read", str(error))
        return None


def _read_labels(
    image: Path, num_classes: int, problems: Problems, warnings: Problems
) -> list[tuple[int, tuple[float, ...]]]:
    """(class, box XYXY in shares of the image) of each line; lines that repeat count once."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    file = Path(*parts).with_suffix(".txt")
    if not file.is_file():
        warnings.add("image without label file, taken as empty", str(image))
        return []
    labels: dict[tuple[int, tuple[float, ...]], None] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        record = f"{file} line {number}: {line.strip()[:60]!r}"
        try:
            label = parse_label(line, num_classes)
        except ValueError as error:
            problems.add(str(error), record)
            continue
        if label in labels:
            warnings.add("object listed twice, taken once", record)
        labels[label] = None
    return list(labels)


def parse_label(line: str, num_classes: int) -> tuple[int, tuple[float, ...]]:
    """(class, box XYXY in shares of the image) of a line; ValueError that says what is wrong."""
    word, *numbers = line.split()
    if not word.isdecimal() or int(word) >= num_classes:
        raise ValueError(f"class that is no number from 0 to {num_classes - 1}")
    is_box = len(numbers) == 4
    if not is_box and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError("neither 4 numbers of a box nor 3 or more corners of a polygon")
    try:
        values = [float(x) for x in numbers]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(x) and -_TOLERANCE <= x <= 1 + _TOLERANCE for x in values):
        raise ValueError("numbers that are no shares of the image from 0 to 1")
    if is_box:
        x, y, w, h = values
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    box = tuple(min(max(v, 0.0), 1.0) for v in box)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError("box without area")
    return int(word), box
