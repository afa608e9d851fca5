"""The T-head (teacher_head.py): the level that each box reads, the heads, their losses."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.structures import Boxes, ImageList, Instances

from mimicdet.modeling.heads.teacher_head import LevelPooler
from mimicdet.modeling.structures import HeadPredictions
from tests.helpers import NUM_CLASSES, P3_BOX, instances, make_input, small_model

NAMES = ["p2", "p3", "p4", "p5", "p6"]
SIZE = (128, 160)


def maps_of(value, size=SIZE, images=1, channels=16):
    """Maps of P2..P6; value(image, level) fills a map."""
    maps = {}
    for level in range(2, 7):
        height, width = (math.ceil(s / 2**level) for s in size)
        rows = [value(n, level) * torch.ones(channels, height, width) for n in range(images)]
        maps[f"p{level}"] = torch.stack(rows)
    return maps


def random_maps(images=1, seed=0):
    torch.manual_seed(seed)
    maps = maps_of(lambda n, level: torch.randn(16, 1, 1), images=images)
    return {name: (x + torch.randn_like(x)).requires_grad_() for name, x in maps.items()}


def capture_pooled(heads):
    actual = []
    heads.pooler.register_forward_hook(lambda module, args, out: actual.append(out.detach()))
    return actual


@torch.no_grad()
def test_every_box_reads_one_level_ahead_of_its_anchor():
    """
    Features that say which map of which image they are, and a proposal at every anchor: an anchor
    of side 32 * 2^i lives on P_(3+i) and must read P_(2+i), whatever its box has become.
    """
    model = small_model()
    inputs = [make_input(SIZE, seed=n) for n in range(3)]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    refined = model.proposal_generator.predict([features[f"p{i}"] for i in range(3, 8)])
    generator = torch.Generator().manual_seed(0)
    proposals = []
    for count in (len(refined.anchors), 0, 57):  # ragged, and one image without a box
        order = torch.randperm(len(refined.anchors), generator=generator)[:count]
        centers = (refined.anchors[order, :2] + refined.anchors[order, 2:]) / 2
        sides = 2 + 90 * torch.rand(count, 2, generator=generator)  # of any size, on any level
        corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
        corners[:, 0::2].clamp_(0, SIZE[1])
        corners[:, 1::2].clamp_(0, SIZE[0])
        x = Instances(SIZE)
        x.proposal_boxes = Boxes(corners)
        x.levels = refined.anchor_levels[order]
        x.sides = refined.anchors[order, 2] - refined.anchors[order, 0]
        proposals.append(x[x.proposal_boxes.nonempty(threshold=1)])
    pooled = capture_pooled(model.roi_heads)
    maps = maps_of(lambda n, level: 100.0 * n + level, images=3)
    model.roi_heads.predict_proposals(maps, proposals)
    expected = [
        100.0 * n + math.log2(side / 4) - 1
        for n, x in enumerate(proposals)
        for side in x.sides.tolist()
    ]
    expected = torch.tensor(expected)[:, None, None, None].expand_as(pooled[0])
    torch.testing.assert_close(pooled[0], expected, atol=1e-3, rtol=0)
    assert set(proposals[0].levels.tolist()) == {0, 1, 2, 3, 4}


@torch.no_grad()
def test_levels_of_the_refinement_modules_proposals():
    """The same from a real proposal set: the level comes along with each box."""
    model = small_model()
    images = model.preprocess_image([make_input(SIZE), make_input(SIZE, seed=1)])
    features = model.backbone(images.tensor)
    refined = model.proposal_generator.predict([features[f"p{i}"] for i in range(3, 8)])
    proposals = model.proposal_generator.propose(refined, images.image_sizes)
    pooled = capture_pooled(model.roi_heads)
    model.roi_heads.predict_proposals(
        maps_of(lambda n, level: 100.0 * n + level, images=2), proposals
    )
    sides = [refined.anchors[x.locations, 2] - refined.anchors[x.locations, 0] for x in proposals]
    expected = torch.cat([100 * n + (s / 4).log2() - 1 for n, s in enumerate(sides)])
    torch.testing.assert_close(pooled[0].amin((1, 2, 3)), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(pooled[0].amax((1, 2, 3)), expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_pooled_values_are_aligned_roi_align():
    pooler = LevelPooler(7, [4, 8, 16], 0)
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 64 // s, 96 // s) for s in (4, 8, 16)]
    boxes = [
        torch.tensor([[3.0, 5.0, 40.0, 33.0], [10.0, 8.0, 20.0, 60.0]]),
        torch.tensor([[0.0, 0.0, 96.0, 64.0]]),
    ]
    levels = [torch.tensor([2, 0]), torch.tensor([1])]
    actual = pooler(maps, boxes, levels)
    row = 0
    for n in range(2):
        for box, level in zip(boxes[n], levels[n]):
            expected = torchvision.ops.roi_align(
                maps[level][n : n + 1], [box[None]], 7, 1 / (4, 8, 16)[level], 0, aligned=True
            )
            torch.testing.assert_close(actual[row], expected[0])
            row += 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_maps_gradient_has_the_layout_of_the_map(layout):
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    boxes, levels = [torch.tensor([[3.0, 5.0, 40.0, 33.0]])] * 2, [torch.tensor([0])] * 2
    gradients: list[torch.Tensor] = []
    for leaf in (x.clone(memory_format=layout), x.clone()):
        inner = leaf.requires_grad_().clone()  # a leaf's own gradient takes the leaf's layout
        inner.register_hook(gradients.append)
        pooled = LevelPooler(7, [4], 0)([inner], boxes, levels)
        (pooled * torch.arange(7)).sum().backward()
    assert gradients[0].is_contiguous(memory_format=layout)
    torch.testing.assert_close(*gradients, check_stride=False)


def test_every_level_has_a_gradient_also_without_boxes():
    heads = small_model().roi_heads
    maps = random_maps(images=2)
    boxes = [torch.tensor([P3_BOX]), torch.zeros(0, 4)]
    levels = [torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]
    heads.predict(maps, boxes, levels).pred_class_logits.sum().backward()
    assert all(x.grad is not None for x in maps.values())
    assert maps["p2"].grad.abs().sum() > 0 and maps["p4"].grad.abs().sum() == 0
    # No box at all: zeros, still in the graph.
    maps = random_maps(images=2)
    out = heads.predict(maps, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    assert out.pred_class_logits.shape == (0, NUM_CLASSES + 1)
    out.box_features.sum().backward()
    assert maps["p2"].grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_features_are_pooled_in_float32(dtype):
    pooler = LevelPooler(7, [4], 0)
    x = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes, levels = [torch.tensor([[701.3, 703.7, 790.1, 777.9]])], [torch.tensor([0])]
    actual = pooler([x], boxes, levels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, pooler([x.float()], boxes, levels))


# ---------------------------------------------------------------- the heads


@torch.no_grad()
def test_dual_path_by_hand():
    model = small_model("MODEL.MIMICDET.TEACHER.OUTPUT_INIT", "he")
    heads = model.roi_heads
    pooled = capture_pooled(heads)
    boxes, levels = [torch.tensor([P3_BOX, [5.0, 3.0, 99.0, 80.0]])], [torch.tensor([0, 2])]
    actual = heads.predict(random_maps(), boxes, levels)
    state = heads.state_dict()

    def fc(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    flat = pooled[0].flatten(1)
    class_features = fc("class_branch.3", fc("class_branch.1", flat).relu()).relu()
    box_features = pooled[0]
    for i in range(4):
        weight, bias = (state[f"box_branch.{i}.{kind}"] for kind in ("weight", "bias"))
        box_features = F.conv2d(box_features, weight, bias, padding=1).relu()
    box_features = fc("box_branch.5", box_features.flatten(1)).relu()
    torch.testing.assert_close(actual.class_features, class_features)
    torch.testing.assert_close(actual.box_features, box_features)
    torch.testing.assert_close(actual.pred_class_logits, fc("class_logits", class_features))
    torch.testing.assert_close(actual.pred_box_deltas, fc("box_deltas", box_features))
    assert actual.pred_class_logits.shape == (2, NUM_CLASSES + 1)


@pytest.mark.parametrize("head, convs", [("light", 0), ("heavy", 4)])
@torch.no_grad()
def test_shared_heads(head, convs):
    opts = ("MODEL.MIMICDET.TEACHER.HEAD", head, "MODEL.MIMICDET.STUDENT.DUAL_PATH", False)
    heads = small_model(*opts).roi_heads
    kinds = [m for m in heads.shared_branch.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(kinds) == convs
    linear = [m for m in heads.shared_branch.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [24, 24]
    out = heads.predict(random_maps(), [torch.tensor([P3_BOX])], [torch.tensor([0])])
    assert torch.equal(out.class_features, out.box_features)
    assert out.box_features.min() >= 0  # behind the last ReLU
    torch.testing.assert_close(out.pred_box_deltas, heads.box_deltas(out.box_features))
    torch.testing.assert_close(out.pred_class_logits, heads.class_logits(out.box_features))


def test_he_initialisation():
    heads = small_model(
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        256,
        "MODEL.MIMICDET.STUDENT.FEATURE_DIM",
        256,
        "MODEL.MIMICDET.TEACHER.OUTPUT_INIT",
        "he",
    ).roi_heads
    for layer in (heads.class_branch[1], heads.class_branch[3], heads.box_branch[1]):
        expected = math.sqrt(2 / layer.weight[0].numel())
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
        assert not layer.bias.any()
    assert heads.class_logits.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.1)


def test_gaussian_initialisation_of_the_outputs():
    heads = small_model(
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        256,
        "MODEL.MIMICDET.STUDENT.FEATURE_DIM",
        256,
        "MODEL.MIMICDET.TEACHER.OUTPUT_INIT",
        "gaussian",
    ).roi_heads
    assert heads.class_logits.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert heads.box_deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
    hidden = heads.class_branch[3].weight
    assert hidden.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.1)


def test_loss_keys_and_weights():
    one = small_model().roi_heads
    opts = ("MODEL.MIMICDET.TEACHER.CLS_LOSS_WEIGHT", 2.0)
    two = small_model(*opts, "MODEL.MIMICDET.TEACHER.REG_LOSS_WEIGHT", 5.0).roi_heads
    proposal = Instances(SIZE)
    proposal.proposal_boxes = Boxes(torch.tensor([P3_BOX, [60.0, 60.0, 90.0, 90.0]]))
    proposal.gt_boxes = Boxes(torch.tensor([[14.0, 11.0, 45.0, 47.0], [0.0, 0.0, 1.0, 1.0]]))
    proposal.gt_classes = torch.tensor([1, NUM_CLASSES])
    torch.manual_seed(0)
    predictions = HeadPredictions(
        torch.randn(2, NUM_CLASSES + 1), torch.randn(2, 4), torch.zeros(2, 1), torch.zeros(2, 1)
    )
    first = one.losses(predictions, [proposal])
    second = two.losses(predictions, [proposal])
    assert set(first) == {"loss_teacher_cls", "loss_teacher_loc"}
    expected = F.cross_entropy(predictions.pred_class_logits, proposal.gt_classes)
    torch.testing.assert_close(first["loss_teacher_cls"], expected)
    torch.testing.assert_close(second["loss_teacher_cls"], 2 * first["loss_teacher_cls"])
    torch.testing.assert_close(second["loss_teacher_loc"], 5 * first["loss_teacher_loc"])


def test_detectron2s_contract_of_roi_heads():
    """It samples, labels and computes its losses by itself; in evaluation it detects."""
    model = small_model()
    heads = model.roi_heads
    images = ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    proposal = Instances(SIZE)
    torch.manual_seed(0)
    centers = 20 + 80 * torch.rand(40, 2)
    boxes = torch.cat([centers - 15, centers + 15], dim=1)
    boxes[:8] = torch.tensor(P3_BOX) + torch.rand(8, 4)
    proposal.proposal_boxes = Boxes(boxes)
    proposal.levels = torch.zeros(40, dtype=torch.int64)
    targets = [instances(SIZE, [P3_BOX], [2])]
    sampled, losses = heads(images, random_maps(), [proposal], targets)
    assert set(losses) == {"loss_teacher_cls", "loss_teacher_loc"}
    foreground = sampled[0].gt_classes != NUM_CLASSES
    assert len(sampled[0]) == 16 and int(foreground.sum()) == 4  # a quarter of 16
    assert foreground[:4].all() and (sampled[0].gt_classes[:4] == 2).all()
    detected, losses = heads.eval()(images, random_maps(), [proposal])
    assert losses == {} and detected[0].has("pred_boxes")


@pytest.mark.parametrize(
    "opts, words",
    [
        (("MODEL.ROI_BOX_HEAD.NUM_FC", 0), "MODEL.ROI_BOX_HEAD.NUM_FC"),
        (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"), "MODEL.ROI_BOX_HEAD.POOLER_TYPE.*ROIPool"),
        (("MODEL.ROI_HEADS.IN_FEATURES", NAMES[:4] + ["p9"]), "MODEL.ROI_HEADS.IN_FEATURES.*p9"),
        (("MODEL.MIMICDET.TEACHER.OUTPUT_INIT", "zeros"), "TEACHER.OUTPUT_INIT.*zeros"),
    ],
)
def test_contradictions_are_named(opts, words):
    with pytest.raises(ValueError, match=words):
        small_model(*opts)
