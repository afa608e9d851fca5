"""
Custom data sets in Pascal VOC's format: checked and registered before anything trains on them.

Detectron2 has a loader of its own, for the twenty classes of the challenge and .jpg only.
"""

import hashlib
import logging
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from ...utils.errors import UserError, file_errors
from ...utils.files import new_path
from .. import folders
from ..addresses import address_kind
from ..cache import cache_root
from ..images import check_pixels
from ..problems import Problems, is_number, printable

USAGE = "voc:FOLDER:SPLIT"

logger = logging.getLogger(__name__)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """An <object>: `box` XYXY in pixels from 0, x1 and y1 exclusive, as in Detectron2."""

    name: str
    box: list[float]
    difficult: int
    # False: Detectron2's evaluator can't read this element.
    plain: bool


@dataclass
class VocImage:
    """An annotation file. `size` is (width, height), None where it says none."""

    size: tuple[int, int] | None
    objects: list[VocObject] = field(default_factory=list)


def parse_voc_address(address: str) -> tuple[str, str]:
    """(folder, split) of "voc:FOLDER:SPLIT"."""
    folder, _, split = address.removeprefix("voc:").rpartition(":")
    if not folder or not split:
        raise UserError(f"data set {address!r} is no {USAGE}")
    return folder, split


@address_kind(USAGE, parse_voc_address, lambda folder, split: f"{Path(folder).name}_{split}")
def register_voc(name: str, dirname: str, split: str) -> None:
    """
    Check a Pascal VOC folder and register one split of it in Detectron2's catalogs as `name`.

    The classes are all names in the folder's annotations, sorted, so that every split has the
    same. Objects marked difficult are trained on, as in Detectron2's own loader.

    Args:
        dirname: folder with Annotations, ImageSets/Main and JPEGImages (.jpg, .jpeg or .png).
        split: ImageSets/Main/`split`.txt lists the images.

    Raises:
        UserError: what read_voc refuses, or no object in any annotation file.
    """
    folder = Path(dirname).expanduser()
    split_file = _split_file(folder, split)
    ids, files, annotations = read_voc(folder, split)
    classes = sorted({x.name for image in annotations.values() for x in image.objects})
    if not classes:
        raise UserError(f"{folder / 'Annotations'}: no <object> in any annotation file")
    absent = set(classes) - {x.name for i in ids for x in annotations[i].objects}
    if absent:
        logger.warning(
            f"{split_file}: no object of {', '.join(sorted(absent))} in this split; its "
            "Pascal VOC average precision, and so their mean, will be nan if evaluated"
        )
    records = []
    for i in ids:
        objects = ((classes.index(x.name), x.box, False) for x in annotations[i].objects)
        records.append(folders.image_record(i, files[i], annotations[i].size, objects))
    folders.register_records(
        name,
        records,
        thing_classes=classes,
        dirname=str(_evaluator_folder(folder, split_file, ids, annotations)),
        source_file=str(folder),
        split=split,
        year=2007 if "2007" in folder.absolute().name else 2012,
        evaluator_type="pascal_voc",
    )


def read_voc(folder: Path, split: str) -> tuple[list[str], dict[str, Path], dict[str, VocImage]]:
    """
    Read a Pascal VOC folder.

    Returns:
        ids: of the split's images, in its order.
        files: image id -> image file.
        annotations: image id -> annotation, of all splits; those of `ids` have a size.

    Raises:
        UserError: folder, split file, annotation or image missing; broken XML or faulty records,
            all of them named.
    """
    images = folder / "JPEGImages"
    folders.check_folders(folder, folder / "Annotations", images)
    path = _split_file(folder, split)
    ids = folders.read_image_list(path, "name")
    annotations = _read_annotations(folder)
    files = folders.image_files(images)
    problems = Problems(path)
    for image_id in ids:
        file = f"Annotations/{image_id}.xml"
        if image_id not in annotations:
            problems.add("image without annotation file", file)
        elif annotations[image_id].size is None:
            problems.add("annotation without a positive <size>", file)
        if image_id not in files:
            problems.add(
                "image file missing", f"JPEGImages/{image_id} ({', '.join(folders.IMAGE_SUFFIXES)})"
            )
    problems.raise_if_any()
    folders.check_image_files(path, images, [files[i].name for i in ids])
    return ids, files, annotations


def _split_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _read_annotations(folder: Path) -> dict[str, VocImage]:
    """Every annotation file of the folder by image id; UserError with all that is wrong."""
    problems = Problems(folder / "Annotations")
    warnings = Problems(folder / "Annotations")
    annotations = {}
    for path in sorted((folder / "Annotations").glob("[!.]*.xml")):
        try:
            with file_errors():
                root = ET.parse(path).getroot()
        except (ET.ParseError, ValueError, LookupError) as error:  # an unknown encoding, too
            if isinstance(error, UserError):
                raise
            problems.add("broken XML", f"{path.name}: {error}")
            continue
        annotations[path.stem] = _read_image(root, path.name, problems, warnings)
    problems.raise_if_any()
    warnings.warn_if_any()
    return annotations


def _read_image(root: ET.Element, file: str, problems: Problems, warnings: Problems) -> VocImage:
    width, height = (_number(root.findtext(f"size/{key}")) for key in ("width", "height"))
    is_size = all(is_number(v) and v > 0 and v == int(v) for v in (width, height))
    image = VocImage((int(width), int(height)) if is_size else None)
    if is_size and (too_large := check_pixels(int(width), int(height))):
        problems.add("image too large", f"{file}: {too_large}")
    for i, element in enumerate(root.findall("object"), 1):
        text = element.findtext("name") or ""
        label = text.strip()
        record = f"{file}: object {i} ({printable(label) or 'no name'})"
        if not label or "/" in label or not label.isprintable():
            problems.add("object without a name, or one with a slash or line break", record)
        corners = [element.findtext(f"bndbox/{key}") for key in _CORNERS]
        x0, y0, x1, y1 = (_number(value) for value in corners)
        if not all(map(is_number, (x0, y0, x1, y1))):
            problems.add("object without a bndbox of 4 numbers", record)
            continue
        # Pixels are counted from 1 and the last one is inside: Detectron2's box starts 1 earlier.
        box = [x0 - 1, y0 - 1, x1, y1]
        if box[2] < box[0] or box[3] < box[1]:
            problems.add("bndbox with a negative size", f"{record}: {corners}")
        elif box[2] == box[0] or box[3] == box[1]:
            warnings.add("bndbox without area, left out of training", f"{record}: {corners}")
        if image.size and (min(box) < 0 or box[2] > image.size[0] or box[3] > image.size[1]):
            warnings.add("bndbox reaches outside its image, clipped in training", record)
        flags = [element.findtext(key) for key in ("truncated", "difficult")]
        plain = label == text and element.find("pose") is not None
        plain = plain and all(_is_whole(value) for value in corners + flags)
        difficult = _number(flags[1])
        image.objects.append(VocObject(label, box, int(difficult == 1), plain))
    return image


def _number(text: str | None) -> float:
    """nan where the text is no number."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _is_whole(text: str | None) -> bool:
    """Whether Python's int(), which Detectron2's evaluator uses, reads the text."""
    try:
        int(text or "")
    except ValueError:
        return False
    return True


def _evaluator_folder(
    folder: Path, split_file: Path, ids: list[str], annotations: dict[str, VocImage]
) -> Path:
    """
    `folder`, or a completed copy of the split's annotations in the cache folder.

    Detectron2's evaluator reads the XML files itself and needs pose, truncated and difficult in
    every object, whole numbers in every box, and no blank line in the split file.
    """
    lines = split_file.read_text(encoding="utf-8").split("\n")
    blank = any(not line.strip() for line in lines[:-1])
    odd = [i for i in ids if not all(x.plain for x in annotations[i].objects)]
    if not odd and not blank:
        return folder
    texts = {Path("Annotations", f"{i}.xml"): _plain_xml(annotations[i]) for i in ids}
    texts[split_file.relative_to(folder)] = "\n".join(ids)
    digest = hashlib.sha256(repr(sorted((str(k), v) for k, v in texts.items())).encode())
    target = cache_root() / "voc" / digest.hexdigest()[:16]
    if not target.is_dir():
        with new_path(target) as temporary:
            for path, text in texts.items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                (temporary / path).write_text(text, encoding="utf-8")
    logger.warning(
        f"{folder}: {len(odd)} annotation files lack what Detectron2's evaluator needs (pose, "
        "truncated, difficult, whole numbers)"
        + (f", first {odd[0]}.xml" if odd else ", or the split file has blank lines")
        + f"; the evaluation reads a completed copy: {target}"
    )
    return target


def _plain_xml(image: VocImage) -> str:
    root = ET.Element("annotation")
    for x in image.objects:
        element = ET.SubElement(root, "object")
        fields = {"name": x.name, "pose": "Unspecified", "truncated": 0, "difficult": x.difficult}
        for key, value in fields.items():
            ET.SubElement(element, key).text = str(value)
        corners = (x.box[0] + 1, x.box[1] + 1, x.box[2], x.box[3])
        box = ET.SubElement(element, "bndbox")
        for key, corner in zip(_CORNERS, corners, strict=True):
            ET.SubElement(box, key).text = str(round(corner))
    return ET.tostring(root, encoding="unicode")
