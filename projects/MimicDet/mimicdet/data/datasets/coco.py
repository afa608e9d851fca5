"""
Custom data sets in COCO's format: checked and registered before anything trains on them.

Detectron2 and pycocotools take such a file as it is and fail late: a missing "area" shows when
the first evaluation runs, a wrong image_id as boxes that are silently dropped.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ...utils.errors import UserError, read_json
from ...utils.files import new_path
from ..addresses import address_kind
from ..cache import cache_root
from ..problems import Problems

USAGE = "coco:ANNOTATIONS.json:IMAGE_FOLDER, coco:ANNOTATIONS.json"

logger = logging.getLogger(__name__)

_LISTS = ("images", "annotations", "categories")
# Boxes that leave the image by less are rounding, not a fault.
_OUTSIDE_TOLERANCE = 0.5


def parse_coco_address(address: str) -> tuple[str, str | None]:
    """(annotation file, image folder or None) of "coco:ANNOTATIONS.json[:IMAGE_FOLDER]"."""
    rest = address.removeprefix("coco:")
    match = re.fullmatch(r"(.+?\.json)(?::(.*))?", rest)
    file, folder = match.groups() if match else (rest.partition(":")[0], rest.partition(":")[2])
    if not file:
        raise UserError(f"data set {address!r} names no file; write {USAGE}")
    return file, folder or None


@address_kind(USAGE, parse_coco_address, lambda file, folder: Path(file).stem)
def register_coco(
    name: str, json_file: str, image_root: str | None = None, source: Path | None = None
) -> None:
    """
    Check a COCO detection file and register it in Detectron2's catalogs as `name`.

    Args:
        image_root: folder that the "file_name" entries start from; None: searched for.
        source: the file that errors name; None: json_file.

    Raises:
        UserError: no annotation file, image folder or images; not a COCO detection file, or records
            of it are faulty; names them all.
    """
    path = Path(json_file).expanduser()
    content = read_coco(path)
    check_coco(path, content)
    root = _find_image_root(path, content, image_root)
    names = [image["file_name"] for image in content["images"]]
    missing = [name for name in names if not os.path.isfile(os.path.join(root, name))]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(names)} images are not in {root}: "
            + ", ".join(missing[:5])
            + (" ..." if len(missing) > 5 else "")
        )
    usable = _usable_file(path, content)
    categories = sorted(content["categories"], key=lambda x: x["id"])
    DatasetCatalog.register(name, lambda: load_coco_json(str(usable), str(root), name))
    MetadataCatalog.get(name).set(
        thing_classes=[x["name"] for x in categories],
        thing_dataset_id_to_contiguous_id={x["id"]: i for i, x in enumerate(categories)},
        json_file=str(usable),
        image_root=str(root),
        source_file=str(source or path),
        evaluator_type="coco",
    )


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


def check_coco(path: Path, content: Mapping[str, Any]) -> None:
    """Raise UserError naming every faulty record; log a warning for harmless oddities."""
    problems, warnings = Problems(path), Problems(path)
    for key in _LISTS:
        for i, record in enumerate(content[key]):
            if not isinstance(record, dict):
                problems.add("no JSON object", f"{key}[{i}]")
    problems.raise_if_any()
    sizes = _check_images(content["images"], problems)
    category_ids = _check_categories(content["categories"], problems)
    described = [(x, _describe(x, i)) for i, x in enumerate(content["annotations"])]
    for annotation, record in described:
        _check_annotation(annotation, record, sizes, category_ids, problems, warnings)
    with_id = ((x["id"], record) for x, record in described if _is_id(x.get("id")))
    problems.add_repeated("annotation id used twice", with_id)
    problems.raise_if_any()
    warnings.warn_if_any()


def _describe(annotation: Mapping[str, Any], index: int) -> str:
    return f"annotations[{index}] (id {annotation.get('id')})"


def _is_id(value: object) -> bool:
    return type(value) in (int, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_images(images: list[dict[str, Any]], problems: Problems) -> dict[Any, Any]:
    """Image id -> (width, height), None where the size is faulty."""
    sizes: dict[Any, Any] = {}
    for i, image in enumerate(images):
        record = f"images[{i}] (id {image.get('id')}, file_name {image.get('file_name')!r})"
        size: Any = image.get("width"), image.get("height")
        size_ok = all(_is_number(v) and v > 0 for v in size)
        if not size_ok:
            problems.add("image without a positive width and height", record)
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.add("image without file_name", record)
        if not _is_id(image.get("id")):
            problems.add("image without an id (a number or text)", record)
            continue
        if image["id"] in sizes:
            problems.add("image id used twice", record)
        sizes[image["id"]] = size if size_ok else None
    if len({type(key) for key in sizes}) > 1:
        problems.add("image ids are partly numbers, partly text", f"{len(sizes)} images")
    return sizes


def _check_categories(categories: list[dict[str, Any]], problems: Problems) -> set[int]:
    ids, names = [], []
    for i, category in enumerate(categories):
        record = f"categories[{i}] (id {category.get('id')}, name {category.get('name')!r})"
        key, name = category.get("id"), category.get("name")
        if isinstance(name, str) and name:
            names.append((name, record))
        else:
            problems.add("category without a name", record)
        if type(key) is int:
            ids.append((key, record))
        else:
            problems.add("category without a whole number as id", record)
    problems.add_repeated("category name used twice", names)
    problems.add_repeated("category id used twice", ids)
    return {key for key, _ in ids}


def _check_annotation(
    annotation: Mapping[str, Any],
    record: str,
    sizes: Mapping[Any, Any],
    category_ids: set[int],
    problems: Problems,
    warnings: Problems,
) -> None:
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    known_image = _is_id(image_id) and image_id in sizes
    if not known_image:
        problems.add("annotation of an unknown image_id", f"{record}: image_id {image_id!r}")
    if not _is_id(category_id) or category_id not in category_ids:
        problems.add("annotation of an unknown category_id", f"{record}: {category_id!r}")
    if annotation.get("iscrowd", 0) not in (0, 1):
        problems.add("iscrowd is neither 0 nor 1", f"{record}: {annotation['iscrowd']!r}")
    if annotation.get("ignore", 0) != 0:
        problems.add('"ignore" is not supported, use iscrowd', record)
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        problems.add("bbox is not 4 finite numbers [x, y, width, height]", f"{record}: {box!r}")
        return
    x, y, w, h = box
    if w < 0 or h < 0:
        problems.add("bbox with a negative size", f"{record}: {box}")
    elif w == 0 or h == 0:
        warnings.add("bbox without area, left out of training", f"{record}: {box}")
    size = sizes[image_id] if known_image else None
    if size is not None:
        slack = _OUTSIDE_TOLERANCE
        if min(x, y) < -slack or x + w > size[0] + slack or y + h > size[1] + slack:
            warnings.add("bbox reaches outside its image, clipped in training", f"{record}: {box}")


def _find_image_root(path: Path, content: Mapping[str, Any], given: str | None) -> Path:
    """The given folder, or the first usual one that holds any of the first images."""
    if given is not None:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise UserError(f"no image folder {folder} (for {path})")
        return folder
    here = path.absolute().parent
    candidates = [here.parent / "images", here / "images", here]
    names = [x["file_name"] for x in itertools.islice(content["images"], 20)]
    for folder in candidates:
        if any((folder / name).is_file() for name in names):
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise UserError(
        f"none of the first images of {path} (such as {names[0]}) lies in {tried}; "
        "name the folder: coco:ANNOTATIONS.json:IMAGE_FOLDER"
    )


def _usable_file(path: Path, content: Mapping[str, Any]) -> Path:
    """
    `path`, or a completed copy in the cache folder where pycocotools misses something in it.

    pycocotools' evaluation needs id, area and iscrowd in every annotation, and takes a matched
    annotation of id 0 for an unmatched one.
    """
    annotations = content["annotations"]
    bad_ids = [not isinstance(x.get("id"), int) or x["id"] <= 0 for x in annotations]
    lacking = [
        bad or not _is_number(x.get("area")) or "iscrowd" not in x
        for bad, x in zip(bad_ids, annotations, strict=True)
    ]
    if not any(lacking):
        return path
    first = lacking.index(True)
    completed = []
    for number, annotation in enumerate(annotations, 1):
        fixed = {"iscrowd": 0, **annotation}
        if not _is_number(fixed.get("area")):
            fixed["area"] = fixed["bbox"][2] * fixed["bbox"][3]
        if any(bad_ids):
            fixed["id"] = number
        completed.append(fixed)
    text = json.dumps({**content, "annotations": completed})
    copy = cache_root() / "coco" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not copy.is_file():  # its name tells its content
        with new_path(copy) as new:
            new.write_text(text, encoding="utf-8")
    logger.warning(
        f"{path}: {sum(lacking)} annotations lack what the evaluation needs (a positive id, area, "
        f"iscrowd), first {_describe(annotations[first], first)}; completed copy: {copy}"
    )
    return copy
