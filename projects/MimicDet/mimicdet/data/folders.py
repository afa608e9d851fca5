"""What data sets that lie in folders have in common: lists of images, image files, records."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..utils.errors import UserError, read_text
from .problems import Problems

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


def register_records(name: str, records: list[dict[str, Any]], **metadata: Any) -> None:
    """Register records, of which each caller gets a copy, and metadata in Detectron2's catalogs."""
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).set(**metadata)
