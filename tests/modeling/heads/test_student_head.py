"""The S-head (student_head.py): dense and sparse, branches, what its losses train on."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from mimicdet import StudentHead
from mimicdet.modeling.layers import ALIGNMENTS
from mimicdet.modeling.structures import HeadPredictions, LabelledBoxes
from tests.helpers import NUM_CLASSES, small_model

ODD = [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
KEY = "MODEL.MIMICDET.STUDENT."
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
FINER = ["p2", "p3", "p4", "p5", "p6"]


def make_head(*opts, seed=0) -> StudentHead:
    """The S-head of a small model, with weights that make the offsets leave the map."""
    options = [f"{KEY}{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
    head = small_model(*options).student_head
    torch.manual_seed(seed)
    for name, parameter in head.named_parameters():
        std = 0.5 if "offset" in name else 0.15
        torch.nn.init.normal_(parameter, std=std)
    return head


def make_maps(sizes=ODD, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(images, 16, *s, generator=generator) for s in sizes]
    deltas = [torch.randn(images, 4, *s, generator=generator) for s in sizes]
    maps = dict(zip(LEVELS, (x.requires_grad_() for x in features)))
    return maps, [x.requires_grad_() for x in deltas]


def every_result(head, sizes, locations, images):
    """Outputs, and the gradients of a fixed random sum of them, by name."""
    features, deltas = make_maps(sizes, images)
    head.zero_grad()
    out = head(features, deltas, locations)
    torch.manual_seed(1)
    sum((x * torch.randn(x.shape)).sum() for x in vars(out).values()).backward()
    results = dict(vars(out))
    results |= {f"grad {name}": p.grad.clone() for name, p in head.named_parameters()}
    results |= {f"grad {name}": x.grad for name, x in features.items()}
    if not head.detach_guidance and "offset" in " ".join(head.state_dict()):
        if deltas[0].grad is not None:
            results |= {f"grad deltas {i}": x.grad for i, x in enumerate(deltas)}
    return results


@pytest.mark.parametrize("alignment", sorted(ALIGNMENTS))
@pytest.mark.parametrize(
    "sizes, requested",
    [
        (ODD, [30, 11]),  # ragged
        (ODD, [0, 25]),  # an image without a location
        (ODD, [160, 160]),  # every location
        ([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], [6]),
    ],
    ids=["ragged", "empty image", "all", "one image"],
)
def test_sparse_is_dense(alignment, sizes, requested):
    """Outputs, and gradients of every parameter and map, of the two ways to compute the same."""
    total = sum(h * w for h, w in sizes)
    generator = torch.Generator().manual_seed(3)
    locations = [torch.randperm(total, generator=generator)[:n] for n in requested]
    results = []
    for sparse in (True, False):
        head = make_head("ALIGNMENT", alignment, "SPARSE", sparse, "DETACH_GUIDANCE", False)
        results.append(every_result(head, sizes, locations, len(requested)))
    assert results[0].keys() == results[1].keys()
    if alignment == "guided":
        assert "grad deltas 0" in results[0]
    for name, sparse in results[0].items():
        dense = results[1][name]
        bound = 1e-4 * float(dense.detach().abs().max()) if dense.numel() else 0
        torch.testing.assert_close(sparse, dense, atol=bound, rtol=1e-4, msg=name)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_level_without_locations_still_has_gradients(sparse):
    """All on P5..P7, so P3's own 3x3 layer sees nothing: zeros, not None, for DDP."""
    head = make_head("SPARSE", sparse)
    features, deltas = make_maps()
    first = sum(h * w for h, w in ODD[:2])
    locations = [torch.tensor([first, first + 3]), torch.tensor([first + 1])]
    head(features, deltas, locations).pred_class_logits.sum().backward()
    for name, parameter in head.alignments.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == name.startswith("k5"), name
    assert all(x.grad is not None for x in features.values())


def test_no_locations_at_all():
    head = make_head()
    features, deltas = make_maps()
    none = [torch.zeros(0, dtype=torch.int64)] * 2
    out = head(features, deltas, none)
    assert out.pred_class_logits.shape == (0, NUM_CLASSES + 1)
    out.pred_box_deltas.sum().backward()
    assert features["p3"].grad is not None and not features["p3"].grad.any()


@torch.no_grad()
def test_order_follows_the_locations():
    head = make_head()
    features, deltas = make_maps()
    locations = [torch.arange(100), torch.arange(100, 140)]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    straight = head(features, deltas, locations)
    shuffled = head(features, deltas, [locations[0][order], locations[1]])
    torch.testing.assert_close(shuffled.box_features[:100], straight.box_features[:100][order])
    torch.testing.assert_close(shuffled.box_features[100:], straight.box_features[100:])


@torch.no_grad()
def test_dual_path_by_hand():
    head = make_head()
    aligned = torch.rand(7, 16)
    actual = head.predict(aligned)
    weights = head.state_dict()

    def fc(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    class_features = fc("class_feature", aligned).clamp(min=0)
    box_features = fc("box_feature", aligned).clamp(min=0)
    torch.testing.assert_close(actual.class_features, class_features)
    torch.testing.assert_close(actual.box_features, box_features)
    torch.testing.assert_close(actual.pred_class_logits, fc("class_logits", class_features))
    torch.testing.assert_close(actual.pred_box_deltas, fc("box_deltas", box_features))


@torch.no_grad()
def test_aligned_features_pass_a_relu():
    head = make_head("ALIGNMENT", "conv")
    features, deltas = make_maps(images=1)
    read, seen = head.predict, []
    head.predict = lambda aligned: seen.append(aligned) or read(aligned)
    head(features, deltas, [torch.arange(9 * 13)])
    actual = seen[0]
    conv = head.alignments["k3"].conv
    expected = F.conv2d(features["p3"], conv.weight, conv.bias, padding=1).relu()
    torch.testing.assert_close(actual, expected[0].flatten(1).T, atol=1e-4, rtol=1e-4)
    assert (actual == 0).any()


def test_one_path_feeds_both_outputs():
    options = [f"{KEY}DUAL_PATH", False, "MODEL.MIMICDET.TEACHER.HEAD", "light"]
    head = small_model(*options).student_head
    out = head.predict(torch.rand(3, 16))
    assert out.class_features is out.box_features
    out.pred_class_logits.sum().backward()
    assert head.shared_feature.weight.grad is not None


def test_levels_of_equal_kernel_share_a_layer():
    head = small_model().student_head
    assert sorted(head.alignments) == ["k3", "k5"]
    design_c = small_model(f"{KEY}KERNEL_SIZES", [5, 5, 5, 5, 5]).student_head
    assert sorted(design_c.alignments) == ["k5"]
    assert head.alignments["k3"].conv.weight.shape[-1] == 3


def test_the_way_of_computing_changes_no_state():
    state = small_model().student_head.state_dict()
    dense = small_model(f"{KEY}SPARSE", False).student_head
    dense.load_state_dict(state, strict=True)
    assert list(dense.state_dict()) == list(state)


@pytest.mark.parametrize("init", ["gaussian", "he"])
def test_initialisation(init):
    model = small_model(
        f"{KEY}INIT",
        init,
        f"{KEY}ALIGNMENT_DIM",
        64,
        f"{KEY}FEATURE_DIM",
        256,
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        256,
    )
    head = model.student_head
    alignment = head.alignments["k5"]
    hidden = [alignment.conv, alignment.offset[0], alignment.offset[1]]
    hidden += [head.class_feature, head.box_feature]
    for layer in hidden:
        expected = 0.01 if init == "gaussian" else math.sqrt(2 / layer.weight[0].numel())
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.15)
    outputs = [head.class_logits, head.box_deltas, alignment.offset[2]]
    for layer in outputs:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize("detach", [True, False])
def test_detach_guidance(detach):
    head = make_head("DETACH_GUIDANCE", detach)
    features, deltas = make_maps()
    out = head(features, deltas, [torch.arange(100), torch.arange(50)])
    out.box_features.sum().backward()
    assert (deltas[0].grad is None) == detach
    if not detach:
        assert deltas[0].grad.any()
    assert all(p.grad.any() for p in head.alignments["k3"].offset.parameters())


@torch.no_grad()
def test_bfloat16_stays_near_float32():
    head = make_head()
    for layer in head.alignments.values():  # offsets of a few pixels: they are bfloat16's too
        layer.offset[-1].weight.data.mul_(0.05)
        layer.offset[-1].bias.data.mul_(0.05)
    features, deltas = make_maps()
    locations = [torch.arange(140), torch.arange(60)]
    expected = head(features, deltas, locations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = head({name: x.bfloat16() for name, x in features.items()}, deltas, locations)
    difference = (actual.box_features.float() - expected.box_features).norm()
    assert difference < 0.02 * expected.box_features.norm()


# ---------------------------------------------------------------- losses


def labelled(classes, seed):
    """Proposals of an image with given gt_classes, each a little off its object."""
    generator = torch.Generator().manual_seed(seed)
    result = Instances((100, 100))
    corners = 40 * torch.rand(len(classes), 2, generator=generator)
    boxes = torch.cat([corners, corners + 30], dim=1)
    result.proposal_boxes = Boxes(boxes)
    result.gt_boxes = Boxes(boxes + 4 * torch.rand(len(classes), 4, generator=generator))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def predictions_for(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(count, NUM_CLASSES + 1, generator=generator)).requires_grad_()
    deltas = torch.randn(count, 4, generator=generator).requires_grad_()
    return HeadPredictions(logits, deltas, logits, deltas)


def cross_entropies(logits, classes):
    return [
        math.log(sum(math.exp(v) for v in row)) - row[c] if c >= 0 else None
        for row, c in zip(logits.tolist(), classes)
    ]


def l1_to_object(pred, box, target):
    (x0, y0, x1, y1), (a0, b0, a1, b1) = target, box
    w, h = a1 - a0, b1 - b0
    gt = [10 * ((x0 + x1) - (a0 + a1)) / 2 / w, 10 * ((y0 + y1) - (b0 + b1)) / 2 / h]
    gt += [5 * math.log((x1 - x0) / w), 5 * math.log((y1 - y0) / h)]
    return sum(abs(p - t) for p, t in zip(pred, gt))


CLASSES = [[3, 0, 3, -1, 3, 3, 1, 3, 3], [3, 3, -1, 3, 2, 3, 3, 3]]  # 3 is the background


def losses_of(head, predictions, proposals):
    """Choose what trains, then the losses, as forward_training does."""
    boxes, counts = LabelledBoxes.of(proposals), [len(x) for x in proposals]
    chosen = head.select(predictions.pred_class_logits, boxes, counts)
    return head.losses(predictions, boxes, *chosen)


@pytest.mark.parametrize("normalizer, divisor", [("mined", 10), ("positives", 3)])
def test_losses_by_hand(normalizer, divisor):
    """The 5 highest losses of each image; all 3 positives, since 4 an image would be allowed."""
    head = make_head(
        "HARD_MINING_TOPK",
        5,
        "MAX_REG_POSITIVES",
        4,
        "REG_NORMALIZER",
        normalizer,
        "CLS_LOSS_WEIGHT",
        2.0,
        "REG_LOSS_WEIGHT",
        3.0,
    )
    proposals = [labelled(classes, seed) for seed, classes in enumerate(CLASSES)]
    predictions = predictions_for(17)
    losses = losses_of(head, predictions, proposals)
    assert set(losses) == {"loss_student_cls", "loss_student_loc"}
    each = cross_entropies(predictions.pred_class_logits, sum(CLASSES, []))
    hardest = []
    for part in (each[:9], each[9:]):
        hardest += sorted((v for v in part if v is not None), reverse=True)[:5]
    assert losses["loss_student_cls"].item() == pytest.approx(2 * sum(hardest) / 10, rel=1e-4)
    boxes = torch.cat([x.proposal_boxes.tensor for x in proposals]).tolist()
    targets = torch.cat([x.gt_boxes.tensor for x in proposals]).tolist()
    total = sum(
        l1_to_object(predictions.pred_box_deltas[i].tolist(), boxes[i], targets[i])
        for i in (1, 6, 9 + 4)
    )
    assert losses["loss_student_loc"].item() == pytest.approx(3 * total / divisor, rel=1e-4)
    # Only the mined boxes get a classification gradient.
    losses["loss_student_cls"].backward()
    trained = [i for i, row in enumerate(predictions.pred_class_logits.grad) if row.any()]
    assert sorted(each[i] for i in trained) == sorted(hardest)


def test_training_twice_over_few_is_training_once_over_all():
    """Sparse: values and gradients of the dense head, which keeps the graph of every proposal."""
    counts, sampled = [60, 40], [torch.tensor([5, 0, 59]), torch.tensor([39, 7])]
    generator = torch.Generator().manual_seed(4)
    proposals = []
    for seed, count in enumerate(counts):
        classes = torch.randint(0, NUM_CLASSES + 1, (count,), generator=generator)
        proposals.append(labelled(classes.tolist(), seed))
        proposals[-1].locations = torch.randperm(120, generator=generator)[:count]
    results, runs = [], []
    for sparse in (True, False):
        head = make_head("SPARSE", sparse, "HARD_MINING_TOPK", 6, "MAX_REG_POSITIVES", 4)
        features, deltas = make_maps()
        predict = head.predict
        head.predict = lambda x, predict=predict: (
            runs.append((len(x), x.requires_grad)) or predict(x)
        )
        torch.manual_seed(0)
        losses, mimicked, _ = head.forward_training(features, deltas, proposals, sampled)
        (sum(losses.values()) + mimicked.box_features.square().sum()).backward()
        result = {**losses, **vars(mimicked)}
        result |= {f"grad {name}": p.grad for name, p in head.named_parameters()}
        result |= {f"grad {name}": x.grad for name, x in features.items()}
        results.append(result)
    assert runs[0] == (100, False) and runs[2] == (100, True)
    assert runs[1][1] and 6 * 2 <= runs[1][0] <= 2 * (6 + 4) + 5
    for name, actual in results[0].items():
        expected = results[1][name]
        bound = 1e-4 * float(expected.detach().abs().max())
        torch.testing.assert_close(actual, expected, atol=bound, rtol=1e-4, msg=name)


def test_ignored_boxes_are_never_mined():
    head = make_head("HARD_MINING_TOPK", 100)
    predictions = predictions_for(17)
    losses_of(head, predictions, [labelled(c, s) for s, c in enumerate(CLASSES)])[
        "loss_student_cls"
    ].backward()
    untouched = [i for i, row in enumerate(predictions.pred_class_logits.grad) if not row.any()]
    assert untouched == [3, 9 + 2]


def test_regression_takes_a_limited_random_draw_of_positives():
    head = make_head("HARD_MINING_TOPK", 5, "MAX_REG_POSITIVES", 4)
    classes = [[0] * 10 + [3] * 5, [1, 3, 3]]
    draws = set()
    for seed in range(4):
        torch.manual_seed(seed)
        predictions = predictions_for(18)
        proposals = [labelled(c, s) for s, c in enumerate(classes)]
        losses_of(head, predictions, proposals)["loss_student_loc"].backward()
        trained = [i for i, row in enumerate(predictions.pred_box_deltas.grad) if row.any()]
        assert len([i for i in trained if i < 10]) == 4
        assert [i for i in trained if i >= 10] == [15]
        draws.add(tuple(trained))
    assert len(draws) > 1


def test_losses_of_no_proposals_are_zeros_in_the_graph():
    head = make_head()
    predictions = predictions_for(0)
    losses = losses_of(head, predictions, [labelled([], 0), labelled([], 1)])
    sum(losses.values()).backward()
    assert [v.item() for v in losses.values()] == [0, 0]
    assert predictions.pred_class_logits.grad is not None
    assert predictions.pred_box_deltas.grad is not None


@pytest.mark.parametrize(
    "opts, words",
    [
        ((f"{KEY}INIT", "zeros"), "STUDENT.INIT.*zeros"),
        ((f"{KEY}REG_NORMALIZER", "boxes"), "STUDENT.REG_NORMALIZER.*boxes"),
        ((f"{KEY}KERNEL_SIZES", [3, 4, 5, 5, 5]), "STUDENT.KERNEL_SIZES.*4"),
        (
            (f"{KEY}IN_FEATURES", FINER, f"{KEY}SPARSE", False),
            "STUDENT.IN_FEATURES.*STUDENT.SPARSE",
        ),
        ((f"{KEY}IN_FEATURES", ["p2", "p3", "p4", "p5", "p9"]), "STUDENT.IN_FEATURES.*p9"),
        (
            ("MODEL.RPN.IN_FEATURES", FINER, f"{KEY}IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
            "STUDENT.IN_FEATURES.*p7.*must have the strides of MODEL.RPN.IN_FEATURES",
        ),
    ],
)
def test_contradictions_are_named(opts, words):
    with pytest.raises(ValueError, match=words):
        small_model(*opts)
