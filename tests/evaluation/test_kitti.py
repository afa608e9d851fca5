"""KITTI's 2D AP against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from mimicdet.data.datasets.kitti import KittiObject
from mimicdet.engine import MimicTrainer
from mimicdet.evaluation.kitti import (
    DIFFICULTIES,
    Detections,
    average_precision,
    recall_thresholds,
)

EASY, MODERATE, HARD = DIFFICULTIES


def thing(x: float, height: float = 50, kind: str = "Car", truncated=0.0, occluded=0):
    """An object of width 50 at x."""
    return KittiObject(kind, truncated, occluded, (x, 0.0, x + 50, height))


def found(*rows: tuple[float, float], height: float = 50) -> Detections:
    """Detections of width 50; rows: x, score."""
    boxes = [[x, 0.0, x + 50, height] for x, _ in rows]
    return Detections(
        np.array(boxes, dtype=float).reshape(-1, 4), np.array([s for _, s in rows], dtype=float)
    )


def ap(objects, detections, kind="Car", difficulty=EASY):
    return average_precision([objects], [detections], kind, difficulty)


def test_one_object_found():
    assert ap([thing(0)], found((0, 0.9))) == (pytest.approx(100 / 11), pytest.approx(0.0))


def many(count: int) -> tuple[list[KittiObject], list[tuple[float, float]]]:
    xs = [100.0 * i for i in range(count)]
    return [thing(x) for x in xs], [(x, 1 - i / count) for i, x in enumerate(xs)]


def test_all_of_many_objects_found():
    # 41 thresholds need 40 objects or more; then recall is sampled up to 1.
    objects, rows = many(80)
    assert ap(objects, found(*rows)) == pytest.approx((100.0, 100.0))


def test_half_of_many_objects_found():
    # Recall reaches 20/40: 21 of 41 samples, of which 6 of the 11 and 20 of the 40.
    objects, rows = many(80)
    elevens, forties = ap(objects, found(*rows[:40]))
    assert elevens == pytest.approx(100 * 6 / 11) and forties == pytest.approx(100 * 20 / 40)


def test_false_positive_of_highest_score():
    # 80 objects, one wrong detection before all: precision at n objects is n / (n + 1), made
    # monotone from behind: 80 / 81 everywhere.
    objects, rows = many(80)
    value = ap(objects, found(*rows, (9000.0, 2.0)))
    assert value == pytest.approx((100 * 80 / 81, 100 * 80 / 81))


def test_second_detection_of_an_object_is_wrong():
    objects, rows = many(80)
    value = ap(objects, found(*rows, (0.0, 2.0)))[1]
    assert value == pytest.approx(100 * 80 / 81)


def test_thresholds_by_hand():
    # Two objects: recall 1/2 at 0.9, 1 at 0.5; neither is passed over for a nearer one.
    assert recall_thresholds([0.5, 0.9], 2) == [0.9, 0.5]
    # 80 scores: recall i/80; every second one is nearest to a fortieth.
    scores = [1 - i / 80 for i in range(80)]
    thresholds = recall_thresholds(scores, 80)
    assert len(thresholds) == 41
    assert thresholds[0] == scores[0] and thresholds[1] == scores[1] and thresholds[2] == scores[3]
    assert thresholds[-1] == scores[-1]


@pytest.mark.parametrize("kind, limit", [("Car", 8.8), ("Pedestrian", 16.6), ("Cyclist", 16.6)])
def test_least_overlap(kind, limit):
    # Boxes 50 wide shifted by d: IoU (50 - d) / (50 + d); 0.7 is d = 8.82, 0.5 is d = 16.67.
    objects = [thing(0, kind=kind)]
    assert ap(objects, found((limit, 0.9)), kind)[0] == pytest.approx(100 / 11)
    assert ap(objects, found((limit + 0.1, 0.9)), kind)[0] == 0


@pytest.mark.parametrize(
    "properties, hardest_missing",
    [
        ({}, 0),
        ({"height": 39.0}, 1),
        ({"occluded": 1}, 1),
        ({"truncated": 0.2}, 1),
        ({"occluded": 2}, 2),
        ({"truncated": 0.4}, 2),
        ({"height": 24.0}, 3),
        ({"occluded": 3}, 3),
        ({"truncated": 0.6}, 3),
    ],
)
def test_what_each_difficulty_asks_for(properties, hardest_missing):
    objects, nothing = [thing(0, **properties)], found()
    for index, difficulty in enumerate(DIFFICULTIES):
        value = ap(objects, nothing, difficulty=difficulty)[0]
        if index < hardest_missing:
            assert math.isnan(value)  # nothing to be found
        else:
            assert value == 0


@pytest.mark.parametrize(
    "other",
    [thing(500, occluded=3), thing(500, kind="Van"), thing(500, kind="DontCare")],
)
def test_detections_of_what_is_ignored_are_not_wrong(other):
    objects, rows = many(3)
    wrong = [*rows, (500.0, 2.0)]
    clean = ap(objects, found(*rows))
    assert ap([*objects, other], found(*wrong)) == clean
    assert ap(objects, found(*wrong)) < clean


def test_another_class_and_a_region_that_barely_touches_are_wrong():
    objects, rows = many(3)
    wrong, clean = [*rows, (500.0, 2.0)], ap(objects, found(*rows))
    assert ap([*objects, thing(500, kind="Truck")], found(*wrong)) < clean
    # A region's overlap counts in the detection's area: 35 of 50 is 0.7 and not above it.
    assert ap([*objects, thing(515, kind="DontCare")], found(*wrong)) < clean
    assert ap([*objects, thing(514, kind="DontCare")], found(*wrong)) == clean
    # Person_sitting is a neighbour of Pedestrian, not of Car.
    assert ap([*objects, thing(500, kind="Person_sitting")], found(*wrong)) < clean


def test_too_small_detections_are_not_counted():
    objects, rows = many(3)
    small = found((500, 2.0), height=39.0)
    both = found(*rows)
    joined = Detections(
        np.concatenate([both.boxes, small.boxes]), np.concatenate([both.scores, small.scores])
    )
    assert ap(objects, joined) == ap(objects, both)
    assert ap(objects, joined, difficulty=MODERATE) < ap(objects, both, difficulty=MODERATE)


def test_a_detection_that_counts_goes_before_one_that_is_too_small():
    # Two objects, thresholds 0.9 and 0.5. At 0.5 the first object has two detections; the small
    # one, though listed first, leaves it to the other: precision 1 at the second of 41 samples.
    objects = [thing(0), thing(100)]
    small, others = found((0, 0.8), height=39.5), found((0, 0.9), (100, 0.5))
    joined = Detections(
        np.concatenate([small.boxes, others.boxes]), np.concatenate([small.scores, others.scores])
    )
    assert ap(objects, joined)[1] == pytest.approx(100 / 40)


def test_images_are_pooled():
    objects, rows = many(80)
    halves = [objects[:40], objects[40:]], [found(*rows[:40]), found(*rows[40:])]
    assert average_precision(*halves, "Car", EASY) == ap(objects, found(*rows))


def test_evaluator_means_the_nine_values(tmp_path, clean_catalogs):
    line = "{} 0 0 0 {} 0 {} 50 1 1 1 1 1 1 0"
    rows = [
        line.format(kind, x, x + 50)
        for kind, x in (("Car", 0), ("Pedestrian", 100), ("Cyclist", 200))
    ]
    (tmp_path / "000007.txt").write_text("\n".join(rows))
    name = f"kitti:{tmp_path}:images"
    MetadataCatalog.get(name).set(label_dir=str(tmp_path))
    MetadataCatalog.get(name).set(evaluator_type="kitti")
    evaluator = MimicTrainer.build_evaluator(get_cfg(), name)
    evaluator.reset()
    instances = Instances((100, 300))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 50, 50], [100.0, 0, 150, 50]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    evaluator.process([{"image_id": "000007"}], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    one = 100 / 11
    assert results["AP-Car-hard"] == results["AP-Pedestrian-easy"] == pytest.approx(one)
    assert results["AP-Cyclist-easy"] == 0
    assert results["AP"] == pytest.approx(one * 2 / 3) and results["AP40"] == 0
    MetadataCatalog.remove(name)
