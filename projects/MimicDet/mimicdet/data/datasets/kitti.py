"""
Custom data sets in KITTI's format (2D object detection): checked and registered.

A label file has a line for each object with 15 fields: type, truncated, occluded, alpha, the four
sides of the 2D box and seven numbers of the 3D box, which are not used here.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.errors import UserError, read_text
from .. import folders
from ..addresses import address_kind
from ..images import image_size
from ..problems import Problems, is_number

USAGE = "kitti:LABEL_FOLDER:IMAGE_FOLDER[:IDS.txt]"

CLASSES = ("Car", "Pedestrian", "Cyclist")
# Types that are neither an object of the class nor a mistake to detect as one.
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
REGION = "DontCare"
TYPES = (*CLASSES, *NEIGHBOURS.values(), "Truck", "Tram", "Misc", REGION)

_FIELDS = 15


@dataclass(frozen=True)
class KittiObject:
    """A line of a label file."""

    type: str  # one of TYPES
    truncated: float  # share of the object outside the image, 0 to 1; -1 of a DontCare region
    occluded: int  # 0 visible, 1 partly, 2 largely, 3 unknown; -1 of a DontCare region
    box: tuple[float, float, float, float]  # XYXY, pixels from 0


def parse_kitti_address(address: str) -> tuple[str, str, str | None]:
    """(label folder, image folder, file of ids or None) of "kitti:LABELS:IMAGES[:IDS.txt]"."""
    parts = address.removeprefix("kitti:").split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"data set {address!r} is no {USAGE}")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


@address_kind(USAGE, parse_kitti_address, lambda labels, _, ids: Path(ids or labels).stem)
def register_kitti(name: str, label_dir: str, image_dir: str, split_file: str | None) -> None:
    """
    Check KITTI labels and register them in Detectron2's catalogs as `name`.

    Classes are Car, Pedestrian and Cyclist. Van, Person_sitting and DontCare become crowds, which
    training leaves out; Truck, Tram and Misc are background.

    Args:
        label_dir, image_dir: e.g. training/label_2 and training/image_2.
        split_file: text file with an image's id (its file's name without suffix) a line; None: all
            label files. `split_by_sequence` makes such lists.

    Raises:
        UserError: a folder, the split file, a label file or an image is missing, or lines are
            faulty; names them all.
    """
    labels, images = Path(label_dir).expanduser(), Path(image_dir).expanduser()
    folders.check_folders(labels, images)
    if split_file is None:
        ids = sorted(path.stem for path in labels.glob("*.txt"))
        if not ids:
            raise UserError(f"{labels} holds no label file")
    else:
        ids = folders.read_image_list(Path(split_file).expanduser(), "id")
    files = folders.image_files(images)
    problems = Problems(labels)
    for image_id in ids:
        if not (labels / f"{image_id}.txt").is_file():
            problems.add("label file missing", f"{image_id}.txt")
        if image_id not in files:
            problems.add(
                "image missing", f"{images}/{image_id} ({', '.join(folders.IMAGE_SUFFIXES)})"
            )
    problems.raise_if_any()
    folders.check_image_files(labels, images, [files[i].name for i in ids])
    objects = read_labels(labels, ids)
    if not any(x.type in CLASSES for of_image in objects.values() for x in of_image):
        raise UserError(f"{labels}: no {', '.join(CLASSES)} in any label file")
    records = [_to_record(i, files[i], objects[i]) for i in ids]
    folders.register_records(
        name,
        records,
        thing_classes=list(CLASSES),
        label_dir=str(labels),
        source_file=str(labels),
        evaluator_type="kitti",
    )


def read_labels(folder: Path, ids: Sequence[str]) -> dict[str, list[KittiObject]]:
    """The objects of each image; UserError that names every faulty line with its file."""
    problems = Problems(folder)
    objects: dict[str, list[KittiObject]] = {}
    for image_id in ids:
        objects[image_id] = []
        text = read_text(folder / f"{image_id}.txt")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                objects[image_id].append(parse_label(line))
            except ValueError as error:
                problems.add(str(error), f"{image_id}.txt line {number}: {line.strip()[:60]!r}")
    problems.raise_if_any()
    return objects


def parse_label(line: str) -> KittiObject:
    """One line of a label file; ValueError that says what is wrong with it."""
    words = line.split()
    if len(words) != _FIELDS:
        raise ValueError(f"not {_FIELDS} fields")
    if words[0] not in TYPES:
        raise ValueError(f"unknown type {words[0]!r}")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        numbers = [math.nan]
    if not all(map(is_number, numbers)):
        raise ValueError("a field behind the type that is no number")
    truncated, occluded, _, *box = numbers[:7]
    if occluded not in (-1, 0, 1, 2, 3):
        raise ValueError("occlusion that is not 0, 1, 2, 3 or -1")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError("box without area")
    return KittiObject(words[0], truncated, int(occluded), (box[0], box[1], box[2], box[3]))


def _to_record(image_id: str, file: Path, objects: Sequence[KittiObject]) -> dict[str, Any]:
    size = image_size(file)
    annotations = []
    for x in objects:
        if x.type in CLASSES:
            annotations.append((CLASSES.index(x.type), x.box, False))
        elif x.type in (REGION, *NEIGHBOURS.values()):
            annotations.append((0, x.box, True))  # a crowd's class is not read
    return folders.image_record(image_id, file, size, annotations)


# ---------------------------------------------------------------- split by sequence


def read_sequences(mapping_file: Path, order_file: Path) -> dict[str, str]:
    """
    The video sequence that each training image comes from, by KITTI's own two files.

    Args:
        mapping_file: the devkit's mapping/train_mapping.txt: date, drive and frame a line.
        order_file: its mapping/train_rand.txt: comma-separated line numbers, counted from 1; the
            n-th is the line of the mapping that image n is.

    Returns:
        drive by image id ("000000" ...).

    Raises:
        UserError: files that are missing or do not fit each other.
    """
    drives = []
    for number, line in enumerate(read_text(mapping_file).splitlines(), 1):
        words = line.split()
        if len(words) != 3:
            raise UserError(f"{mapping_file} line {number}: no date, drive and frame: {line!r}")
        drives.append(words[1])
    words = read_text(order_file).replace(",", " ").split()
    sequences = {}
    for index, word in enumerate(words):
        if not word.isdecimal() or not 1 <= int(word) <= len(drives):
            raise UserError(
                f"{order_file}: entry {index + 1} is {word!r}, no line of {mapping_file.name} "
                f"(1 to {len(drives)})"
            )
        sequences[f"{index:06d}"] = drives[int(word) - 1]
    if not sequences:
        raise UserError(f"{order_file} lists no image")
    return sequences


def split_by_sequence(
    sequences: Mapping[str, str], train_share: float = 0.5, seed: int = 0
) -> tuple[list[str], list[str]]:
    """
    Split images so that no sequence is on both sides (FGFI, 4.2).

    Not in the paper, which does not publish its split: sequences come in random order and each goes
    to the side that is further from its share.

    Args:
        sequences: sequence by image id; train_share: of the images, in (0, 1); seed: of the order.

    Returns:
        sorted ids for (training, validation).
    """
    if not 0 < train_share < 1:
        raise UserError(f"the share of training images must lie in (0, 1), got {train_share}")
    members: dict[str, list[str]] = {}
    for image_id, sequence in sequences.items():
        members.setdefault(sequence, []).append(image_id)
    names = sorted(members)
    random.Random(seed).shuffle(names)
    train, validation = [], []
    for name in names:
        # Compare the sides' fillings without dividing: |train| / share against |val| / (1 - share).
        lacking = len(train) * (1 - train_share) <= len(validation) * train_share
        (train if lacking else validation).extend(members[name])
    return sorted(train), sorted(validation)
