"""The blood cell images of BCCD as COCO JSON: tools/prepare_bccd.py."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mimicdet_runtime.cli import positive

from ..data.datasets.bccd import CLASSES, SPLITS
from ..data.datasets.voc import read_voc
from ..utils.errors import UserError, command, file_errors
from ..utils.files import new_path

_ADDRESS = "https://github.com/Shenggan/BCCD_Dataset"
_COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
_SOURCE = """# BCCD blood cells

- Source: <{address}>, read as at its commit
  {commit}. Licence: MIT, see LICENSE.
- Images: {images}. Splits: those of its ImageSets/Main,
  {counts} images.
- Annotations: its XML boxes as COCO JSON, read as 1-based with the last pixel inside; {boxes} of
  them, boxes whose corners share a coordinate left out.
- Many red cells carry no box, edge and overlapping cells above all: label noise bounds AP of RBC.
- Made by `{command}`.
"""


def convert_split(
    voc: Path, split: str, width: int | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """
    COCO's content of one split, and its image files in the order of their ids.

    Boxes are read as 1-based with the last pixel inside. Those whose corners share a coordinate
    have no area in the annotation files and are left out. With a `width` in pixels sizes and boxes
    are those of images resized to it; boxes are rounded to hundredths of a pixel.

    Raises:
        UserError: a folder or file is missing or faulty, or a class is none of CLASSES.
    """
    ids, files, voc_images = read_voc(voc, split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in enumerate(ids, 1):
        record = voc_images[image_id]
        size = _resized(record.size, width)
        scale = [new / old for new, old in zip(size, record.size)] * 2
        image = {"id": number, "file_name": files[image_id].name}
        images.append({**image, "width": size[0], "height": size[1]})
        for item in record.objects:
            if item.name not in CLASSES:
                raise UserError(
                    f"{voc / 'Annotations' / image_id}.xml: object {item.name!r} is none of "
                    f"{', '.join(CLASSES)}"
                )
            x0, y0, x1, y1 = item.box  # x0 and y0 are 1 less than in the file
            if x1 <= x0 + 1 or y1 <= y0 + 1:
                continue
            box = [round(x * s, 2) for x, s in zip((x0, y0, x1 - x0, y1 - y0), scale)]
            annotation = {"id": len(annotations) + 1, "image_id": number, "bbox": box}
            annotation.update(category_id=CLASSES.index(item.name) + 1, iscrowd=0)
            annotations.append({**annotation, "area": round(box[2] * box[3], 2)})
    content = {
        "info": {"description": f"BCCD blood cells, {_ADDRESS}, MIT licence ({split})"},
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
        "images": images,
        "annotations": annotations,
    }
    return content, [files[image_id] for image_id in ids]


def _resized(size: tuple[int, int], width: int | None) -> tuple[int, int]:
    """(width, height) of an image that keeps its shape; None: of the image as it is."""
    return size if width is None else (width, max(round(size[1] * width / size[0]), 1))


def _write_image(source: Path, target: Path, width: int | None, quality: int) -> None:
    """Copy a JPEG file, or write it anew with another width; the same Pillow, the same bytes."""
    if width is None:
        shutil.copyfile(source, target)
        return
    try:
        with Image.open(source) as image:
            pixels = image.convert("RGB")
    except OSError as error:
        raise UserError(f"{source}: no image that can be read: {error}") from error
    resized = pixels.resize(_resized(pixels.size, width), Image.Resampling.LANCZOS)
    resized.save(target, "JPEG", quality=quality, optimize=True)


def prepare(
    clone: Path, output: Path, width: int | None = None, quality: int = 75
) -> dict[str, tuple[int, int]]:
    """
    Write images/, annotations/instances_SPLIT.json, LICENSE and SOURCE.md, all of it or nothing;
    returns the numbers of images and boxes by split.

    Args:
        width: of the images in pixels; None: the files as they are.
        quality: of JPEG files that are written anew, 1..95.

    Raises:
        UserError: the clone is incomplete or faulty, the output not empty or not writable.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already: remove it, or name another folder")
    if not (clone / "LICENSE").is_file():
        raise UserError(f"no file {clone / 'LICENSE'}: not a clone of {_ADDRESS}")
    splits = {split: convert_split(clone / "BCCD", split, width) for split in SPLITS}
    numbers = {x: (len(c["images"]), len(c["annotations"])) for x, (c, _) in splits.items()}
    with file_errors(), new_path(output) as folder:
        for name in ("annotations", "images"):
            (folder / name).mkdir(parents=True)
        shutil.copyfile(clone / "LICENSE", folder / "LICENSE")
        (folder / "SOURCE.md").write_text(_describe(numbers, width, quality), encoding="utf-8")
        for split, (content, files) in splits.items():
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
            for file in files:
                _write_image(file, folder / "images" / file.name, width, quality)
    return numbers


def _describe(numbers: dict[str, tuple[int, int]], width: int | None, quality: int) -> str:
    """The text of SOURCE.md."""
    options = "" if width is None else f" --width {width} --quality {quality}"
    images = "unchanged"
    if width is not None:
        images = f"resized to a width of {width} pixels, JPEG of quality {quality}"
    return _SOURCE.format(
        address=_ADDRESS,
        commit=_COMMIT,
        images=images,
        counts=", ".join(f"{split} {images}" for split, (images, _) in numbers.items()),
        boxes=sum(boxes for _, boxes in numbers.values()),
        command=f"tools/prepare_bccd.py CLONE_FOLDER OUTPUT_FOLDER{options}",
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare_bccd.py",
        description=f"Write the blood cell images of {_ADDRESS} (MIT licence) as COCO JSON.",
    )
    add = parser.add_argument
    add("clone", type=Path, metavar="CLONE_FOLDER", help="of that repository")
    add("output", type=Path, metavar="OUTPUT_FOLDER", help="a new folder")
    add("--width", type=positive, metavar="PIXELS", help="resize to it; boxes too")
    add("--quality", type=int, choices=range(1, 96), default=75, metavar="1..95", help="of JPEG")
    args = parser.parse_args(argv)
    numbers = prepare(args.clone, args.output, args.width, args.quality)
    for split, (images, boxes) in numbers.items():
        print(f"{split}: {images} images, {boxes} boxes")
    return 0
