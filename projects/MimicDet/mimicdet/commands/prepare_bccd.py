"""The blood cell images of BCCD as COCO JSON: tools/prepare_bccd.py."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.datasets.voc import read_voc
from ..utils.errors import UserError, command, file_errors
from ..utils.files import new_path

CLASSES = ("RBC", "WBC", "Platelets")
SPLITS = ("train", "val", "test")
_ADDRESS = "https://github.com/Shenggan/BCCD_Dataset"


def convert_split(voc: Path, split: str) -> tuple[dict[str, Any], list[Path]]:
    """
    COCO's content of one split, and its image files in the order of their ids.

    Boxes are read as 1-based with the last pixel inside. Those whose corners share a coordinate
    have no area in the annotation files and are left out.

    Raises:
        UserError: a folder or file is missing or faulty, or a class is none of CLASSES.
    """
    ids, files, voc_images = read_voc(voc, split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in enumerate(ids, 1):
        record = voc_images[image_id]
        width, height = record.size
        image = {"id": number, "file_name": files[image_id].name}
        images.append({**image, "width": width, "height": height})
        for item in record.objects:
            if item.name not in CLASSES:
                raise UserError(
                    f"{voc / 'Annotations' / image_id}.xml: object {item.name!r} is none of "
                    f"{', '.join(CLASSES)}"
                )
            x0, y0, x1, y1 = item.box  # x0 and y0 are 1 less than in the file
            if x1 <= x0 + 1 or y1 <= y0 + 1:
                continue
            box = [x0, y0, x1 - x0, y1 - y0]
            annotation = {"id": len(annotations) + 1, "image_id": number, "bbox": box}
            annotation.update(category_id=CLASSES.index(item.name) + 1, iscrowd=0)
            annotations.append({**annotation, "area": box[2] * box[3]})
    content = {
        "info": {"description": f"BCCD blood cells, {_ADDRESS}, MIT licence ({split})"},
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
        "images": images,
        "annotations": annotations,
    }
    return content, [files[image_id] for image_id in ids]


def prepare(clone: Path, output: Path) -> dict[str, tuple[int, int]]:
    """
    Write images/, annotations/instances_SPLIT.json and LICENSE, all of it or nothing; returns the
    numbers of images and boxes by split.

    Raises:
        UserError: the clone is incomplete or faulty, the output not empty or not writable.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already: remove it, or name another folder")
    if not (clone / "LICENSE").is_file():
        raise UserError(f"no file {clone / 'LICENSE'}: not a clone of {_ADDRESS}")
    splits = {split: convert_split(clone / "BCCD", split) for split in SPLITS}
    with file_errors(), new_path(output) as folder:
        for name in ("annotations", "images"):
            (folder / name).mkdir(parents=True)
        shutil.copyfile(clone / "LICENSE", folder / "LICENSE")
        for split, (content, files) in splits.items():
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content), encoding="utf-8")
            for file in files:
                shutil.copyfile(file, folder / "images" / file.name)
    return {x: (len(c["images"]), len(c["annotations"])) for x, (c, _) in splits.items()}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare_bccd.py",
        description=f"Write the blood cell images of {_ADDRESS} (MIT licence) as COCO JSON.",
    )
    parser.add_argument("clone", type=Path, metavar="CLONE_FOLDER", help="of that repository")
    parser.add_argument("output", type=Path, metavar="OUTPUT_FOLDER", help="a new folder")
    args = parser.parse_args(argv)
    for split, (images, boxes) in prepare(args.clone, args.output).items():
        print(f"{split}: {images} images, {boxes} boxes")
    return 0
