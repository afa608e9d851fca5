"""What detectors offer: it is what the detector itself computes, and losses stay its own."""

import copy

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from mimicdet.distillation import DetectorTensors, FrozenTeacher, Locations, build_adapter
from mimicdet.distillation.adapters.dense import RetinaNetAdapter, find_positives
from tests.distillation.tiny_detectors import DENSE, FAMILIES, INPUTS, build_tiny
from tests.helpers import NUM_CLASSES, P3_BOX, instances

SOME = Locations(torch.tensor([0, 0, 1]), torch.tensor([30, 3, 60]))
TOWERS = ("RetinaNet", "FCOS", "ATSS", "GFL")


@pytest.fixture(scope="module", params=FAMILIES)
def step(request):
    """(adapter, losses, tensors) of one step of a student."""
    adapter = build_adapter(build_tiny(request.param), "BGR")
    with EventStorage():
        return adapter, *adapter.forward_training(INPUTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_logs_are_the_models_own(family):
    model = build_tiny(family)
    adapter = build_adapter(copy.deepcopy(model), "BGR")
    actual = []
    for forward in (model, lambda inputs: adapter.forward_training(inputs)[0]):
        torch.manual_seed(1)
        with EventStorage() as storage:
            actual.append((forward(INPUTS), {k: x for k, (x, _) in storage.latest().items()}))
    (losses, logs), (adapted, adapted_logs) = actual
    assert adapted.keys() == losses.keys() and adapted_logs.keys() == logs.keys() != set()
    for key, value in losses.items():
        torch.testing.assert_close(adapted[key], value)
    assert adapted_logs == pytest.approx(logs)


def test_everything_that_is_offered_is_there_and_nothing_else(step):
    adapter, _, tensors = step
    arguments = {
        "class_logits_at": (SOME,),
        "pred_boxes_at": (SOME,),
        "box_head_predictions_at": (getattr(tensors, "box_query", None),)
        if "box_query" in adapter.student_offers
        else (),
        "tower_features": (1,),
    }
    if "cross_predictions" in adapter.student_offers:
        arguments["cross_predictions"] = (tensors.head_predictions,)
    if "tower_features" in adapter.student_offers:
        arguments["cross_head"] = (tensors.tower_features(1),)
    public = {name for name in vars(DetectorTensors) if not name.startswith("_")}
    assert adapter.teacher_offers - {"box_head_predictions_at"} < adapter.student_offers <= public
    for name in public:
        if name in adapter.student_offers:
            value = getattr(tensors, name)
            assert (value(*arguments[name]) if callable(value) else value) is not None
        else:
            with pytest.raises(NotImplementedError, match=f"does not offer {name}"):
                value = getattr(tensors, name)
                value(SOME)


def test_the_layout_describes_the_tensors(step):
    adapter, _, tensors = step
    layout = adapter.layout
    assert layout.num_classes == NUM_CLASSES and layout.name == type(adapter.model).__name__
    shapes = zip(tensors.features, layout.channels, layout.strides, layout.anchors_per_location)
    for level, (x, channels, stride, count) in enumerate(shapes):
        assert x.shape[:2] == (2, channels)
        assert abs(x.shape[3] - 128 / stride) < 1  # 97 pixels are padded to 128
        anchors = tensors.anchors[level]
        assert len(anchors) == x.shape[2] * x.shape[3] * count
        # The first location's anchors are the cell anchors about its centre.
        moved = anchors[:count] - layout.anchor_offset * stride
        torch.testing.assert_close(moved, torch.tensor(layout.cell_anchors[level]))
        assert (layout.map_scores == "joint") == (layout.name == "GFL")
        if layout.map_scores in ("sigmoid", "joint"):
            assert tensors.prediction_maps[level].shape[1] == count * NUM_CLASSES
    boxes = [x["instances"].gt_boxes.tensor for x in INPUTS]
    assert all(torch.equal(a, b) for a, b in zip(tensors.gt_boxes, boxes))


def everything(tensors):
    """Locations of all anchors of both images."""
    count = sum(len(x) for x in tensors.anchors)
    images = torch.arange(2).repeat_interleave(count)
    return Locations(images, torch.arange(count).repeat(2)), count


@pytest.mark.parametrize("family", DENSE)
def test_dense_logits_and_boxes_are_the_heads(family):
    model = build_tiny(family)
    adapter = build_adapter(model, "BGR")
    with EventStorage():
        _, tensors = adapter.forward_training(INPUTS)
    locations, count = everything(tensors)
    classes = NUM_CLASSES + (family == "MultiClassRPN")  # the background
    logits = torch.cat([permute_to_N_HWA_K(x, classes) for x in tensors.predictions[0]], dim=1)
    dims = 4 * 17 if family == "GFL" else 4
    deltas = torch.cat([permute_to_N_HWA_K(x, dims) for x in tensors.predictions[1]], dim=1)
    anchors = Boxes.cat(model.anchor_generator(tensors.features)).tensor
    actual = tensors.class_logits_at(locations).view(2, count, classes)
    assert torch.equal(actual, logits) and actual.requires_grad
    boxes = tensors.pred_boxes_at(locations).view(2, count, 4)
    for n in range(2):
        expected = model.box2box_transform.apply_deltas(deltas[n], anchors)
        torch.testing.assert_close(boxes[n], expected)


@pytest.mark.parametrize("family", DENSE)
def test_boxes_of_all_anchors_are_those_of_each(family):
    with EventStorage():
        _, tensors = build_adapter(build_tiny(family), "BGR").forward_training(INPUTS)
    locations, count = everything(tensors)
    boxes = tensors.pred_boxes
    assert boxes.shape == (2, count, 4) and boxes.requires_grad
    torch.testing.assert_close(boxes.flatten(0, 1), tensors.pred_boxes_at(locations))


def test_edge_logits_are_what_the_boxes_are_the_means_of():
    adapter = build_adapter(build_tiny("GFL"), "BGR")
    with EventStorage():
        _, tensors = adapter.forward_training(INPUTS)
    logits = tensors.edge_logits
    assert (
        logits.shape
        == (*tensors.pred_boxes.shape, adapter.layout.edge_bins)
        == (*logits.shape[:3], 17)
    )
    transform = adapter.model.box2box_transform
    boxes = transform.apply_deltas(logits[1].flatten(1), torch.cat(tensors.anchors))
    torch.testing.assert_close(boxes, tensors.pred_boxes[1])


@pytest.mark.parametrize("last", [0, 1, 2])
@pytest.mark.parametrize("family", TOWERS)
def test_the_rest_of_a_detectors_own_head_gives_its_own_outputs(family, last):
    """Also with a norm that counts its calls (RetinaNet, FCOS) or that is inside (ATSS, GFL)."""
    model = build_tiny(family, RETINANET__NUM_CONVS=2, RETINANET__NORM="BN")
    if family in ("ATSS", "GFL"):
        model.head.box_scales.data = torch.linspace(0.5, 1.5, 5)
    adapter = build_adapter(model, "BGR")
    with EventStorage():
        _, tensors = adapter.forward_training(INPUTS)
    features = tensors.tower_features(last)
    assert features.last_convs == last and len(features.class_maps) == len(tensors.features) == 5
    assert adapter.layout.tower_channels == (16, 16, 16)
    if last == 2:
        assert features.class_maps is features.box_maps is tensors.features
    crossed = tensors.cross_head(features)
    for actual, expected in zip(crossed.predictions, tensors.predictions):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected))
    torch.testing.assert_close(crossed.pred_boxes, tensors.pred_boxes)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("family", TOWERS)
def test_gradients_go_through_a_frozen_head_to_another_detector(family):
    student = build_adapter(build_tiny(family), "BGR")
    teacher = FrozenTeacher(build_adapter(build_tiny(family, seed=5), "BGR"))
    with EventStorage():
        _, tensors = student.forward_training(INPUTS)
    crossed = teacher(INPUTS).cross_head(tensors.tower_features(0))
    sum(x.sum() for x in crossed.prediction_maps).backward(retain_graph=True)
    crossed.pred_boxes.square().sum().backward()
    trained = {
        n for n, p in student.model.named_parameters() if p.grad is not None and p.grad.any()
    }
    towers = {n for n in trained if n.startswith("head.")}
    assert towers and not any(x in n for n in towers for x in ("cls_score", "bbox_pred", "logits"))
    assert any("fpn_output3" in n for n in trained)
    assert not any(p.grad is not None for p in teacher.model.parameters())


def test_a_head_of_its_own_offers_no_towers():
    model = build_tiny("RetinaNet")
    del model.head.cls_subnet
    adapter = build_adapter(model, "BGR")
    assert adapter.layout.tower_channels == () and "cross_head" not in adapter.teacher_offers


@pytest.mark.parametrize("own", [[], ["p2", "p3", "p4", "p5", "p6"]])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_mimicdet_asks_its_s_head_at_the_anchors(role, own):
    """The same numbers as proposals at these locations would get."""
    model = build_tiny("MimicDet", **{"MODEL.MIMICDET.STUDENT.IN_FEATURES": own})
    adapter = build_adapter(model, "BGR")
    if role == "teacher":
        model.eval()
        with torch.no_grad():
            tensors = adapter.forward_teacher(INPUTS)
    else:
        _, tensors = adapter.forward_training(INPUTS)
    images = model.preprocess_image(INPUTS)
    features = model.backbone(images.tensor)
    maps = [features[f] for f in model.proposal_generator.in_features]
    refined = model.proposal_generator.predict(maps)
    rows = [[30, 3], [60]]
    expected = model.student_head(features, refined.delta_maps, [torch.tensor(r) for r in rows])
    torch.testing.assert_close(tensors.class_logits_at(SOME), expected.pred_class_logits)
    boxes = tensors.pred_boxes_at(SOME)
    adjusted = model.proposal_generator.box2box_transform.apply_deltas(
        refined.pred_anchor_deltas[SOME.images, SOME.anchors], refined.anchors[SOME.anchors]
    )
    for row, (height, width) in enumerate([images.image_sizes[n] for n in (0, 0, 1)]):
        limits = torch.tensor([width, height, width, height])
        adjusted[row] = torch.minimum(adjusted[row].clamp(min=0), limits)
    transform = model.student_head.settings.box2box_transform
    torch.testing.assert_close(boxes, transform.apply_deltas(expected.pred_box_deltas, adjusted))
    joined = torch.cat([x.flatten(1) for x in tensors.prediction_maps], dim=1)
    torch.testing.assert_close(joined, refined.pred_objectness_logits)


# ---------------------------------------------------------------- positives


def test_positives_by_hand():
    first = instances(
        (64, 96), [[0, 0, 9, 9], [0, 0, 9, 9], [1, 1, 5, 5], [0, 0, 9, 9]], [0, 2, 2, 2]
    )
    second = instances((64, 96), [[1, 1, 5, 5], [2, 2, 7, 7]], [2, 0])
    labels = [torch.tensor([3, 2, -1, 2, 0, 2]), torch.tensor([3, 2, 3, 3, 3, -1])]
    boxes = [first.gt_boxes.tensor[torch.tensor([0, 1, 2, 2, 0, 3])]]
    boxes += [second.gt_boxes.tensor[torch.tensor([1, 0, 1, 1, 1, 1])], torch.zeros(6, 4)]
    empty = instances((64, 96), [], [])
    actual = find_positives([*labels, torch.full((6,), 3)], boxes, [first, second, empty], 3)
    assert actual.images.tolist() == [0, 0, 0, 0, 1]
    assert actual.anchors.tolist() == [1, 3, 4, 5, 1]
    # Object 3 is object 1 again, of one box and class: the first of them stands for both.
    assert actual.objects.tolist() == [1, 2, 0, 1, 4]
    assert actual.num_objects == 6
    assert actual.gt_classes.tolist() == [2, 2, 0, 2, 2]
    assert actual.gt_boxes[1].tolist() == [1, 1, 5, 5]


@pytest.mark.parametrize("family", DENSE)
def test_positives_are_the_detectors_own(family):
    model = build_tiny(family)
    with EventStorage():
        _, tensors = build_adapter(model, "BGR").forward_training(INPUTS)
    gt = [x["instances"] for x in INPUTS]
    labels, boxes = model.label_anchors(model.anchor_generator(tensors.features), gt)
    actual = tensors.positives
    expected = [
        (n, r) for n in range(2) for r in range(len(labels[n])) if 0 <= labels[n][r] < NUM_CLASSES
    ]
    assert list(zip(actual.images.tolist(), actual.anchors.tolist())) == expected
    assert {n for n, _ in expected} == {0} and set(actual.objects.tolist()) == {0, 1}
    for i, (n, r) in enumerate(expected):
        assert torch.equal(actual.gt_boxes[i], boxes[n][r])
        assert actual.gt_classes[i] == labels[n][r] == gt[0].gt_classes[actual.objects[i]]


def test_positives_of_mimicdet_are_its_refinement_modules():
    model = build_tiny("MimicDet")
    _, tensors = build_adapter(model, "BGR").forward_training(INPUTS[::-1])
    actual = tensors.positives
    assert set(actual.images.tolist()) == {1} and actual.num_objects == 2
    for anchor, box in zip(torch.cat(tensors.anchors)[actual.anchors], actual.gt_boxes):
        centre, middle = (anchor[:2] + anchor[2:]) / 2, (box[:2] + box[2:]) / 2
        assert ((centre - middle).abs() <= 0.15 * (box[2:] - box[:2])).all()
    p3 = actual.anchors[actual.gt_boxes[:, 0] == P3_BOX[0]]
    assert p3.tolist() == [3 * tensors.features[0].shape[-1] + 3]


# ---------------------------------------------------------------- which adapter, and teachers


def test_a_subclass_has_its_bases_adapter():
    class MyRetinaNet(type(build_tiny("RetinaNet"))):
        pass

    model = build_tiny("RetinaNet")
    model.__class__ = MyRetinaNet
    adapter = build_adapter(model, "BGR")
    assert type(adapter) is RetinaNetAdapter and adapter.layout.name == "MyRetinaNet"
    with pytest.raises(ValueError, match="Linear.*no adapter.*FCOS, GFL, GeneralizedRCNN"):
        build_adapter(nn.Linear(1, 1), "BGR")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_is_frozen_and_its_tensors_can_train_a_student(family):
    model = build_tiny(family)
    adapter = build_adapter(model, "BGR")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = FrozenTeacher(adapter)(INPUTS)
    for name in sorted(adapter.teacher_offers - {"cross_head"}):
        value = getattr(tensors, name)
        value = value(SOME) if callable(value) else value
        for x in value if isinstance(value, list) else [value]:
            assert not x.requires_grad
            weight = torch.ones_like(x, requires_grad=True)
            (weight * x).sum().backward()  # an inference tensor could not be kept for this
            assert torch.equal(weight.grad, x)
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        images = model.preprocess_image(INPUTS)
        features = model.backbone(images.tensor)
    torch.testing.assert_close(tensors.features[0], features[_finest(model)])


def _finest(model):
    names = getattr(model, "head_in_features", None) or model.proposal_generator.in_features
    return names[0]


def test_the_other_order_of_channels_is_turned_round():
    model = build_tiny("RetinaNet")
    turned = [{**x, "image": x["image"].flip(0)} for x in INPUTS]
    rgb = FrozenTeacher(build_adapter(model, "RGB"), student_format="BGR")
    same = FrozenTeacher(build_adapter(model, "BGR"), student_format="BGR")
    assert torch.equal(rgb(turned).features[0], same(INPUTS).features[0])
    with pytest.raises(ValueError, match="'YUV-BT.601' of the student.*'BGR'"):
        FrozenTeacher(build_adapter(model, "BGR"), student_format="YUV-BT.601")


def test_half_precision_of_the_teacher_alone():
    adapter = build_adapter(build_tiny("RetinaNet"), "BGR")
    full, half = (FrozenTeacher(adapter, amp=amp)(INPUTS).features for amp in (False, True))
    assert full[0].dtype == torch.float32 and half[0].dtype == torch.bfloat16
    # Fifty layers of eight bits: the same picture, not the same numbers.
    assert torch.cosine_similarity(half[0].float().ravel(), full[0].ravel(), dim=0) > 0.9
    assert not torch.equal(half[0].float(), full[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the student's does not reach the teacher
        assert FrozenTeacher(adapter)(INPUTS).features[0].dtype == torch.float32
