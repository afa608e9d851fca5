"""COCO's matching and AP in numpy, and TIDE's split on cases worked out by hand."""

import math

import numpy as np
import pytest
from pycocotools.coco import COCO

from mimicdet.evaluation.error_split import KINDS, find_errors, split_errors
from mimicdet.evaluation.matching import (
    ImageBoxes,
    average_precision,
    evaluate,
    images_of,
    match,
)

OBJECT = [0, 0, 100, 100]
FAR = [500, 500, 100, 100]


def shifted(iou, box=OBJECT):
    """A box of the same size, moved right so far that its IoU with `box` is this."""
    overlap = 2 * iou / (1 + iou)
    return [box[0] + (1 - overlap) * box[2], *box[1:]]


def image(truth, found, crowd=None, image_id=1):
    """truth: (box, class) pairs; found: (box, class, score) triples, best first."""
    return ImageBoxes(
        image_id,
        np.array([t[0] for t in truth], float).reshape(-1, 4),
        np.array([t[1] for t in truth], int),
        np.array(crowd or [False] * len(truth), bool),
        np.array([f[0] for f in found], float).reshape(-1, 4),
        np.array([f[1] for f in found], int),
        np.array([f[2] for f in found], float),
    )


# ---------------------------------------------------------------- AP


def test_average_precision_by_hand():
    """Right, wrong, right of two objects: precision 1 up to recall 0.5 and 2/3 up to 1."""
    found = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    assert found == pytest.approx(100 * (51 * 1 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize(
    ("correct", "objects", "expected"),
    [([True], 1, 100.0), ([False], 1, 0.0), ([], 3, 0.0), ([False], 0, 100.0)],
)
def test_limits_of_average_precision(correct, objects, expected):
    scores = np.linspace(1, 0.5, len(correct))
    assert average_precision(scores, np.array(correct, bool), objects) == expected


def random_data(seed, crowds):
    """A COCO ground truth and results that are near it, far from it and of wrong classes."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, 9):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 300, 2), *rng.uniform(20, 120, 2)]
            crowd = int(crowds and rng.random() < 0.2)
            label = int(rng.integers(1, 4)) * 10
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
            )
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.normal(0, 12, 4)
                near[2:] = near[2:].clip(2)
                wrong = rng.random() < 0.25
                results.append(result(image_id, 10 if wrong else label, near, rng.random()))
        far = [*rng.uniform(0, 300, 2), 40.0, 40.0]
        results.append(result(image_id, 20, far, rng.random()))
    return truth_of(annotations), results


def result(image_id, category_id, box, score):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(x) for x in box],
        "score": float(score),
    }


def truth_of(annotations):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 500, "height": 500} for i in range(1, 9)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"name {i}"} for i in (10, 20, 30)],
    }
    coco.createIndex()
    return coco


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ap50_of_the_split_is_that_of_pycocotools(seed, crowds):
    coco, results = random_data(seed, crowds)
    split = split_errors(images_of(coco, results))
    assert split.ap50 == pytest.approx(evaluate(coco, results).summary["AP50"], abs=1e-9)
    assert 5 < split.ap50 < 95 and all(gain >= -1e-9 for gain in split.gains.values())


def test_evaluate_without_detections_and_with_a_class_without_objects():
    coco, results = random_data(0, crowds=False)
    assert evaluate(coco, []).summary["AP"] == 0.0
    coco.dataset["annotations"] = [a for a in coco.dataset["annotations"] if a["category_id"] != 30]
    coco.createIndex()
    found = evaluate(coco, results).per_class
    assert math.isnan(found[2]) and found[1] >= 0


def test_results_of_other_images_are_refused():
    coco, _ = random_data(0, crowds=False)
    with pytest.raises(ValueError, match="result 0 .image 77"):
        images_of(coco, [result(77, 10, OBJECT, 0.5)])


def test_only_the_hundred_best_of_an_image_count():
    coco, _ = random_data(0, crowds=False)
    many = [result(1, 10, FAR, score) for score in np.linspace(0, 1, 120)]
    found = images_of(coco, many)[0].scores
    assert len(found) == 100 and found[0] == 1.0 and found[-1] == pytest.approx(20 / 119)


def test_a_detection_takes_the_free_object_that_it_overlaps_most():
    scene = image(
        [(OBJECT, 0), (shifted(0.7), 0)],
        [(shifted(0.7), 0, 0.9), (shifted(0.9), 0, 0.8), (OBJECT, 0, 0.7), (OBJECT, 1, 0.6)],
    )
    matched, ignored = match(scene, scene.ious(), 0.5)
    assert matched.tolist() == [1, 0, -1, -1] and not ignored.any()


# ---------------------------------------------------------------- kinds of errors


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        (shifted(0.55), 0, "correct"),
        (shifted(0.45), 0, "localisation"),
        (shifted(0.11), 0, "localisation"),
        (shifted(0.09), 0, "background"),
        (FAR, 0, "background"),
        (shifted(0.55), 1, "classification"),
        (shifted(0.45), 1, "both"),
        (shifted(0.09), 1, "background"),
    ],
)
def test_the_kind_of_a_single_detection(box, label, kind):
    found = find_errors(image([(OBJECT, 0)], [(box, label, 0.9)]))
    assert found.kinds == [kind]
    points = kind in ("localisation", "classification")
    assert found.targets.tolist() == [0 if points else -1]
    assert found.missed.tolist() == [kind in ("background", "both")]


def test_a_second_detection_of_an_object_is_a_duplicate():
    found = find_errors(image([(OBJECT, 0)], [(OBJECT, 0, 0.9), (shifted(0.9), 0, 0.8)]))
    assert found.kinds == ["correct", "duplicate"]


def test_localisation_goes_before_classification():
    """IoU 0.2 with an object of its class and 0.6 with one of another: as TIDE has it."""
    truth = [(OBJECT, 0), (shifted(0.2), 1)]
    found = find_errors(image(truth, [(shifted(0.2), 0, 0.9)]))
    assert found.kinds == ["localisation"] and found.targets.tolist() == [0]


def test_crowds_are_no_objects():
    found = find_errors(image([(OBJECT, 0)], [(OBJECT, 0, 0.9), (OBJECT, 1, 0.8)], crowd=[True]))
    assert found.kinds == ["ignored", "background"] and not found.missed.any()


# ---------------------------------------------------------------- what an error costs


def gains_of(truth, found):
    return split_errors([image(truth, found)])


@pytest.mark.parametrize(
    ("found", "kind", "ap50"),
    [
        # One object found as said: putting that right gives 100.
        ([(shifted(0.4), 0, 0.9)], "localisation", 0.0),
        ([(OBJECT, 1, 0.9)], "classification", 0.0),
        # A wrong detection of higher score before the right one: precision 1/2 everywhere.
        ([(FAR, 0, 0.9), (OBJECT, 0, 0.8)], "background", 50.0),
    ],
)
def test_gain_of_the_only_error(found, kind, ap50):
    split = gains_of([(OBJECT, 0)], found)
    assert split.ap50 == pytest.approx(ap50)
    assert split.gains == pytest.approx({k: 100.0 - ap50 if k == kind else 0.0 for k in KINDS})
    assert split.counts == {k: int(k == kind) for k in KINDS}


def test_gain_of_duplicates_and_of_missed_objects():
    """
    Two objects, one found twice: recall 0.5 at precision 1 is 51 of 101 points; the duplicate
    comes after it and costs nothing. Without the missed object the first detection is all: 100.
    """
    truth = [(OBJECT, 0), (FAR, 0)]
    split = gains_of(truth, [(OBJECT, 0, 0.9), (OBJECT, 0, 0.8)])
    assert split.ap50 == pytest.approx(100 * 51 / 101)
    assert split.counts["duplicate"] == 1 and split.counts["missed"] == 1
    assert split.gains["duplicate"] == pytest.approx(0)
    assert split.gains["missed"] == pytest.approx(100 - split.ap50)
    # Before the second object is found the duplicate costs: precision 2/3 in its second half.
    split = gains_of(truth, [(OBJECT, 0, 0.9), (OBJECT, 0, 0.8), (FAR, 0, 0.7)])
    assert split.gains["duplicate"] == pytest.approx(100 * 50 / 3 / 101)


def test_both_is_removed_and_costs_in_the_class_that_was_said():
    truth = [(OBJECT, 0), (FAR, 1)]
    split = gains_of(truth, [(shifted(0.3), 1, 0.9), (FAR, 1, 0.8), (OBJECT, 0, 0.7)])
    assert split.ap50 == pytest.approx(75)  # class 0: 100, class 1: precision 1/2
    assert split.gains["both"] == pytest.approx(25)


def test_of_several_errors_that_point_to_one_object_only_the_best_is_put_right():
    """
    Two poor boxes of one object: as one correct detection AP is 100; as two, the second would be a
    further hit. A poor box of an object that is found is removed, not counted twice.
    """
    poor = [(shifted(0.4), 0, 0.9), (shifted(0.3), 0, 0.8)]
    assert gains_of([(OBJECT, 0), (FAR, 0)], poor).gains["localisation"] == pytest.approx(
        100 * 51 / 101
    )
    split = gains_of([(OBJECT, 0)], [(shifted(0.4), 0, 0.9), (OBJECT, 0, 0.8)])
    assert split.ap50 == pytest.approx(50) and split.gains["localisation"] == pytest.approx(50)
    found = [(OBJECT, 0, 0.9), (shifted(0.4), 0, 0.8)]
    assert gains_of([(OBJECT, 0), (FAR, 0)], found).gains["localisation"] == pytest.approx(0)


def test_the_better_kind_of_error_has_the_object():
    """A wrong class at 0.9 and a poor box at 0.8 of one object: only the first is put right."""
    split = gains_of([(OBJECT, 0)], [(OBJECT, 1, 0.9), (shifted(0.4), 0, 0.8)])
    assert split.gains["classification"] == pytest.approx(100)
    assert split.gains["localisation"] == pytest.approx(0)


def test_a_ground_truth_without_objects_has_no_split():
    with pytest.raises(ValueError, match="no object"):
        split_errors([image([], [(OBJECT, 0, 0.9)])])
