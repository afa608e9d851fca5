"""Writes small COCO and Pascal VOC data sets for the tests."""

import json
from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 99, np.uint8))


def coco_content() -> dict:
    """Two images, two categories with gaps in their ids, three boxes, one of them a crowd."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)]
    boxes = [(1, 7, [4, 5, 20, 10], 0), (1, 3, [30, 20, 30, 20], 0), (2, 7, [0, 0, 64, 48], 1)]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
        for n, (i, c, b, crowd) in enumerate(boxes, 1)
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, content: object, images: str = "images") -> Path:
    """folder/annotations/data.json and folder/`images`/{1,2}.png; returns the JSON's path."""
    path = folder / "annotations" / "data.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for i in (1, 2):
        write_image(folder / images / f"{i}.png")
    return path


def voc_xml(objects: list[str], size: str = "<width>64</width><height>48</height>") -> str:
    body = "".join(f"<object>{x}</object>" for x in objects)
    return f"<annotation><size>{size}<depth>3</depth></size>{body}</annotation>"


def voc_object(name: str, box: tuple, flags: bool = True, difficult: int = 0) -> str:
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    extra = f"<pose>x</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
    return f"<name>{name}</name>{extra if flags else ''}<bndbox>{corners}</bndbox>"


def write_voc(folder: Path) -> Path:
    """Three images (.jpg, .jpeg, .png); split train has the first two, val the last one."""
    annotations = {
        "a": voc_xml([voc_object("dog", (1, 1, 64, 48)), voc_object("cat", (11, 6, 30, 25))]),
        "b": voc_xml([]),
        "c": voc_xml([voc_object("cat", (5, 5, 20, 20), difficult=1)]),
    }
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for key, text in annotations.items():
        (folder / "Annotations" / f"{key}.xml").write_text(text)
    for name in ("a.jpg", "b.jpeg", "c.png"):
        write_image(folder / "JPEGImages" / name)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return folder
