"""Labels, samples and detection losses of the heads against plain Python."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances

from mimicdet.modeling.heads.labels import BoxSampling
from mimicdet.modeling.heads.teacher_head import MimicTeacherHeads
from mimicdet.modeling.losses import regression_loss
from mimicdet.modeling.structures import HeadPredictions, LabelledBoxes
from tests.helpers import instances

SIZE = (100, 100)
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def proposals_of(boxes):
    result = Instances(SIZE)
    result.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.locations = torch.arange(len(boxes))
    return result


def label(boxes, targets, thresholds=(0.6,), labels=(0, 1)):
    matcher = Matcher(list(thresholds), list(labels), allow_low_quality_matches=False)
    return BoxSampling(matcher, 5, 128, 0.25).label([proposals_of(boxes)], [targets])[0]


GT = instances(SIZE, [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 70.0]], [3, 1])


def test_labels_of_hand_made_boxes():
    boxes = [
        [0.0, 0.0, 10.0, 10.0],  # the first object
        [0.0, 0.0, 10.0, 6.0],  # IoU 0.6 exactly
        [0.0, 0.0, 10.0, 5.9],  # IoU 0.59
        [50.0, 50.0, 70.0, 72.0],  # the second, IoU 0.909
        [80.0, 0.0, 90.0, 10.0],
    ]
    result = label(boxes, GT)
    assert result.gt_classes.tolist() == [3, 3, 5, 1, 5]
    assert torch.equal(result.gt_boxes.tensor[[0, 1, 3]], GT.gt_boxes.tensor[[0, 0, 1]])
    assert result.locations.tolist() == [0, 1, 2, 3, 4]  # the other fields stay


def test_ignored_band():
    boxes = [[0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 3.0]]
    result = label(boxes, GT, thresholds=(0.4, 0.6), labels=(0, -1, 1))
    assert result.gt_classes.tolist() == [3, -1, 5]


def test_low_quality_matches_are_not_kept():
    assert label([[0.0, 0.0, 10.0, 4.0]], GT).gt_classes.tolist() == [5]


def test_a_box_without_area_makes_no_positive():
    empty = instances(SIZE, [[5.0, 5.0, 5.0, 5.0], [0.0, 5.0, 10.0, 5.0]], [3, 1])
    assert label([[0.0, 0.0, 10.0, 10.0]], empty, thresholds=(1e-6,)).gt_classes.tolist() == [5]


def test_no_objects_and_no_boxes():
    nothing = instances(SIZE, [], [])
    result = label([[0.0, 0.0, 10.0, 4.0]], nothing)
    assert result.gt_classes.tolist() == [5] and result.gt_boxes.tensor.shape == (1, 4)
    for targets in (GT, nothing):
        result = label([], targets)
        assert len(result) == 0 and result.gt_boxes.tensor.shape == (0, 4)


def test_targets_are_not_written_to():
    label([[80.0, 0.0, 90.0, 10.0], [0.0, 0.0, 10.0, 10.0]], GT)
    assert GT.gt_classes.tolist() == [3, 1]


def test_images_are_put_one_after_another():
    first, second = label([[0.0, 0.0, 10.0, 10.0]], GT), label([[80.0, 0.0, 90.0, 9.0]] * 2, GT)
    boxes = LabelledBoxes.of([first, second])
    assert boxes.gt_classes.tolist() == [3, 5, 5]
    assert boxes.boxes[:, 0].tolist() == [0, 80, 80]
    assert boxes.foreground(5).tolist() == [True, False, False]


def plain_deltas(box, target):
    w, h = box[2] - box[0], box[3] - box[1]
    tw, th = target[2] - target[0], target[3] - target[1]
    return [
        10 * ((target[0] + target[2]) - (box[0] + box[2])) / 2 / w,
        10 * ((target[1] + target[3]) - (box[1] + box[3])) / 2 / h,
        5 * math.log(tw / w),
        5 * math.log(th / h),
    ]


def test_regression_loss_is_l1_to_the_objects():
    boxes = [[0.0, 0.0, 10.0, 8.0], [48.0, 52.0, 71.0, 70.0]]
    targets = GT.gt_boxes.tensor.tolist()
    pred = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    records = LabelledBoxes(torch.tensor(boxes), torch.tensor(targets), torch.tensor([3, 1]))
    total = sum(
        abs(p - t)
        for row, box, target in zip(pred.tolist(), boxes, targets)
        for p, t in zip(row, plain_deltas(box, target))
    )
    loss = regression_loss(pred, records, TRANSFORM, 7)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


def teacher_losses(predictions, proposals):
    settings = SimpleNamespace(box2box_transform=TRANSFORM, loss_weights=(1.0, 1.0))
    heads = SimpleNamespace(settings=settings, num_classes=5)
    return MimicTeacherHeads.losses(heads, predictions, [proposals]).values()


def test_teacher_losses_divide_by_all_sampled_boxes():
    boxes = label([[0.0, 0.0, 10.0, 8.0], [80.0, 0.0, 90.0, 9.0], [50.0, 50.0, 70.0, 69.0]], GT)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, generator=generator)
    deltas = torch.randn(3, 4, generator=generator).requires_grad_()
    predictions = HeadPredictions(logits, deltas, logits, logits)
    cls_loss, loc_loss = teacher_losses(predictions, boxes)
    expected = -sum(
        row[c] - math.log(sum(math.exp(v) for v in row))
        for row, c in zip(logits.tolist(), [3, 5, 1])
    )
    assert cls_loss.item() == pytest.approx(expected / 3, rel=1e-5)
    total = 0.0
    for i, target in ((0, 0), (2, 1)):
        gt = plain_deltas(
            boxes.proposal_boxes.tensor[i].tolist(), GT.gt_boxes.tensor[target].tolist()
        )
        total += sum(abs(p - t) for p, t in zip(deltas[i].tolist(), gt))
    assert loc_loss.item() == pytest.approx(total / 3, rel=1e-5)
    loc_loss.backward()
    assert deltas.grad[1].abs().sum() == 0 and (deltas.grad[[0, 2]] != 0).all()


def test_losses_of_no_boxes_are_zeros_in_the_graph():
    logits = torch.ones(3, 6, requires_grad=True)
    deltas = torch.ones(3, 4, requires_grad=True)
    predictions = HeadPredictions(logits[:0], deltas[:0], logits[:0], logits[:0])
    cls_loss, loc_loss = teacher_losses(predictions, label([[0.0, 0.0, 9.0, 9.0]], GT)[:0])
    (cls_loss + loc_loss).backward()
    assert cls_loss.item() == loc_loss.item() == 0
    assert logits.grad.abs().sum() == 0 and deltas.grad.abs().sum() == 0
