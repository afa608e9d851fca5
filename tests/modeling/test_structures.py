"""The records' own functions (structures.py)."""

import torch

from mimicdet.modeling.structures import HeadPredictions, LabelledBoxes, image_indices


def test_select_takes_the_same_boxes_of_every_field():
    fields = [torch.arange(5.0)[:, None] + 10 * i for i in range(4)]
    chosen = HeadPredictions(*fields).select(torch.tensor([3, 0, 3]))
    for i, field in enumerate(vars(chosen).values()):
        assert field.squeeze(1).tolist() == [10 * i + 3, 10 * i, 10 * i + 3]


def test_foreground_is_neither_background_nor_ignored():
    classes = torch.tensor([0, 4, 5, -1])
    boxes = LabelledBoxes(torch.zeros(4, 4), torch.zeros(4, 4), classes)
    assert boxes.foreground(5).tolist() == [True, True, False, False]
    assert boxes.select(boxes.foreground(5)).gt_classes.tolist() == [0, 4]


def test_image_indices_numbers_the_images():
    assert image_indices([2, 0, 3], torch.device("cpu")).tolist() == [0, 0, 2, 2, 2]
    assert image_indices([0], torch.device("cpu")).tolist() == []
