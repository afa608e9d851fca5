import json
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from mimicdet.utils.drawing import class_color, place_label
from mimicdet.utils.errors import UserError
from mimicdet.visualization import detection_grid, draw_detections
from mimicdet.visualization.grid import pick_evenly

NAMES = ["cat", "dog", "bird"]
GREY = np.full((100, 120, 3), 128, dtype=np.uint8)


def has_color(picture, color):
    return bool((picture == np.array(color, dtype=np.uint8)).all(axis=-1).any())


@pytest.fixture
def dataset(tmp_path):
    """Five grey images, a dog on the first; the data set's category ids are 10, 20, 30."""
    records = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(GREY).save(path)
        annotation = {
            "bbox": [20, 40, 50, 40],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 1,
            "iscrowd": 0,
        }
        records.append(
            {
                "file_name": str(path),
                "image_id": 100 + index,
                "height": 100,
                "width": 120,
                "annotations": [annotation] if index == 0 else [],
            }
        )
    name = f"grid_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=NAMES, thing_dataset_id_to_contiguous_id={10: 0, 20: 1, 30: 2}
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def result(image_id=100, category_id=30, score=0.9, bbox=(20, 40, 50, 40)):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(bbox),
        "score": score,
    }


def panels(grid, width=200):
    """Cut the detections and the ground truth of the only cell of a one-image grid."""
    left = 18 + 10
    return grid[:, left : left + width], grid[:, left + width + 10 : left + 2 * width + 10]


def draw_one(dataset, detections, **options):
    grid = detection_grid(dataset, detections, num_images=1, panel_width=200, **options)
    # Below title, legend and header, where only the pictures are.
    return [panel[140:] for panel in panels(grid)]


def test_boxes_lie_where_they_should_in_their_class_colour():
    box = [[20, 40, 70, 80]]
    picture = draw_detections(GREY, box, [1], None, NAMES)
    assert picture.shape == GREY.shape
    for x, y in [(20, 60), (70, 60), (60, 80)]:
        assert has_color(picture[y - 2 : y + 3, x - 2 : x + 3], class_color(1)), (x, y)
    assert (picture[60, 45] == 128).all() and (picture[95, 100] == 128).all()
    assert (GREY == 128).all()


def test_boxes_are_scaled_with_the_image():
    picture = draw_detections(GREY, [[20, 40, 70, 80]], [1], None, NAMES, width=240)
    assert picture.shape == (200, 240, 3)
    assert has_color(picture[158:163, 100:130], class_color(1))
    assert (picture[120, 90] == 128).all()


def test_the_best_detection_is_drawn_on_top():
    box = [[20, 40, 70, 80], [20, 40, 70, 80]]
    picture = draw_detections(GREY, box, [0, 1], [0.5, 0.9], NAMES)
    assert has_color(picture[77:84, 60:70], class_color(1))
    assert not has_color(picture[77:84, 60:70], class_color(0))


def test_a_score_changes_the_label_and_a_crowd_the_line():
    box = [[20, 40, 110, 95]]
    plain = draw_detections(GREY, box, [0], None, NAMES)
    scored = draw_detections(GREY, box, [0], [0.5], NAMES)
    crowd = draw_detections(GREY, box, [0], None, NAMES, crowd=[True])
    assert (plain != scored).any()
    bottom = (slice(93, 98), slice(20, 110))
    count = [
        int((p[bottom] == np.array(class_color(0), np.uint8)).all(-1).sum()) for p in (plain, crowd)
    ]
    assert 0 < count[1] < 0.8 * count[0]


def test_no_boxes_leave_the_image_as_it_is():
    assert (draw_detections(GREY, np.zeros((0, 4)), [], [], NAMES) == GREY).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GREY, [[0, 0, 9, 9]], [3], None), "class id 3"),
        ((GREY, [[0, 0, 9, 9]], [0, 1], None), "1 boxes but 2 classes"),
        ((GREY, [[0, 0, 9, 9]], [0], [0.1, 0.2]), "1 boxes but 2 scores"),
        ((GREY[..., 0], [[0, 0, 9, 9]], [0], None), "image must be"),
        ((GREY.astype(np.float32), [[0, 0, 9, 9]], [0], None), "image must be"),
    ],
)
def test_input_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(*arguments, NAMES)


def test_class_colours_differ():
    assert len({class_color(index) for index in range(80)}) == 80


def test_labels_stay_inside_the_picture_and_off_each_other():
    bounds = (0.0, 0.0, 100.0, 100.0)
    first = place_label((50, 2, 99, 40), (60, 14), bounds, [])
    assert first[0] >= 0 and first[1] >= 0 and first[2] <= 100 and first[3] <= 100
    second = place_label((50, 2, 99, 40), (60, 14), bounds, [first])
    assert second[1] >= first[3] or second[3] <= first[1]


def test_images_are_picked_evenly():
    assert pick_evenly(100, 5) == [0, 25, 50, 74, 99]
    assert pick_evenly(3, 8) == [0, 1, 2]
    assert pick_evenly(10, 1) == [0]
    assert pick_evenly(0, 4) == []


def test_detections_are_left_ground_truth_right_and_category_ids_mapped_back(dataset):
    left, right = draw_one(dataset, [result(category_id=30)])
    assert has_color(left, class_color(2)) and not has_color(left, class_color(1))
    assert has_color(right, class_color(1)) and not has_color(right, class_color(2))
    # XYWH (20, 40, 50, 40) of 120 pixels, drawn 200 pixels wide.
    for panel, color in [(left, class_color(2)), (right, class_color(1))]:
        columns = np.flatnonzero((panel[40:] == np.array(color, np.uint8)).all(-1).any(0))
        assert abs(columns[0] - 20 * 200 / 120) < 4 and abs(columns[-1] - 70 * 200 / 120) < 4


def test_the_score_threshold_decides(dataset):
    left, _ = draw_one(dataset, [result(score=0.39)])
    assert not has_color(left, class_color(2))
    left, _ = draw_one(dataset, [result(score=0.39)], score_threshold=0.3)
    assert has_color(left, class_color(2))


def test_a_results_file_and_its_records_give_the_same_png(dataset, tmp_path):
    path = tmp_path / "coco_instances_results.json"
    path.write_text(json.dumps([result(), result(image_id=104)]))
    output = tmp_path / "pictures" / "grid.png"
    grid = detection_grid(dataset, path, output, num_images=4, panel_width=120)
    again = detection_grid(dataset, json.loads(path.read_text()), num_images=4, panel_width=120)
    assert (grid == again).all()
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture) == grid).all()


def test_a_predictor_gets_bgr_images_and_is_drawn(dataset):
    seen = []

    def predictor(image):
        seen.append(image)
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[20.0, 40.0, 70.0, 80.0]]))
        instances.pred_classes = torch.tensor([2])
        instances.scores = torch.tensor([0.9])
        return {"instances": instances}

    path = DatasetCatalog.get(dataset)[0]["file_name"]
    color = np.zeros_like(GREY)
    color[:] = (250, 5, 60)
    Image.fromarray(color).save(path)
    left, _ = draw_one(dataset, predictor)
    assert len(seen) == 1 and seen[0][0, 0].tolist() == [60, 5, 250]
    assert has_color(left, class_color(2))


def test_results_of_other_data_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="image 7"):
        detection_grid(dataset, [result(image_id=7)])
    with pytest.raises(ValueError, match="category id 31"):
        detection_grid(dataset, [result(category_id=31)])
    with pytest.raises(ValueError, match="record 0 has no 'score'"):
        detection_grid(dataset, [{"image_id": 100, "category_id": 10, "bbox": [0, 0, 1, 1]}])
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match="broken.json"):
        detection_grid(dataset, tmp_path / "broken.json")
    with pytest.raises(UserError, match="none.json"):
        detection_grid(dataset, tmp_path / "none.json")


def test_tall_images_are_made_to_fit(dataset):
    path = DatasetCatalog.get(dataset)[0]["file_name"]
    Image.fromarray(np.full((900, 100, 3), 128, np.uint8)).save(path)
    grid = detection_grid(dataset, [], num_images=1, panel_width=200)
    assert grid.shape[0] < 1.25 * 200 + 220
