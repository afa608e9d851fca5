"""The lightweight detector: labels, losses by hand, training, inference."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from mimicdet import model_zoo

CONFIG = "shuffledet_0.25x_kitti"


def small_model(*opts: object) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = model_zoo.get_config(CONFIG)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return build_model(cfg).train()


def instances(boxes: list[list[float]], classes: list[int]) -> Instances:
    result = Instances((96, 160))
    result.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return result


OBJECTS = instances([[8.0, 24.0, 48.0, 64.0], [64.0, 3.0, 154.0, 93.0]], [0, 2])


def picture(seed: int = 0) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    image = 100 + 10 * torch.randn(3, 96, 160, generator=generator)
    image[:, 24:64, 8:48], image[:, 3:93, 64:154] = 20.0, 230.0
    return {"image": image, "instances": OBJECTS}


def anchors_of(model: torch.nn.Module) -> list[Boxes]:
    return model.anchor_generator([torch.zeros(1, 192, 6, 10)])


def test_labels_follow_iou_thresholds():
    model = small_model()
    anchors = anchors_of(model)
    assert len(anchors[0]) == 6 * 10 * 9
    ious = box_iou(OBJECTS.gt_boxes.tensor, anchors[0].tensor)
    (matched,) = model.match_anchors(anchors, [OBJECTS])
    (labels,), (boxes,) = model.label_anchors(anchors, [OBJECTS])
    best = ious.max(dim=0).values
    assert (matched[best >= 0.6] >= 0).all() and (matched >= 0).any()
    assert set(matched.tolist()) == {-2, -1, 0, 1}
    # Each object has at least its best anchor.
    for index, label in enumerate((0, 2)):
        assert matched[ious[index].argmax()] == index
        assert (labels[matched == index] == label).all()
        assert (boxes[matched == index] == OBJECTS.gt_boxes.tensor[index]).all()
    assert (labels[matched == -1] == 3).all() and (labels[matched == -2] == -1).all()
    assert (best[matched == -1] < 0.4).all()


def test_a_box_without_area_has_no_positives():
    model = small_model()
    anchors = anchors_of(model)
    x, y = Boxes.cat(anchors).get_centers()[100].tolist()
    for more, classes in (([], []), (OBJECTS.gt_boxes.tensor.tolist(), [0, 2])):
        objects = instances([[x, y, x, y], *more], [1, *classes])
        (matched,) = model.match_anchors(anchors, [objects])
        (alone,) = model.match_anchors(anchors, [instances(more, classes)])
        assert torch.equal(matched, torch.where(alone >= 0, alone + 1, alone))
        with EventStorage():
            losses = model([{**picture(), "instances": objects}])
        assert all(math.isfinite(loss) for loss in losses.values())


def test_image_without_objects_is_all_background():
    model = small_model()
    empty = instances([], [])
    (labels,), _ = model.label_anchors(anchors_of(model), [empty])
    assert (labels == 3).all()
    with EventStorage():
        losses = model([{**picture(), "instances": empty}])
    assert losses["loss_box_reg"].item() == 0 and losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_losses_by_hand():
    model = small_model("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4, "MODEL.RPN.POSITIVE_FRACTION", 0.5)
    anchors = anchors_of(model)
    labels, boxes = model.label_anchors(anchors, [OBJECTS])
    count = len(anchors[0])
    # Equal logits: ln 4 an anchor. Deltas off by 0.25 in each of 4 values of 2 positives; weight 5.
    deltas = model.box2box_transform.get_deltas(anchors[0].tensor, boxes[0])[None] + 0.25
    losses = model.losses(anchors, [torch.zeros(1, count, 4)], labels, [deltas], boxes)
    assert losses["loss_cls"].item() == pytest.approx(math.log(4))
    assert losses["loss_box_reg"].item() == pytest.approx(5 * 2 * 4 * 0.25 / 4, abs=1e-4)


def test_every_parameter_learns_and_the_loss_falls():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for step in range(15):
        with EventStorage():
            losses = model([picture(2 * step), picture(2 * step + 1)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        optimizer.step()
        history.append({key: value.item() for key, value in losses.items()})
    assert sum(history[-1].values()) < 0.2 * sum(history[0].values())


def test_exact_predictions_are_detected():
    model = small_model().eval()
    anchors = anchors_of(model)
    (labels,), (boxes,) = model.label_anchors(anchors, [OBJECTS])
    positive = (labels >= 0) & (labels < 3)
    scores = torch.zeros(len(labels), 3)
    scores[positive, labels[positive]] = 0.9
    deltas = torch.zeros(len(labels), 4)
    deltas[positive] = model.box2box_transform.get_deltas(
        anchors[0].tensor[positive], boxes[positive]
    )
    actual = model.inference_single_image(anchors, [scores], [deltas], (96, 160))
    order = actual.pred_classes.argsort()
    assert actual.pred_classes[order].tolist() == [0, 2]
    torch.testing.assert_close(actual.pred_boxes.tensor[order], OBJECTS.gt_boxes.tensor)


def test_scores_are_probabilities_of_the_original_image():
    model = small_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    with torch.no_grad():
        actual = model([{"image": torch.zeros(3, 90, 120), "height": 180, "width": 240}])
    actual = actual[0]["instances"]
    assert actual.image_size == (180, 240) and 0 < len(actual) <= 100
    # Nothing is learnt: four equal classes, of which the background is not detected.
    assert actual.scores.max().item() == pytest.approx(0.25, abs=0.2)
    assert set(actual.pred_classes.tolist()) <= {0, 1, 2}
