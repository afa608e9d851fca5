import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from mimicdet.modeling.proposal_generator.picture import _HIT, _MISS, _TRUTH, draw_proposals

HEIGHT, WIDTH = 60, 80


def make_proposals(boxes, logits):
    instances = Instances((HEIGHT, WIDTH))
    instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.objectness_logits = torch.tensor(logits, dtype=torch.float32)
    return instances


def has_color(picture, color):
    return bool((picture == np.array(color, dtype=np.uint8)).all(axis=-1).any())


def halves(picture):
    return picture[:, :WIDTH], picture[:, WIDTH:]


def test_ground_truth_left_and_proposals_right_of_the_same_image():
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[0], image[1], image[2] = 10, 20, 30  # blue, green, red
    gt = torch.tensor([[5.0, 5.0, 30.0, 30.0]])
    picture = draw_proposals(image, make_proposals([[50, 20, 75, 55]], [0.0]), gt)
    assert picture.shape == (HEIGHT, 2 * WIDTH, 3)
    assert picture.dtype == np.uint8
    left, right = halves(picture)
    assert left[50, 10].tolist() == [30, 20, 10]  # RGB now
    assert has_color(left, _TRUTH) and not has_color(right, _TRUTH)
    assert has_color(right[20:56, 50:76], _MISS) and not has_color(left, _MISS)


def test_hits_are_told_from_misses_by_iou():
    gt = Boxes(torch.tensor([[10.0, 10.0, 40.0, 40.0]]))
    image = torch.zeros(3, HEIGHT, WIDTH)
    near = make_proposals([[10, 10, 40, 38]], [1.0])
    _, right = halves(draw_proposals(image, near, gt))
    assert has_color(right, _HIT) and not has_color(right, _MISS)
    _, right = halves(draw_proposals(image, near, gt, iou_threshold=0.95))
    assert has_color(right, _MISS) and not has_color(right, _HIT)


def test_only_the_best_proposals_are_drawn():
    gt = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    proposals = make_proposals([[50, 20, 75, 55], [10, 10, 40, 40]], [-2.0, 3.0])
    _, right = halves(draw_proposals(torch.zeros(3, HEIGHT, WIDTH), proposals, gt, top=1))
    assert has_color(right, _HIT) and not has_color(right, _MISS)
    _, right = halves(draw_proposals(torch.zeros(3, HEIGHT, WIDTH), proposals, gt, top=2))
    assert has_color(right, _HIT) and has_color(right, _MISS)


def test_no_boxes_at_all_gives_the_bare_image_twice_and_keeps_the_input():
    image = torch.full((3, HEIGHT, WIDTH), 77.0)
    before = image.clone()
    picture = draw_proposals(image, make_proposals([], []), torch.zeros(0, 4))
    assert (picture == 77).all()
    draw_proposals(image, make_proposals([[1, 1, 20, 20]], [0.0]), torch.zeros(0, 4))
    assert torch.equal(image, before)


def test_tensors_of_the_training_graph_are_taken():
    proposals = make_proposals([[1, 1, 20, 20]], [0.0])
    proposals.objectness_logits.requires_grad_()
    boxes = proposals.proposal_boxes.tensor.requires_grad_()
    proposals.proposal_boxes = Boxes(boxes)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    _, right = halves(draw_proposals(image, proposals, torch.zeros(0, 4)))
    assert has_color(right, _MISS)


def test_rgb_input_is_not_swapped():
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[0] = 200
    picture = draw_proposals(image, make_proposals([], []), torch.zeros(0, 4), input_format="RGB")
    assert picture[0, 0].tolist() == [200, 0, 0]


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        draw_proposals(torch.zeros(2, 3, 8, 8), make_proposals([], []), torch.zeros(0, 4))
