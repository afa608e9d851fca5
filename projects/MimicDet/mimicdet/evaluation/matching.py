"""Detections and ground truth of a data set side by side: COCO's matching and AP, in numpy."""

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..utils.errors import UserError

MAX_DETECTIONS = 100  # an image, as in COCO's metric
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class ImageBoxes:
    """Ground truth and detections of one image; boxes XYWH in pixels, classes contiguous."""

    image_id: int
    gt_boxes: np.ndarray  # (G, 4)
    gt_classes: np.ndarray  # (G,) int64
    gt_crowd: np.ndarray  # (G,) bool
    boxes: np.ndarray  # (D, 4), best score first
    classes: np.ndarray  # (D,) int64
    scores: np.ndarray  # (D,)

    def above(self, threshold: float) -> "ImageBoxes":
        """The same image with only the detections of at least this score."""
        keep = self.scores >= threshold
        return replace(
            self, boxes=self.boxes[keep], classes=self.classes[keep], scores=self.scores[keep]
        )

    def ious(self) -> np.ndarray:
        """(D, G) IoU; for a crowd the part of the detection that lies in it, as COCO has it."""
        if not len(self.boxes) or not len(self.gt_boxes):
            return np.zeros((len(self.boxes), len(self.gt_boxes)))
        return mask_tools.iou(self.boxes, self.gt_boxes, self.gt_crowd.astype(np.uint8).tolist())


@dataclass(frozen=True)
class Evaluation:
    """COCO's metric of one set of results, 0..100; NaN where there are no such objects."""

    summary: dict[str, float]  # AP, AP50, AP75, APs, APm, APl
    per_class: np.ndarray  # (K,) AP
    precision: np.ndarray  # (10, 101, K): IoU 0.50:0.05:0.95, recall 0:0.01:1; 0..1, -1: no objects


def check_results(where: str, results: Any) -> None:
    """Raise UserError, which begins with `where`, unless it is a list of COCO-format detections."""
    if not isinstance(results, list):
        raise UserError(f"{where} must be a list of COCO-format detections")
    for number, result in enumerate(results):
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in result]
        if missing:
            raise UserError(f"{where}: record {number} has no '{missing[0]}'")


def images_of(coco: COCO, results: Sequence[dict[str, Any]]) -> list[ImageBoxes]:
    """
    Ground truth and COCO-format results of every image.

    Raises:
        UserError: a result is of an image or a category that the ground truth does not have.
    """
    class_of = {category: index for index, category in enumerate(sorted(coco.getCatIds()))}
    grouped: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in coco.getImgIds()}
    for number, result in enumerate(results):
        if result["image_id"] not in grouped or result["category_id"] not in class_of:
            raise UserError(
                f"result {number} (image {result['image_id']}, category {result['category_id']}) "
                "does not belong to the ground truth"
            )
        grouped[result["image_id"]].append(result)
    images = []
    for image_id, detections in grouped.items():
        truth = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        best = sorted(detections, key=lambda x: -x["score"])[:MAX_DETECTIONS]
        images.append(
            ImageBoxes(
                image_id,
                np.array([x["bbox"] for x in truth], dtype=np.float64).reshape(-1, 4),
                np.array([class_of[x["category_id"]] for x in truth], dtype=np.int64),
                np.array([bool(x.get("iscrowd", 0)) for x in truth], dtype=bool),
                np.array([x["bbox"] for x in best], dtype=np.float64).reshape(-1, 4),
                np.array([class_of[x["category_id"]] for x in best], dtype=np.int64),
                np.array([x["score"] for x in best], dtype=np.float64),
            )
        )
    return images


def match(image: ImageBoxes, ious: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """
    COCO's greedy matching: best score first, each detection takes the free object of its class that
    it overlaps most.

    Returns:
        matched: (D,) int64 index of the object, -1 where none; ignored: (D,) bool, detections in a
        crowd of their class, which count neither as right nor as wrong.
    """
    matched = np.full(len(image.boxes), -1, dtype=np.int64)
    ignored = np.zeros(len(image.boxes), dtype=bool)
    free = ~image.gt_crowd
    for index, (label, overlaps) in enumerate(zip(image.classes, ious)):
        fits = (image.gt_classes == label) & (overlaps >= threshold)
        if (fits & free).any():
            matched[index] = np.where(fits & free, overlaps, -1.0).argmax()
            free[matched[index]] = False
        else:
            ignored[index] = (fits & image.gt_crowd).any()
    return matched, ignored


def average_precision(scores: np.ndarray, correct: np.ndarray, num_objects: int) -> float:
    """
    COCO's AP of one class at one IoU, 0..100: precision at 101 recalls, made monotonous.

    Args:
        scores: (D,); correct: (D,) bool, whether a detection is matched.
        num_objects: 0 gives 100: no object is left to detect.
    """
    if num_objects == 0:
        return 100.0
    order = np.argsort(-scores, kind="mergesort")
    hits = np.cumsum(correct[order])
    recall = hits / num_objects
    precision = hits / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return 100.0 * float(np.append(precision, 0.0)[np.minimum(places, len(order))].mean())


def no_detections(coco: COCO) -> COCO:
    """Results without a detection, which COCO.loadRes cannot make."""
    nothing = COCO()
    nothing.dataset = {**coco.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def evaluate(coco: COCO, results: Sequence[dict[str, Any]]) -> Evaluation:
    """COCO's metric by pycocotools; UserError where the results belong to other images."""
    num_classes = len(coco.getCatIds())
    # pycocotools prints what it does, and adds keys to the results.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            detections = coco.loadRes(copy.deepcopy(list(results))) if results else None
        except AssertionError as error:
            raise UserError(str(error)) from error
        evaluation = COCOeval(coco, detections or no_detections(coco), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    known = np.where(precision > -1, precision, np.nan).reshape(-1, num_classes)
    per_class = [
        100.0 * column.mean() if not np.isnan(column).all() else np.nan for column in known.T
    ]
    stats = [100.0 * value if value > -1 else np.nan for value in evaluation.stats[:6]]
    return Evaluation(dict(zip(_SUMMARY, map(float, stats))), np.array(per_class), precision)
