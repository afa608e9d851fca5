"""
The embedded data set: cluttered scenes of five drawn shapes, made by a seeded generator.

Every image has a random generator of its own, so image `i` of a split looks the same whichever
others are made. A box is the tight box of the shape's pixels inside the image, parts hidden behind
other shapes included; no shape is hidden by more than `Scene.min_visible` allows. A dense group of
tiny shapes is annotated as one iscrowd=1 box.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_tools

from ...utils.files import new_path
from .shape_drawing import SHAPE_NAMES, background, draw_distractors, paint_shape, placed_outline

logger = logging.getLogger(__name__)

# Part of the cache folder's name: raise it with any change of what is drawn.
SHAPES_VERSION = 2
SPLITS = ("train", "val")
NUM_IMAGES = {"train": 600, "val": 100}

# Box scales sqrt(w * h) in pixels and how often a shape takes its scale from each range, sampled
# log-uniformly in it. Most lie where a small detector at half resolution can learn them.
SCALE_RANGES = ((16.0, 40.0), (40.0, 96.0), (96.0, 320.0), (320.0, 512.0))
SCALE_WEIGHTS = (0.05, 0.25, 0.62, 0.08)
IMAGE_SIDES = (512, 544, 576, 608, 640)
# Kinds of scenes and how often they occur.
SCENE_KINDS = ("plain", "crowded", "group", "empty")
SCENE_WEIGHTS = (0.78, 0.12, 0.06, 0.04)


@dataclass
class Scene:
    """
    An image being drawn.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        owner: (H, W) int32, the 1-based number of the shape seen at each pixel; 0: none.
        areas: pixels of each shape inside the image, hidden ones included.
        visible: pixels of each shape that can still be seen.
        objects: {"category_id": 1-based, "bbox": XYWH in pixels, "area", "iscrowd"} of each shape.
        min_visible: smallest fraction of a shape that later ones may leave to be seen.
    """

    image: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.int32]
    min_visible: float
    areas: list[int] = field(default_factory=list)
    visible: list[int] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(self, rng: np.random.Generator, class_id: int, outline: npt.NDArray[np.int32]) -> bool:
        """Draw a shape; False (and nothing drawn) when it would break the scene's rules."""
        mask = np.zeros(self.owner.shape, dtype=np.uint8)
        cv2.fillPoly(mask, [outline], 255)
        x, y, w, h = cv2.boundingRect(mask)
        if min(w, h) < 8:
            return False
        box = [int(x), int(y), int(w), int(h)]
        others = [x["bbox"] for x in self.objects]
        if others and mask_tools.iou([box], others, [0] * len(others)).max() > 0.5:
            return False
        window = (slice(y, y + h), slice(x, x + w))
        covered = self.owner[window][mask[window] > 0]
        counts = np.bincount(covered, minlength=len(self.areas) + 1)[1:]
        visible = np.array(self.visible, dtype=np.int64) - counts
        if (visible < self.min_visible * np.array(self.areas)).any():
            return False
        paint_shape(rng, self.image, outline, mask)
        self.visible = visible.tolist()
        self._record(class_id, box, len(covered), iscrowd=0)
        self.owner[window][mask[window] > 0] = len(self.areas)
        return True

    def _record(self, class_id: int, box: list[int], area: int, iscrowd: int) -> None:
        self.areas.append(area)
        self.visible.append(area)
        self.objects.append(
            {"category_id": class_id + 1, "bbox": box, "area": area, "iscrowd": iscrowd}
        )

    def add_group(self, rng: np.random.Generator) -> None:
        """Draw a dense cluster of tiny shapes of one class as a single iscrowd=1 object."""
        height, width = self.owner.shape
        w, h = (int(v) for v in rng.integers(90, 180, size=2))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        class_id = int(rng.integers(len(SHAPE_NAMES)))
        drawn = np.zeros(self.owner.shape, dtype=np.uint8)
        for _ in range(w * h // 180):
            size = rng.uniform(9, 15, size=2)
            center = rng.uniform([x + 8, y + 8], [x + w - 8, y + h - 8])
            angle = rng.uniform(0, 2 * np.pi)
            outline = placed_outline(SHAPE_NAMES[class_id], angle, center, size)
            mask = np.zeros_like(drawn)
            cv2.fillPoly(mask, [outline], 255)
            paint_shape(rng, self.image, outline, mask)
            drawn |= mask
        x, y, w, h = cv2.boundingRect(drawn)
        # The whole box counts as its area: later shapes keep off the gaps between the tiny ones.
        self._record(class_id, [int(x), int(y), int(w), int(h)], int(w * h), iscrowd=1)
        self.owner[y : y + h, x : x + w] = len(self.areas)


def make_scene(rng: np.random.Generator) -> Scene:
    """Draw one image with its objects; everything random comes from `rng`."""
    width, height = (int(rng.choice(IMAGE_SIDES)) for _ in range(2))
    kind = str(rng.choice(SCENE_KINDS, p=SCENE_WEIGHTS))
    image = background(rng, height, width)
    draw_distractors(rng, image, int(rng.integers(2, 12)))
    owner = np.zeros((height, width), dtype=np.int32)
    scene = Scene(image, owner, min_visible=0.5 if kind == "crowded" else 0.7)
    if kind == "group":
        scene.add_group(rng)
    if kind != "empty":
        _add_shapes(rng, scene, crowded=kind == "crowded")
    draw_distractors(rng, image, int(rng.integers(0, 3)))
    if rng.random() < 0.3:
        cv2.GaussianBlur(image, (3, 3), 0, dst=image)
    return scene


def _add_shapes(rng: np.random.Generator, scene: Scene, crowded: bool) -> None:
    """Fill a scene; large shapes are drawn first so that they do not bury the small ones."""
    height, width = scene.owner.shape
    if crowded:
        # Shapes of like size about one point, so that they cover each other.
        scales = rng.uniform(56, 120) * np.exp(rng.uniform(-0.35, 0.35, rng.integers(10, 18)))
        middle = rng.uniform([0.3 * width, 0.3 * height], [0.7 * width, 0.7 * height])
        spread = 0.17 * np.array([width, height])
    else:
        scales = np.empty(rng.integers(2, 9))
        for i in range(len(scales)):
            low, high = SCALE_RANGES[rng.choice(len(SCALE_RANGES), p=SCALE_WEIGHTS)]
            scales[i] = np.exp(rng.uniform(np.log(low), np.log(high)))
        # Two giants never fit: one would hide the other.
        giants = np.flatnonzero(scales > SCALE_RANGES[-1][0])[1:]
        scales = np.delete(scales, giants)
    for scale in sorted(scales, reverse=True):
        class_id = int(rng.integers(len(SHAPE_NAMES)))
        # Aspect ratio in [0.5, 2], no larger than the image:
        # w = scale * sqrt(aspect) <= width and h = scale / sqrt(aspect) <= height.
        aspect = np.exp(np.clip(rng.normal(0, 0.25), -np.log(2), np.log(2)))
        aspect = np.clip(aspect, (scale / height) ** 2, (width / scale) ** 2)
        size = np.array([scale * np.sqrt(aspect), scale / np.sqrt(aspect)])
        for _ in range(12):
            center = rng.normal(middle, spread) if crowded else rng.uniform([0, 0], [width, height])
            # At most a tenth of the box's side may lie outside, nothing of a giant.
            margin = (0.5 if scale > SCALE_RANGES[-1][0] else 0.4) * size
            low = np.minimum(margin, [width / 2, height / 2])
            center = np.clip(center, low, np.array([width, height]) - low)
            angle = rng.uniform(0, 2 * np.pi)
            outline = placed_outline(SHAPE_NAMES[class_id], angle, center, size)
            if scene.add(rng, class_id, outline):
                break


def write_shapes(root: str | Path, split: str, num_images: int, seed: int = 0) -> Path:
    """
    Write a split as `root/split/images/*.png` and `root/split/annotations.json` (COCO).

    The same arguments give the same bytes (with the same OpenCV). A folder that is there already
    is left untouched; several processes may call this at once.

    Args:
        split: "train" or "val", else ValueError; the two never share an image.
        seed: of the generator; image `index` uses PCG64([seed, split, index]).

    Returns:
        The folder `root/split`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded data set; known: {SPLITS}")
    target = Path(root) / split
    if target.is_dir():
        return target
    logger.info(f"Drawing the embedded data set: {num_images} images into {target}")
    start = time.perf_counter()
    with new_path(target) as folder:
        (folder / "images").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(num_images):
            rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
            scene = make_scene(rng)
            height, width = scene.owner.shape
            record = {"id": index + 1, "file_name": f"{index:06d}.png"}
            images.append(record | {"width": width, "height": height})
            path = folder / "images" / f"{index:06d}.png"
            if not cv2.imwrite(str(path), scene.image, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
                raise OSError(f"cannot write {path}")
            for item in scene.objects:
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | item)
        content = {
            "info": {"description": f"MimicDet shapes v{SHAPES_VERSION}, {split}, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPE_NAMES, 1)],
        }
        (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    logger.info(f"Drew {len(annotations)} objects in {time.perf_counter() - start:.1f} s")
    return target
