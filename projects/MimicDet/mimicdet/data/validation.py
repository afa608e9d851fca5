"""Reads every image of registered data sets, and counts what is in them."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..utils.errors import UserError
from .catalog import load_records
from .images import read_record
from .problems import Problems

_THREADS = 8


@dataclass
class Content:
    """What a data set holds. `dropped`: boxes with no area inside their image; not trained on."""

    images: int = 0
    empty_images: int = 0
    boxes: int = 0
    crowds: int = 0
    dropped: int = 0
    by_class: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line of counts, and one of the boxes of each class."""
        classes = ", ".join(f"{name} {n}" for name, n in self.by_class.items()) or "none"
        return (
            f"{self.images} images ({self.empty_images} without boxes), {self.boxes} boxes, "
            f"{self.crowds} crowds, {self.dropped} boxes dropped in training\nboxes: {classes}"
        )


def count_content(name: str, records: Sequence[dict[str, Any]]) -> Content:
    """Count a registered data set's records, whose boxes are of any mode without rotation."""
    classes = MetadataCatalog.get(name).get("thing_classes", ())
    content = Content(images=len(records), by_class=Counter(dict.fromkeys(classes, 0)))
    for record in records:
        boxes = [x for x in record.get("annotations", ()) if not x.get("iscrowd", 0)]
        content.crowds += len(record.get("annotations", ())) - len(boxes)
        content.empty_images += not boxes
        content.boxes += len(boxes)
        for x in boxes:
            number = x["category_id"]
            content.by_class[classes[number] if classes else str(number)] += 1
            x0, y0, x1, y1 = BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
            width = min(x1, record.get("width", x1)) - max(x0, 0)
            height = min(y1, record.get("height", y1)) - max(y0, 0)
            content.dropped += width <= 0 or height <= 0
    return content


def read_images(
    name: str, records: Sequence[dict[str, Any]], done: Callable[[], None] = lambda: None
) -> Problems:
    """
    Decode the image of every record as training does.

    Args:
        done: called after each image.

    Returns:
        what could not be read, or has another size than its record says.
    """

    problems = Problems(name)
    with ThreadPoolExecutor(_THREADS) as pool:
        for error in pool.map(_read, records):
            if error is not None:
                other_size = isinstance(error.__cause__, SizeMismatchError)
                kind = "image of another size" if other_size else "image that cannot be read"
                problems.add(kind, str(error))
            done()
    return problems


def _read(record: dict[str, Any]) -> UserError | None:
    try:
        read_record(dict(record))
    except UserError as error:
        return error
    return None


def check_images(cfg: CfgNode) -> None:
    """
    With DATALOADER.CHECK_IMAGES, read all images of DATASETS.TRAIN and TEST, in one process.

    Raises:
        UserError: names those that cannot be used.
    """
    if cfg.DATALOADER.CHECK_IMAGES and comm.is_main_process():
        for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
            read_images(name, load_records(name)).raise_if_any()
