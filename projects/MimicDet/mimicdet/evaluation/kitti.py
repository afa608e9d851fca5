"""
KITTI's 2D average precision, by class and difficulty.

The protocol of KITTI's evaluation program: ground truth that is too hard for the difficulty, and
that of a neighbouring class, is neither to be found nor wrong to find; nor are detections in
DontCare regions. Precision is sampled at 41 recalls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.datasets.kitti import CLASSES, NEIGHBOURS, REGION, KittiObject, read_labels

MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
RECALL_STEPS = 40

# What a box counts as.
_VALID, _IGNORED, _FOREIGN = 0, 1, -1


@dataclass(frozen=True)
class Difficulty:
    """Which objects must be found."""

    name: str
    min_height: float  # of the box, pixels
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = (
    Difficulty("easy", 40, 0, 0.15),
    Difficulty("moderate", 25, 1, 0.30),
    Difficulty("hard", 25, 2, 0.50),
)


@dataclass(frozen=True)
class Detections:
    """The detections of one class in one image."""

    boxes: np.ndarray  # (D, 4) XYXY, pixels
    scores: np.ndarray  # (D,)


@dataclass(frozen=True)
class _ImageCase:
    """One image as one class and difficulty sees it."""

    gt_kinds: np.ndarray  # (G,), without foreign ones
    scores: np.ndarray  # (D,)
    kinds: np.ndarray  # (D,)
    hits: np.ndarray  # (G, D): IoU where it is above the class' least overlap, else 0
    in_region: np.ndarray  # (D,) bool: mostly inside a DontCare region


def intersections(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) -> (A, B) areas that they share."""
    low = np.maximum(boxes[:, None, :2], other[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], other[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _kind(x: KittiObject, class_name: str, difficulty: Difficulty) -> int:
    if x.type == NEIGHBOURS.get(class_name):
        return _IGNORED
    if x.type != class_name:
        return _FOREIGN
    too_hard = (
        x.box[3] - x.box[1] < difficulty.min_height
        or x.occluded > difficulty.max_occlusion
        or x.truncated > difficulty.max_truncation
    )
    return _IGNORED if too_hard else _VALID


def _case(
    objects: Sequence[KittiObject], detections: Detections, class_name: str, difficulty: Difficulty
) -> _ImageCase:
    kinds = [_kind(x, class_name, difficulty) for x in objects]
    kept = [(x.box, kind) for x, kind in zip(objects, kinds) if kind != _FOREIGN]
    gt_boxes = np.array([box for box, _ in kept], dtype=float).reshape(-1, 4)
    regions = np.array([x.box for x in objects if x.type == REGION], dtype=float).reshape(-1, 4)
    areas = _areas(detections.boxes)
    shared = intersections(gt_boxes, detections.boxes)
    ious = shared / np.maximum(_areas(gt_boxes)[:, None] + areas[None] - shared, 1e-9)
    inside = intersections(regions, detections.boxes) / np.maximum(areas, 1e-9)
    least = MIN_OVERLAP[class_name]
    heights = detections.boxes[:, 3] - detections.boxes[:, 1]
    return _ImageCase(
        np.array([kind for _, kind in kept], dtype=int),
        detections.scores,
        np.where(heights < difficulty.min_height, _IGNORED, _VALID),
        np.where(ious > least, ious, 0.0),
        (inside > least).any(axis=0),
    )


def _true_positive_scores(case: _ImageCase) -> list[float]:
    """Scores of the valid objects' detections; each object takes the best-scored one left."""
    free = np.ones(len(case.scores), dtype=bool)
    scores = []
    for gt_kind, hits in zip(case.gt_kinds, case.hits):
        candidates = np.flatnonzero(free & (hits > 0))
        if len(candidates) == 0:
            continue
        best = candidates[case.scores[candidates].argmax()]
        free[best] = False
        if gt_kind == _VALID and case.kinds[best] == _VALID:
            scores.append(float(case.scores[best]))
    return scores


def _count(case: _ImageCase, threshold: float) -> tuple[int, int]:
    """(true, false) positives among detections of at least this score."""
    free = case.scores >= threshold
    true_positives = 0
    for gt_kind, hits in zip(case.gt_kinds, case.hits):
        candidates = np.flatnonzero(free & (hits > 0))
        if len(candidates) == 0:
            continue
        # A detection that counts goes before one that is too small to count.
        valid = candidates[case.kinds[candidates] == _VALID]
        best = valid[hits[valid].argmax()] if len(valid) else candidates[0]
        free[best] = False
        true_positives += gt_kind == _VALID and case.kinds[best] == _VALID
    false_positives = free & (case.kinds == _VALID) & ~case.in_region
    return int(true_positives), int(false_positives.sum())


def recall_thresholds(scores: Sequence[float], num_objects: int) -> list[float]:
    """
    The scores at which recall comes nearest to 0, 1/40, 2/40, ..., as far as it goes.

    Args:
        scores: of all true positives; num_objects: that had to be found.
    """
    ordered = sorted(scores, reverse=True)
    thresholds: list[float] = []
    for index, score in enumerate(ordered):
        recall = len(thresholds) / RECALL_STEPS
        here = (index + 1) / num_objects
        last = index == len(ordered) - 1
        if not last and (index + 2) / num_objects - recall < recall - here:
            continue  # the next score comes nearer
        thresholds.append(score)
    return thresholds


def average_precision(
    ground_truth: Sequence[Sequence[KittiObject]],
    detections: Sequence[Detections],
    class_name: str,
    difficulty: Difficulty,
) -> tuple[float, float]:
    """
    (AP at 11 recalls 0, 0.1, ..., 1; AP at 40 recalls 1/40, ..., 1) in percent.

    Args:
        ground_truth, detections: of the images, detections of this class alone.

    Returns:
        nan twice where no object had to be found.
    """
    cases = [
        _case(objects, of_image, class_name, difficulty)
        for objects, of_image in zip(ground_truth, detections)
    ]
    num_objects = sum(int((case.gt_kinds == _VALID).sum()) for case in cases)
    if num_objects == 0:
        return float("nan"), float("nan")
    scores = [score for case in cases for score in _true_positive_scores(case)]
    precision = np.zeros(RECALL_STEPS + 1)
    for index, threshold in enumerate(recall_thresholds(scores, num_objects)):
        counts = np.array([_count(case, threshold) for case in cases]).sum(axis=0)
        precision[index] = counts[0] / max(counts.sum(), 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return 100 * precision[::4].mean(), 100 * precision[1:].mean()


class KittiEvaluator(DatasetEvaluator):
    """
    AP of every class and difficulty of a registered KITTI set.

    "AP" is the mean of the nine values at 11 recalls (FGFI's mAP), "AP40" that at 40.
    """

    def __init__(self, dataset_name: str):
        self._label_dir = Path(MetadataCatalog.get(dataset_name).label_dir)
        self._detections: dict[str, list[Detections]] = {}

    def reset(self) -> None:
        self._detections = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            boxes, scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
            classes = instances.pred_classes.numpy()
            self._detections[image["image_id"]] = [
                Detections(boxes[classes == i].astype(float), scores[classes == i].astype(float))
                for i in range(len(CLASSES))
            ]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The main process's results; nan where no object of a kind is there to be found."""
        detections: dict[str, list[Detections]] = {}
        for part in comm.gather(self._detections):
            detections.update(part)
        if not comm.is_main_process():
            return None
        ids = sorted(detections)
        objects = read_labels(self._label_dir, ids)
        results: dict[str, float] = {}
        for index, class_name in enumerate(CLASSES):
            for difficulty in DIFFICULTIES:
                values = average_precision(
                    [objects[i] for i in ids],
                    [detections[i][index] for i in ids],
                    class_name,
                    difficulty,
                )
                for suffix, value in zip(("", "-40"), values):
                    results[f"AP-{class_name}-{difficulty.name}{suffix}"] = value
        elevens = [v for k, v in results.items() if not k.endswith("-40")]
        forties = [v for k, v in results.items() if k.endswith("-40")]
        return {"bbox": {"AP": _mean(elevens), "AP40": _mean(forties), **results}}


def _mean(values: list[float]) -> float:
    """Of the values that are there; nan if none is."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
