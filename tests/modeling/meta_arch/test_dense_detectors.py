"""ATSS, GFL and FCOS as whole models: size, labels, losses, training, inference."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from mimicdet import model_zoo
from mimicdet.config import load_config

CONFIGS = Path(model_zoo.get_config_file("gfl_R_50_FPN_1x")).parents[1]
ARCHITECTURES = ("ATSS", "GFL", "FCOS")
ADAPTIVE = ("ATSS", "GFL")


def small_cfg(architecture: str, *opts: object) -> CfgNode:
    small = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN"]
    small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0]
    small += ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 1]
    small += ["MODEL.RETINANET.NUM_CLASSES", 3, *opts]
    return load_config(str(CONFIGS / f"Base-{architecture}.yaml"), small)


def small_model(architecture: str, *opts: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(small_cfg(architecture, *opts)).train()


def instances(boxes: list[list[float]], classes: list[int], size=(96, 128)) -> Instances:
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def two_objects(seed: int = 0) -> dict[str, object]:
    """An image of noise with a dark and a bright square, the objects."""
    generator = torch.Generator().manual_seed(seed)
    image = 100 + 10 * torch.randn(3, 96, 128, generator=generator)
    image[:, 8:56, 8:56], image[:, 30:90, 60:124] = 20.0, 230.0
    return {"image": image, "instances": instances([[8, 8, 56, 56.0], [60, 30, 124, 90]], [0, 2])}


def no_object() -> dict[str, object]:
    return {"image": torch.full((3, 96, 128), 100.0), "instances": instances([], [])}


def losses_of(model: torch.nn.Module, inputs: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model(inputs)


# Millions of trainable parameters with 80 classes that MMDetection states for its R-50 FPN models
# (the stem and res2 are frozen; FCOS on caffe's ResNet, whose batch norms are not trained).
@pytest.mark.parametrize(
    "name, norm, published",
    [
        ("retinanet", "BN", 37.74),
        ("fcos", "FrozenBN", 32.02),
        ("atss", "BN", 32.07),
        ("gfl", "BN", 32.22),
    ],
)
def test_as_many_parameters_as_the_published_models(name, norm, published):
    cfg = model_zoo.get_config(f"{name}_R_50_FPN_1x")
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.DEVICE = norm, "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    count = sum(x.numel() for x in model.parameters() if x.requires_grad)
    assert round(count / 1e6, 2) == published


def test_gfl_parameters_by_hand():
    cfg = model_zoo.get_config("gfl_R_50_FPN_1x")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        head = build_model(cfg).head
    conv = 256 * 256 * 9
    towers = 2 * 4 * (conv + 2 * 256)  # a group norm in place of each bias
    outputs = (256 * 9 + 1) * (80 + 4 * 17)
    assert sum(x.numel() for x in head.parameters()) == towers + outputs + 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learns_two_objects_by_heart(architecture):
    """Every parameter gets a gradient; after a few steps the objects are the best detections."""
    model = small_model(architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(25):
        losses = losses_of(model, [two_objects(seed=step)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        optimizer.step()
    with torch.no_grad():
        actual = model.eval()([two_objects(seed=99)])[0]["instances"]
    gt = two_objects()["instances"]
    for box, gt_class in zip(gt.gt_boxes.tensor, gt.gt_classes):
        of_class = actual[actual.pred_classes == gt_class]
        best = of_class.pred_boxes.tensor[of_class.scores.argmax()]
        assert box_iou(best[None], box[None]).item() > 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_without_objects_keeps_the_graph(architecture):
    model = small_model(architecture)
    losses = losses_of(model, [no_object()])
    assert {k for k, v in losses.items() if v.item() != 0} == {next(iter(losses))}
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_gives_the_same_losses(architecture):
    model = small_model(architecture).eval()
    model.training = True  # a forward with losses; batch norms as they are
    model.loss_normalizer = 300  # FCOS's divisor is a running mean
    full = losses_of(model, [two_objects()])
    model.loss_normalizer = 300
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses_of(model, [two_objects()])
    for key, value in full.items():
        assert half[key].item() == pytest.approx(value.item(), rel=0.1), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_match_anchors_names_the_objects_of_label_anchors(architecture):
    model = small_model(architecture)
    gt = [two_objects()["instances"], no_object()["instances"]]
    anchors = model.anchor_generator(list(model.backbone(torch.zeros(2, 3, 96, 128)).values()))
    matched = model.match_anchors(anchors, gt)
    labels, boxes = model.label_anchors(anchors, gt)
    assert len(matched[0]) == sum(len(x) for x in anchors)
    assert set(matched[0].tolist()) == {-1, 0, 1} and set(matched[1].tolist()) == {-1}
    assert (labels[1] == 3).all()
    for index, (box, label) in enumerate(zip(gt[0].gt_boxes, gt[0].gt_classes)):
        positive = matched[0] == index
        assert (boxes[0][positive] == box).all() and (labels[0][positive] == label).all()
        x, y = Boxes.cat(anchors).get_centers()[positive].T
        assert ((box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])).all()
    assert (labels[0][matched[0] < 0] == 3).all()


def exact_deltas(model: torch.nn.Module, anchors: torch.Tensor, boxes: torch.Tensor):
    """Box values with which the anchors predict the boxes, as nearly as the detector can."""
    deltas = model.box2box_transform.get_deltas(anchors, boxes)
    if not hasattr(model.box2box_transform, "reg_max"):
        return deltas
    bins = torch.arange(model.output_dims[1] // 4)
    # A distribution over the two bins around the distance has the distance as its mean.
    weights = (1 - (deltas[..., None] - bins).abs()).clamp(min=1e-12)
    return weights.log().flatten(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_predictions_lose_nothing_and_are_detected(architecture):
    model = small_model(architecture).eval()
    gt = two_objects()["instances"]
    features = list(model.backbone(torch.zeros(1, 3, 96, 128)).values())
    anchors = model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, [gt])
    # One-hot with the background as a fourth class, which is dropped.
    logits = 40.0 * torch.nn.functional.one_hot(labels[0], 4)[:, :3] - 20.0
    boxes_or_any = torch.where((labels[0] < 3)[:, None], boxes[0], gt.gt_boxes.tensor[0])
    deltas = exact_deltas(model, Boxes.cat(anchors).tensor, boxes_or_any)
    counts = [len(x) for x in anchors]
    predictions = [[x[None] for x in y.split(counts)] for y in (logits, deltas)]
    centerness = [torch.full((1, count, 1), 20.0) for count in counts]
    extra = [] if architecture == "GFL" else [centerness]
    with EventStorage():
        losses = model.losses(anchors, predictions[0], labels, predictions[1], boxes, *extra)
    loss_cls, loss_box = list(losses.values())[:2]
    assert loss_cls.item() < 1e-3 and loss_box.item() < 1e-3
    scores = [x[0].sigmoid() for x in predictions[0]]
    actual = model.inference_single_image(
        anchors, scores, [x[0] for x in predictions[1]], (96, 128)
    )
    # NMS leaves one detection an object.
    order = actual.pred_classes.argsort()
    assert actual.pred_classes[order].tolist() == [0, 2]
    torch.testing.assert_close(
        actual.pred_boxes.tensor[order], gt.gt_boxes.tensor, atol=0.05, rtol=0
    )


@pytest.mark.parametrize("architecture", ADAPTIVE)
def test_losses_are_divided_by_the_mean_of_all_processes(architecture, monkeypatch):
    model = small_model(architecture)
    inputs = [two_objects()]
    alone = losses_of(model, inputs)
    # Another process with three times the positives and weights: the mean is twice as large.
    monkeypatch.setattr(sys.modules[type(model).__module__], "process_mean", lambda x: 2 * x)
    shared = losses_of(model, inputs)
    torch.testing.assert_close(alone["loss_cls"], 2 * shared["loss_cls"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inference_in_the_size_of_the_original_image(architecture):
    model = small_model(architecture, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0).eval()
    image = {"image": torch.zeros(3, 75, 101), "height": 150, "width": 202}
    with torch.no_grad():
        (output,) = model([image])
    actual = output["instances"]
    assert actual.image_size == (150, 202) and 0 < len(actual) <= 100
    assert actual.pred_boxes.tensor.min() >= 0 and actual.pred_boxes.tensor[:, 2].max() <= 202
    assert ((actual.scores >= 0) & (actual.scores <= 1)).all()
    strict = small_model(architecture, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.9).eval()
    with torch.no_grad():
        assert len(strict([image])[0]["instances"]) == 0


@pytest.mark.parametrize("architecture", ADAPTIVE)
def test_more_anchors_than_one_are_refused(architecture):
    with pytest.raises(ValueError, match="MODEL.ANCHOR_GENERATOR.*one anchor"):
        small_model(architecture, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]])


def test_gfl_needs_anchors_alike_in_strides():
    sizes = [[64], [64], [256], [512], [1024]]
    with pytest.raises(ValueError, match=r"MODEL.ANCHOR_GENERATOR.SIZES.*\[4.0, 8.0\]"):
        small_model("GFL", "MODEL.ANCHOR_GENERATOR.SIZES", sizes)
