"""Custom data sets in COCO's format: checked and registered before anything trains on them."""

import itertools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import UserError
from ..addresses import address_kind
from ..cache import cached_json
from ..coco_format import check_coco, describe, is_polygon, read_coco
from ..folders import check_image_files, register_coco_file
from ..problems import printable

USAGE = "coco:ANNOTATIONS.json:IMAGE_FOLDER, coco:ANNOTATIONS.json"

logger = logging.getLogger(__name__)


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
    incomplete = check_coco(path, content)
    root = _find_image_root(path, content, image_root)
    names = [image["file_name"] for image in content["images"]]
    check_image_files(path, root, names)
    usable = _usable_file(path, content, incomplete)
    categories = sorted(content["categories"], key=lambda x: x["id"])
    register_coco_file(
        name,
        usable,
        root,
        [x["name"] for x in categories],
        thing_dataset_id_to_contiguous_id={x["id"]: i for i, x in enumerate(categories)},
        source_file=str(source or path),
    )


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
        if any(os.path.isfile(folder / name) for name in names):
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise UserError(
        f"none of the first images of {path} (such as {printable(names[0])}) lies in {tried}; "
        "name the folder: coco:ANNOTATIONS.json:IMAGE_FOLDER"
    )


def _usable_file(path: Path, content: Mapping[str, Any], incomplete: Sequence[int]) -> Path:
    """
    `path`, or a completed copy in the cache folder where annotations lack something.

    pycocotools' evaluation needs id, area and iscrowd in every annotation, and takes a matched
    annotation of id 0 for an unmatched one; Detectron2 leaves out the whole object of a
    segmentation without a proper polygon.
    """
    if not incomplete:
        return path
    lacking, annotations = set(incomplete), content["annotations"]
    new_ids = any(
        type(annotations[i].get("id")) is not int or annotations[i]["id"] <= 0 for i in lacking
    )
    completed = []
    for index, annotation in enumerate(annotations):
        fixed = {"iscrowd": 0, **annotation}
        if "area" not in fixed:
            fixed["area"] = fixed["bbox"][2] * fixed["bbox"][3]
        if new_ids:
            fixed["id"] = index + 1
        if index in lacking and isinstance(fixed.get("segmentation"), list):
            proper = [x for x in fixed["segmentation"] if is_polygon(x)]
            fixed["segmentation"] = proper
        completed.append(fixed)
    text = json.dumps({**content, "annotations": completed})
    copy = cached_json("coco", text)
    logger.warning(
        f"{path}: {len(lacking)} annotations lack what the evaluation needs (a positive id, area, "
        f"iscrowd, proper polygons), first {describe(annotations[incomplete[0]], incomplete[0])}; "
        f"completed copy: {copy}"
    )
    return copy
