"""
Annotation files with something changed at random, and an oracle for each format.

The oracles are written from the formats' rules and the policy in the docs, and call none of the
package's code: they return why a file is wrong, or "" for one that may be taken.
"""

import copy
import json
import math
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from data_folders import coco_content, voc_object, voc_xml

GARBAGE = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e9, 1e10, 1e400, -1e400, math.nan, 10**30,
    10**400, -(10**400), 2**63, "", "1", "x", "a\nb", "\0", "\ud800", "../secret.png", "/etc/hosts",
    "x" * 300, [], [1], [1, 2, 3, 4], [[1, 2]], [1, 2, "3", 4], [0, 0, -1, 5], {}, {"id": 1},
    {"counts": [1, 2], "size": [1, 3]}, {"counts": [1, -2], "size": [2, 2]}, [[[[]]]],
]  # fmt: skip


def full_coco() -> dict:
    """coco_content with every field that an annotation may have."""
    content = coco_content()
    content["info"], content["licenses"] = {"year": 2020}, [{"id": 1}]
    first, second, third = content["annotations"]
    first["segmentation"] = [[4, 5, 24, 5, 24, 15, 4, 15]]
    first["keypoints"] = [5, 6, 2, 7, 8, 1]
    second["segmentation"] = []
    third["segmentation"] = {"size": [48, 64], "counts": [0, 48 * 64]}
    return content


def _places(value: object) -> Iterator[tuple]:
    """Every (container, key) of a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def mutated_json(rng: random.Random) -> str:
    """The text of full_coco() with one to three changes."""
    content = full_coco()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, key = rng.choice(list(_places(content)))
        change = rng.randrange(8)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif change == 2 and isinstance(place[key], int | float):
            place[key] *= rng.choice((-1, 0, 0.5, 2, 1e6, 1e12, 1e300))
        elif change == 3:
            deep: object = 0
            for _ in range(rng.choice((3, 60, 400))):
                deep = [deep]
            place[key] = deep
        elif change == 4 and isinstance(place, dict):
            other = rng.choice(list(place))
            place[key], place[other] = place[other], place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(GARBAGE))
    text = json.dumps(content)
    if rng.random() < 0.15:
        text = _cut(rng, text)
    if rng.random() < 0.02:
        text = text.replace('"year": 2020', '"year": ' + rng.choice(("[" * 5000, "9" * 5000)))
    return text


def _cut(rng: random.Random, text: str) -> str:
    """Truncated, or with a few characters deleted, doubled or replaced."""
    if rng.random() < 0.3:
        return text[: rng.randint(0, len(text))]
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randint(0, len(text)), rng.randint(1, 4)
        new = rng.choice(("", text[at : at + length] * 2, rng.choice('0-9.eE"{}[],:<>/ \tx\n')))
        text = text[:at] + new + text[at + length :]
    return text


def mutated_xml(rng: random.Random) -> str:
    text = voc_xml([voc_object("dog", (1, 1, 64, 48)), voc_object("cat", (11, 6, 30, 25))])
    values = ("nan", "1e400", "-5", "64.5", "x", "", "1e300", "0", "9" * 30, "a/b", "a&#10;b", "70")
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            text = _cut(rng, text)
            continue
        old = rng.choice((">64<", ">48<", ">1<", ">dog<", ">cat<", ">11<", ">30<", ">0<"))
        text = text.replace(old, f">{rng.choice(values)}<", 1)
    return rng.choice(("", "", "", '<?xml version="1.0" encoding="none"?>')) + text


KITTI = (
    "Car 0.00 0 1.85 4.0 5.0 24.0 15.0 1.5 1.6 3.6 2.3 1.7 20.1 1.9\n"
    "Van 0.10 1 1.85 30.0 20.0 60.0 40.0 1.5 1.6 3.6 2.3 1.7 20.1 1.9\n"
    "DontCare -1 -1 -10 50.0 1.0 63.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
)


def mutated_labels(rng: random.Random) -> str:
    text = KITTI
    values = ("nan", "inf", "-5", "x", "1e300", "0", "Truck", "car", "2", "1.5", "\u0661", "60.0")
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            text = _cut(rng, text)
        else:
            text = text.replace(rng.choice(text.split() or ["x"]), rng.choice(values), 1)
    return text


# ---------------------------------------------------------------- oracles


def _finite(value: object, low: float = -1e9, high: float = 1e9) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _id(value: object) -> bool:
    return isinstance(value, str) or isinstance(value, int) and type(value) is not bool and (
        abs(value) < 2**63
    )  # fmt: skip


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, dict | list)]:
        depth += 1
        level = [y for x in level for y in (x.values() if isinstance(x, dict) else x)]
    return depth


def wrong_coco(text: str, folder: Path) -> str:
    """folder: of the images."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(content, dict):
        return "no object"
    parts = [content.get(key) for key in ("images", "categories", "annotations")]
    if not all(isinstance(part, list) for part in parts) or not parts[0] or not parts[1]:
        return "lists"
    if not all(isinstance(x, dict) for part in parts for x in part):
        return "records"
    if _depth(content.get("info")) > 50 or _depth(parts[1]) > 50:
        return "deep"
    return _wrong_images(parts[0], folder) or _wrong_categories(parts[1]) or _wrong_objects(*parts)


def _wrong_images(images: list[dict], folder: Path) -> str:
    ids = [x.get("id") for x in images]
    if not all(map(_id, ids)) or len(set(ids)) < len(ids) or len(set(map(type, ids))) > 1:
        return "image ids"
    for x in images:
        width, height, name = x.get("width"), x.get("height"), x.get("file_name")
        if not all(_finite(v, 1) and v % 1 == 0 for v in (width, height)):
            return "image size"
        if width * height > 89_478_485:
            return "image too large"
        if not isinstance(name, str) or name not in [p.name for p in folder.iterdir()]:
            return "file name"
    return ""


def _wrong_categories(categories: list[dict]) -> str:
    ids, names = ([x.get(key) for x in categories] for key in ("id", "name"))
    if not all(_id(x) and not isinstance(x, str) for x in ids) or len(set(ids)) < len(ids):
        return "category ids"
    if not all(isinstance(x, str) and x and x.isprintable() for x in names):
        return "category names"
    return "category names" if len(set(names)) < len(names) else ""


def _wrong_objects(images: list[dict], categories: list[dict], annotations: list[dict]) -> str:
    image_ids, category_ids = ({x["id"] for x in records} for records in (images, categories))
    ids = [x["id"] for x in annotations if "id" in x]
    if not all(map(_id, ids)) or len(set(ids)) < len(ids):
        return "annotation ids"
    for x in annotations:
        if not _id(x.get("image_id")) or x["image_id"] not in image_ids:
            return "image_id"
        if not _id(x.get("category_id")) or x["category_id"] not in category_ids:
            return "category_id"
        box = x.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            return "bbox"
        if box[2] < 0 or box[3] < 0:
            return "bbox size"
        if "area" in x and not _finite(x["area"], 0):
            return "area"
        if "iscrowd" in x and not (
            isinstance(x["iscrowd"], int | float) and x["iscrowd"] in (0, 1)
        ):
            return "iscrowd"
        if not (isinstance(x.get("ignore", 0), int | float) and x.get("ignore", 0) == 0):
            return "ignore"
        if not _shape(x.get("segmentation")):
            return "segmentation"
        points = x.get("keypoints", [])
        if points is not None and not (_numbers(points) and len(points) % 3 == 0):
            return "keypoints"
    return ""


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(_finite(v, -1e308, 1e308) for v in values)


def _shape(shape: object) -> bool:
    if shape is None or isinstance(shape, list):
        return all(map(_numbers, shape or []))
    if not isinstance(shape, dict):
        return False
    size, counts = shape.get("size"), shape.get("counts")
    if not _numbers(size) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        return False
    if isinstance(counts, str):
        return counts.isascii()
    runs = _numbers(counts) and all(type(v) is int and v >= 0 for v in counts)
    return runs and sum(counts) == size[0] * size[1]


def wrong_voc(text: str) -> str:
    """Of a split's image, in a folder whose other files are sound."""
    try:
        root = ET.fromstring(text.encode())
    except (ET.ParseError, ValueError, LookupError):
        return "no XML"
    size = [_float(root.findtext(f"size/{key}")) for key in ("width", "height")]
    if not all(_finite(v, 1) and v % 1 == 0 for v in size) or size[0] * size[1] > 89_478_485:
        return "size"
    for x in root.findall("object"):
        name = (x.findtext("name") or "").strip()
        if not name or "/" in name or not name.isprintable():
            return "name"
        corners = [_float(x.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not all(map(_finite, corners)):
            return "bndbox"
        if corners[2] < corners[0] - 1 or corners[3] < corners[1] - 1:
            return "bndbox size"
    return ""


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def wrong_kitti(text: str) -> str:
    types = "Car Pedestrian Cyclist Van Person_sitting Truck Tram Misc DontCare".split()
    classes = 0
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 15 or words[0] not in types:
            return "fields"
        numbers = [_float(word) for word in words[1:]]
        if not all(map(_finite, numbers)) or numbers[1] not in (-1, 0, 1, 2, 3):
            return "numbers"
        if numbers[5] <= numbers[3] or numbers[6] <= numbers[4]:
            return "box"
        classes += words[0] in types[:3]
    return "" if classes else "no object"
