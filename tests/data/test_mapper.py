"""The training mapper keeps crowd boxes, augmented like the image."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode

from mimicdet.data import MimicDatasetMapper


@pytest.fixture()
def record(tmp_path):
    file = str(tmp_path / "image.png")
    cv2.imwrite(file, np.full((60, 100, 3), 7, np.uint8))
    boxes = [([10, 20, 30, 15], 0), ([50, 5, 40, 10], 1), ([90, 40, 30, 40], 1)]
    annotations = [
        {"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": crowd}
        for b, crowd in boxes
    ]
    size = {"height": 60, "width": 100}
    return {"file_name": file, "image_id": 1, "annotations": annotations, **size}


def _mapper(augmentations, is_train=True, cls=MimicDatasetMapper):
    return cls(is_train, augmentations=augmentations, image_format="BGR")


def test_crowd_boxes_are_flipped_scaled_and_clipped(record):
    flip_and_double = [T.RandomFlip(1.0), T.Resize((120, 200))]
    before = copy.deepcopy(record)
    out = _mapper(flip_and_double)(record)
    crowd = out["crowd_boxes"]
    assert isinstance(crowd, Boxes) and crowd.tensor.dtype == torch.float32
    # By hand: x -> 100 - x, then times 2; the last box is clipped to the image.
    expected = torch.tensor([[20.0, 10.0, 100.0, 30.0], [0.0, 80.0, 20.0, 120.0]])
    torch.testing.assert_close(crowd.tensor, expected)
    assert record == before


def test_everything_else_is_as_detectron2s(record):
    ours = _mapper([T.RandomFlip(1.0)])(record)
    theirs = _mapper([T.RandomFlip(1.0)], cls=DatasetMapper)(record)
    assert set(ours) - set(theirs) == {"crowd_boxes"} and set(theirs) <= set(ours)
    assert (ours["image"] == theirs["image"]).all()
    boxes = [x["instances"].gt_boxes.tensor for x in (ours, theirs)]
    assert boxes[0].shape == (1, 4) and (boxes[0] == boxes[1]).all()
    assert (ours["instances"].gt_classes == theirs["instances"].gt_classes).all()


def test_no_crowds_is_an_empty_boxes(record):
    record["annotations"] = record["annotations"][:1]
    out = _mapper([])(record)
    assert out["crowd_boxes"].tensor.shape == (0, 4)
    record["annotations"] = []
    out = _mapper([])(record)
    assert out["crowd_boxes"].tensor.shape == (0, 4) and len(out["instances"]) == 0


def test_crowds_cropped_away_are_dropped(record):
    class CropLeft(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(0, 0, 45, 60)

    out = _mapper([CropLeft()])(record)
    assert out["crowd_boxes"].tensor.shape == (0, 4) and len(out["instances"]) == 1


def test_no_crowd_boxes_at_inference(record):
    assert "crowd_boxes" not in _mapper([], is_train=False)(record)
