"""
Why detections are wrong, and what each kind of error costs: the split of TIDE (Bolya et al., ECCV
2020), reimplemented on COCO's matching.

At an IoU of 0.5 (t_f) with background below 0.1 (t_b), a detection that is matched to no object has
the first of these errors that holds:

- localisation: its IoU with an object of its class is in [t_b, t_f];
- classification: its IoU with an object of another class is at least t_f;
- duplicate: its IoU with an object of its class is at least t_f, but that object is taken by a
  detection of higher score;
- background: its IoU with every object is at most t_b;
- both: what remains, an IoU in [t_b, t_f] with an object of another class.

An object is missed where no detection is matched to it and no localisation or classification error
points to it. dAP of a kind is the gain in AP50 when that kind alone is put right:
localisation and classification errors become correct detections of the object they point to (of
several, of both kinds, that point to one object only the best; where it is detected already, none),
duplicates, background and both are removed, and missed objects are not counted as objects. The dAP
of the kinds do not add up to what AP50 lacks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import UserError
from .matching import ImageBoxes, average_precision, match

KINDS = ("localisation", "classification", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1
_REDIRECTED = ("localisation", "classification")


@dataclass(frozen=True)
class ImageErrors:
    """The errors of one image."""

    kinds: list[str]  # D: "correct", "ignored" (in a crowd) or one of KINDS
    targets: np.ndarray  # (D,) int64: the object that an error points to; -1: none
    matched: np.ndarray  # (D,) int64: the object that a correct detection is matched to; -1: none
    missed: np.ndarray  # (G,) bool


@dataclass(frozen=True)
class ErrorSplit:
    """The errors of a data set."""

    ap50: float  # 0..100
    counts: dict[str, int]  # kind -> detections, or objects for "missed"
    gains: dict[str, float]  # kind -> dAP, points of AP50


def find_errors(image: ImageBoxes) -> ImageErrors:
    """Give each detection of an image its kind, see the module's text; crowds are no objects."""
    ious = image.ious()
    matched, ignored = match(image, ious, FOREGROUND)
    taken = np.zeros(len(image.gt_boxes), dtype=bool)
    taken[matched[matched >= 0]] = True
    kinds, targets = [], np.full(len(matched), -1, dtype=np.int64)
    for index, label in enumerate(image.classes):
        if matched[index] >= 0 or ignored[index]:
            kinds.append("correct" if matched[index] >= 0 else "ignored")
            continue
        kind, targets[index] = _kind(ious[index], image.gt_classes == label, ~image.gt_crowd)
        kinds.append(kind)
    pointed = [target for kind, target in zip(kinds, targets) if kind in _REDIRECTED]
    missed = ~taken & ~image.gt_crowd
    missed[pointed] = False
    return ImageErrors(kinds, targets, matched, missed)


def _kind(ious: np.ndarray, same_class: np.ndarray, real: np.ndarray) -> tuple[str, int]:
    """Kind and target of an unmatched detection; ious, same_class, real (no crowd): (G,)."""
    same = np.where(same_class & real, ious, 0.0)
    other = np.where(~same_class & real, ious, 0.0)
    best_same, best_other = same.max(initial=0.0), other.max(initial=0.0)
    # An object of its class at t_f or more is taken: else the detection would be matched.
    if BACKGROUND <= best_same <= FOREGROUND:
        return "localisation", int(same.argmax())
    if best_other >= FOREGROUND:
        return "classification", int(other.argmax())
    if best_same >= FOREGROUND:
        return "duplicate", -1
    if best_other <= BACKGROUND:
        return "background", -1
    return "both", -1


@dataclass(frozen=True)
class _Detections:
    """The detections of all images that are not ignored, one after another."""

    scores: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray  # number of the object in the whole data set, -1: none
    target_classes: np.ndarray
    target_detected: np.ndarray


def split_errors(images: Sequence[ImageBoxes]) -> ErrorSplit:
    """
    Count the errors of each kind and what AP50 gains when it is put right.

    Raises:
        UserError: there is no object in any image, so that there is no AP.
    """
    errors = [find_errors(image) for image in images]
    truth = np.concatenate([x.gt_classes[~x.gt_crowd] for x in images] or [np.zeros(0, int)])
    objects = Counter(sorted(truth.tolist()))
    if not objects:
        raise UserError("the ground truth holds no object")
    missed_classes = np.concatenate([x.gt_classes[e.missed] for x, e in zip(images, errors)])
    missed = Counter(missed_classes.tolist())
    flat = _flatten(images, errors)
    detections = (flat.scores, flat.classes, flat.correct)
    counts = {kind: int((flat.kinds == kind).sum()) for kind in KINDS}
    counts["missed"] = missed.total()
    ap50 = _mean_ap(detections, objects)
    fixed = {kind: _mean_ap(_without(flat, kind), objects) for kind in KINDS if kind != "missed"}
    left = {index: number - missed[index] for index, number in objects.items()}
    fixed["missed"] = _mean_ap(detections, left)
    return ErrorSplit(ap50, counts, {kind: fixed[kind] - ap50 for kind in KINDS})


def _flatten(images: Sequence[ImageBoxes], errors: Sequence[ImageErrors]) -> _Detections:
    parts, start = [], 0
    for image, error in zip(images, errors):
        kinds = np.array(error.kinds, dtype=object)
        detected = np.isin(np.arange(len(image.gt_boxes)), error.matched)
        rows = (
            image.scores,
            image.classes,
            error.matched >= 0,
            kinds,
            np.where(error.targets >= 0, error.targets + start, -1),
            np.append(image.gt_classes, -1)[error.targets],
            np.append(detected, False)[error.targets],
        )
        keep = kinds != "ignored"
        parts.append([row[keep] for row in rows])
        start += len(image.gt_boxes)
    return _Detections(*(np.concatenate(column) for column in zip(*parts)))


def _without(flat: _Detections, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and correctness after one kind of error (not "missed") is put right."""
    wrong = flat.kinds == kind
    classes, correct, keep = flat.classes.copy(), flat.correct.copy(), ~wrong
    if kind in _REDIRECTED:
        pending = np.flatnonzero(np.isin(flat.kinds, _REDIRECTED) & ~flat.target_detected)
        best_first = pending[np.argsort(-flat.scores[pending], kind="mergesort")]
        _, first = np.unique(flat.targets[best_first], return_index=True)
        best = np.intersect1d(best_first[first], np.flatnonzero(wrong))
        keep[best] = correct[best] = True
        classes[best] = flat.target_classes[best]
    return flat.scores[keep], classes[keep], correct[keep]


def _mean_ap(
    detections: tuple[np.ndarray, np.ndarray, np.ndarray], objects: dict[int, int]
) -> float:
    """Mean AP of (scores, classes, correctness); objects: their number by class."""
    scores, classes, correct = detections
    values = [
        average_precision(scores[classes == index], correct[classes == index], number)
        for index, number in objects.items()
    ]
    return float(np.mean(values))
