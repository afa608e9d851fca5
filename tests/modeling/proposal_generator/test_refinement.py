"""The refinement module (refinement.py): predictions, losses, proposals and their locations."""

import math

import pytest
import torch

from mimicdet import MimicDet
from mimicdet.modeling.layers.readers import MapReader
from mimicdet.modeling.layers.sparse_conv import RowLayout
from tests.helpers import (
    P3_BOX,
    P4_BOX,
    STRIDES,
    count_calls,
    instances,
    make_input,
    randomise_refinement,
    small_model,
)


def predict(model: MimicDet, inputs):
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    maps = [features[f] for f in model.proposal_generator.in_features]
    return images, maps, model.proposal_generator.predict(maps)


def locate(location, maps):
    """(level, y, x) of a location, counted by hand: levels one after another, row-major."""
    for level, x in enumerate(maps):
        height, width = x.shape[-2:]
        if location < height * width:
            return level, location // width, location % width
        location -= height * width
    raise AssertionError("a location behind the last map")


def adjusted_box(level, y, x, deltas, size):
    """Anchor of side 4 * stride, moved by its deltas of unit weights, clipped: no tensors."""
    stride = STRIDES[level]
    side = 4 * stride
    dx, dy, dw, dh = deltas
    cx, cy = (x + 0.5) * stride + dx * side, (y + 0.5) * stride + dy * side
    w, h = side * math.exp(dw), side * math.exp(dh)
    box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    return [min(max(v, 0.0), m) for v, m in zip(box, [size[1], size[0]] * 2)]


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_proposals_come_back_from_their_positions(training):
    """location -> level, pixel -> anchor -> adjusted box: the proposal; the same for its logit."""
    model = small_model().train(training)
    randomise_refinement(model)
    images, maps, refined = predict(model, [make_input((96, 130)), make_input((70, 61), seed=1)])
    logit_maps = [
        model.proposal_generator.objectness_logits(model.proposal_generator.conv(x)) for x in maps
    ]
    proposals = model.proposal_generator.propose(refined, images.image_sizes)
    levels_seen = set()
    for n, proposal in enumerate(proposals):
        assert 40 < len(proposal) <= 60 + 20 * training
        assert len(proposal.locations.unique()) == len(proposal)
        for i, location in enumerate(proposal.locations.tolist()):
            level, y, x = locate(location, maps)
            levels_seen.add(level)
            assert proposal.levels[i] == level
            deltas = refined.delta_maps[level][n, :, y, x].tolist()
            box = adjusted_box(level, y, x, deltas, images.image_sizes[n])
            assert proposal.proposal_boxes.tensor[i].tolist() == pytest.approx(box, abs=1e-2)
            logit = logit_maps[level][n, 0, y, x].item()
            assert proposal.objectness_logits[i].item() == pytest.approx(logit, rel=1e-4, abs=1e-5)
    assert len(levels_seen) >= 3


@torch.no_grad()
def test_student_output_at_a_position_is_the_pixel_of_the_dense_map():
    model = small_model()
    randomise_refinement(model)
    images, maps, refined = predict(model, [make_input((96, 130)), make_input((70, 61), seed=1)])
    proposals = model.proposal_generator.propose(refined, images.image_sizes)
    head = model.student_head
    named = dict(zip(head.in_features, maps))
    actual = head(named, refined.delta_maps, [x.locations for x in proposals])
    row = 0
    for n, proposal in enumerate(proposals):
        for location in proposal.locations.tolist():
            level, y, x = locate(location, maps)
            layer = head.layers[level]
            pixel = layer(MapReader(maps[level], refined.delta_maps[level]))[n, y, x].relu()
            dense = head.predict(pixel)
            for a, b in zip(vars(actual).values(), vars(dense).values()):
                torch.testing.assert_close(a[row], b, atol=1e-5, rtol=1e-4)
            row += 1
    assert row == len(actual.pred_class_logits)


@torch.no_grad()
def test_levels_of_positions_are_those_of_the_row_layout():
    model = small_model()
    _, maps, refined = predict(model, [make_input()])
    layout = RowLayout.of(tuple(tuple(x.shape[-2:]) for x in maps), (0,), torch.device("cpu"))
    every = torch.arange(len(refined.anchors))
    assert torch.equal(layout.levels(every), refined.anchor_levels)


@torch.no_grad()
def test_predictions_share_their_numbers():
    model = small_model()
    randomise_refinement(model)
    _, maps, refined = predict(model, [make_input((70, 61)), make_input((70, 61), seed=1)])
    rows = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in refined.delta_maps], dim=1)
    assert torch.equal(rows, refined.pred_anchor_deltas)
    sides = refined.anchors[:, 2:] - refined.anchors[:, :2]
    expected = torch.tensor([4.0 * s for s in STRIDES])[refined.anchor_levels]
    assert torch.equal(sides, expected[:, None].expand(-1, 2))


@torch.no_grad()
def test_inference_keeps_the_best_objectness_without_nms():
    model = small_model("MODEL.RPN.POST_NMS_TOPK_TEST", 45).eval()
    model.proposal_generator.objectness_logits.weight.data.normal_()
    model.proposal_generator.anchor_deltas.weight.data.zero_()
    images, _, refined = predict(model, [make_input((128, 160))])
    actual = model.proposal_generator.propose(refined, images.image_sizes)[0]
    logits = refined.pred_objectness_logits[0].tolist()
    assert len(logits) > 400
    ranked = sorted(range(len(logits)), key=lambda r: -logits[r])
    assert actual.locations.tolist() == ranked[:45]


@torch.no_grad()
def test_training_proposals_overlap_by_no_more_than_the_nms_threshold():
    from detectron2.structures import Boxes, pairwise_iou

    model = small_model("MODEL.RPN.NMS_THRESH", 0.5, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 2000)
    randomise_refinement(model)
    images, _, refined = predict(model, [make_input((128, 160))])
    actual = model.proposal_generator.propose(refined, images.image_sizes)[0].proposal_boxes
    iou = pairwise_iou(actual, actual) - torch.eye(len(actual))
    assert 0.4 < iou.max() <= 0.5
    assert pairwise_iou(Boxes(actual.tensor[:1]), Boxes(refined.anchors)).max() > 0


@pytest.mark.parametrize("normalizer", ["positives", "anchors"])
@torch.no_grad()
def test_losses_by_hand(normalizer):
    opts = ("MODEL.MIMICDET.REFINEMENT.CLS_NORMALIZER", normalizer, "MODEL.RPN.LOSS_WEIGHT", 2.0)
    model = small_model(*opts, "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 3.0)
    randomise_refinement(model)
    _, maps, refined = predict(model, [make_input((96, 128)), make_input((96, 128), seed=1)])
    shifted = [v + 1.5 for v in P3_BOX]
    gt = [torch.tensor([shifted, [4.0, 2.0, 78.0, 70.0]]), torch.zeros(0, 4)]
    losses, labels = model.proposal_generator.losses(refined, gt, [torch.zeros(0, 4)] * 2)
    width3, width4 = maps[0].shape[-1], maps[1].shape[-1]
    p3_positions = [3 * width3 + 3]
    cx, cy, reach_x, reach_y = 41.0, 36.0, 0.15 * 74, 0.15 * 68
    p4_positions = [
        maps[0].shape[-2] * width3 + y * width4 + x
        for y in range(maps[1].shape[-2])
        for x in range(width4)
        if abs((x + 0.5) * 16 - cx) <= reach_x and abs((y + 0.5) * 16 - cy) <= reach_y
    ]
    assert p4_positions and labels.positives_per_level.tolist() == [1, len(p4_positions), 0, 0, 0]
    positives = {**dict.fromkeys(p3_positions, 0), **dict.fromkeys(p4_positions, 1)}
    bce = l1 = 0.0
    for n in range(2):
        for r, logit in enumerate(refined.pred_objectness_logits[n].double().tolist()):
            positive = n == 0 and r in positives
            bce += math.log1p(math.exp(-logit if positive else logit))
            if positive:
                x0, y0, x1, y1 = gt[0][positives[r]].tolist()
                a0, b0, a1, b1 = refined.anchors[r].tolist()
                side = a1 - a0
                target = [
                    ((x0 + x1) - (a0 + a1)) / 2 / side,
                    ((y0 + y1) - (b0 + b1)) / 2 / side,
                    math.log((x1 - x0) / side),
                    math.log((y1 - y0) / side),
                ]
                pred = refined.pred_anchor_deltas[n, r].tolist()
                l1 += sum(abs(p - t) for p, t in zip(pred, target))
    anchors = refined.pred_objectness_logits.numel()
    divisor = len(positives) if normalizer == "positives" else anchors
    assert losses["loss_refine_cls"].item() == pytest.approx(2 * bce / divisor, rel=1e-4)
    assert losses["loss_refine_loc"].item() == pytest.approx(6 * l1 / len(positives), rel=1e-4)


@torch.no_grad()
def test_normalizer_counts_at_least_one_an_image():
    model = small_model()
    _, _, refined = predict(model, [make_input(), make_input(seed=1), make_input(seed=2)])
    none = [torch.zeros(0, 4)] * 3
    losses, labels = model.proposal_generator.losses(refined, none, none)
    total = torch.nn.functional.softplus(refined.pred_objectness_logits).sum()
    assert labels.positives_per_level.tolist() == [0] * 5
    torch.testing.assert_close(losses["loss_refine_cls"], total / 3)
    assert losses["loss_refine_loc"] == 0


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_prior_probability(prior):
    model = small_model("MODEL.MIMICDET.REFINEMENT.PRIOR_PROB", prior)
    module = model.proposal_generator
    assert module.objectness_logits.bias.sigmoid().item() == pytest.approx(prior, rel=1e-4)
    assert module.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_gradients_do_not_pass_through_proposals():
    model = small_model()
    images, _, refined = predict(model, [make_input()])
    for proposal in model.proposal_generator.propose(refined, images.image_sizes):
        assert not proposal.proposal_boxes.tensor.requires_grad
        assert not proposal.objectness_logits.requires_grad


def test_diverged_training_says_so():
    model = small_model()
    images, _, refined = predict(model, [make_input()])
    refined.pred_anchor_deltas.data[0, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="SOLVER.BASE_LR"):
        model.proposal_generator.propose(refined, images.image_sizes)


def test_detectron2s_contract_of_a_proposal_generator():
    model = small_model()
    images = model.preprocess_image([make_input()])
    features = model.backbone(images.tensor)
    targets = [instances((64, 96), [P3_BOX, P4_BOX], [0, 1])]
    proposals, losses = model.proposal_generator(images, features, targets)
    assert set(losses) == {"loss_refine_cls", "loss_refine_loc"}
    assert 30 < len(proposals[0]) <= 80
    proposals, losses = model.eval().proposal_generator(images, features)
    assert losses == {} and len(proposals[0]) == 60


@pytest.mark.parametrize(
    "opts, words",
    [
        (("MODEL.RPN.IN_FEATURES", ["p4", "p3", "p5", "p6", "p7"]), "from fine to coarse"),
        (("MODEL.RPN.CONV_DIMS", [8, 8]), "MODEL.RPN.CONV_DIMS"),
        (
            ("MODEL.MIMICDET.REFINEMENT.CLS_NORMALIZER", "boxes"),
            "MODEL.MIMICDET.REFINEMENT.CLS_NORMALIZER.*boxes",
        ),
        (
            (
                "MODEL.RPN.IN_FEATURES",
                ["p3", "p4", "p5", "p6", "p8"],
            ),
            "MODEL.RPN.IN_FEATURES.*p8",
        ),
    ],
)
def test_contradictions_are_named(opts, words):
    with pytest.raises(ValueError, match=words):
        small_model(*opts)


@torch.no_grad()
def test_anchors_of_a_size_are_made_once(monkeypatch):
    model = small_model()
    calls = count_calls(model.proposal_generator.anchor_generator)
    _, _, first = predict(model, [make_input((64, 96))])
    _, _, again = predict(model, [make_input((64, 96))])
    assert calls == [1] and torch.equal(first.anchors, again.anchors)
    _, _, other = predict(model, [make_input((96, 64))])
    assert calls == [2] and not torch.equal(first.anchors, other.anchors)
    monkeypatch.setattr("mimicdet.modeling.proposal_generator.refinement.KEPT_SIZES", 2)
    predict(model, [make_input((128, 64))])
    assert len(model.proposal_generator._kept_anchors) == 1
    assert not [name for name in model.state_dict() if "anchors" in name]
