"""optimize_for_inference (inference.py): the same detections from a leaner model."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from torch import nn

from mimicdet import optimize_for_inference
from mimicdet.export import optimize
from mimicdet.export.optimize import FusedBlock, fold_batch_norms
from mimicdet.modeling.backbone.timm_backbone import TimmBackbone
from tests.helpers import make_input, randomise_refinement, small_model


def randomise_norms(model: nn.Module, seed: int = 0) -> int:
    """Statistics that change the numbers, so that folding them wrongly would show."""
    generator, count = torch.Generator().manual_seed(seed), 0
    for module in model.modules():
        if optimize._is_batch_norm(module):
            for tensor, low in (
                (module.weight, 0.6),
                (module.bias, -0.2),
                (module.running_mean, -0.2),
                (module.running_var, 0.8),
            ):
                tensor.data.copy_(low + 0.4 * torch.rand(tensor.shape, generator=generator))
            count += 1
    return count


def detector(*opts, norm="FrozenBN", eval_head="student"):
    model = small_model(
        "MODEL.RESNETS.NORM", norm, "MODEL.MIMICDET.EVAL_HEAD", eval_head, *opts
    ).eval()
    randomise_norms(model)
    randomise_refinement(model, std=0.05)
    head = model.student_head if eval_head == "student" else model.roi_heads
    std = 0.5 if eval_head == "student" else 0.005  # the T-head's features are large
    head.class_logits.weight.data.normal_(std=std, generator=torch.Generator().manual_seed(1))
    head.box_deltas.weight.data.normal_(std=std / 10, generator=torch.Generator().manual_seed(2))
    return model


def inputs():
    return [make_input((96, 130)), make_input((70, 61), seed=1)]


def assert_same_detections(actual, expected, atol=1e-3):
    """Each detection has its like on the other side; nearly equal scores may change places."""
    for a, b in zip(actual, expected, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) == len(b) > 20
        boxes = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor[None]).abs().amax(dim=2)
        scores = (a.scores[:, None] - b.scores[None]).abs()
        alike = (boxes < atol) & (scores < 1e-4) & (a.pred_classes[:, None] == b.pred_classes[None])
        assert alike.any(dim=0).all() and alike.any(dim=1).all()


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("eval_head", ["student", "teacher"])
def test_detections_stay_the_same(norm, eval_head):
    model = detector("MODEL.FPN.NORM", "BN", norm=norm, eval_head=eval_head)
    expected = model(inputs())
    optimized = optimize_for_inference(model)
    assert_same_detections(optimized(inputs()), expected)
    assert not optimized.training


def test_no_batch_norm_and_no_unused_head_is_left():
    model = detector("MODEL.FPN.NORM", "BN")
    before = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    norms = (FrozenBatchNorm2d, nn.BatchNorm2d)
    assert sum(isinstance(m, norms) for m in model.modules()) > 20
    assert not [m for m in optimized.modules() if isinstance(m, norms)]
    assert not [name for name in optimized.state_dict() if name.startswith("roi_heads")]
    weight = optimized.backbone.bottom_up.res2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in optimized.parameters())
    # The original is as it was.
    after = model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(v, after[k]) for k, v in before.items()
    )
    assert model.roi_heads is not None


@pytest.mark.parametrize("depth, kind", [(18, BasicBlock), (50, BottleneckBlock)])
@pytest.mark.parametrize("one_operator", [True, False])
def test_blocks_with_a_fused_shortcut_compute_the_same(depth, kind, one_operator, monkeypatch):
    calls, operator = [], optimize._ADD_RELU
    assert operator is not None
    record = (lambda *x: calls.append(x) or operator(*x)) if one_operator else None
    monkeypatch.setattr(optimize, "_ADD_RELU", record)
    stages = [nn.Sequential(*x) for x in ResNet.make_default_stages(depth, kind, norm="")[:2]]
    stages = nn.Sequential(*stages)
    fused = copy.deepcopy(stages)
    count = sum(isinstance(m, kind) for m in stages.modules())
    assert optimize.fuse_shortcuts(fused) == count > 2
    assert not [m for m in fused.modules() if type(m) is kind]
    assert fused.state_dict().keys() == stages.state_dict().keys()
    x = torch.randn(2, 64, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fused(x), stages(x))
        half = fused.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert len(calls) == (count if one_operator else 0)
    assert half.dtype == torch.bfloat16


def test_what_is_compiled_keeps_its_blocks(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    blocks = {
        compiled: [
            type(m)
            for m in optimize_for_inference(detector(), compile_backbone=compiled).modules()
            if isinstance(m, (BasicBlock, FusedBlock))
        ]
        for compiled in (True, False)
    }
    assert set(blocks[True]) == {BasicBlock} and set(blocks[False]) == {FusedBlock}


def test_the_layout_can_be_left_alone():
    optimized = optimize_for_inference(detector(), channels_last=False)
    assert optimized.backbone.bottom_up.res2[0].conv1.weight.is_contiguous()


def test_the_missing_head_is_named():
    optimized = optimize_for_inference(detector())
    with pytest.raises(ValueError, match="no such head"):
        optimized.set_eval_head("teacher")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_detects_nearly_the_same(precision):
    model = detector()
    optimized = optimize_for_inference(model, precision=precision)
    dtype = getattr(torch, precision)
    assert optimized.backbone.bottom_up.res2[0].conv1.weight.dtype == dtype
    assert optimized.student_head.class_logits.weight.dtype == torch.float32
    for result, expected in zip(optimized(inputs()), model(inputs())):
        result, expected = result["instances"], expected["instances"]
        assert result.scores.dtype == result.pred_boxes.tensor.dtype == torch.float32
        assert len(result) > 20 and torch.isfinite(result.pred_boxes.tensor).all()
        assert abs(float(result.scores[0] - expected.scores[0])) < 0.1


def test_compiled_parts_give_the_same(monkeypatch):
    """torch.compile is given the backbone and the refinement convolution, and the rest runs on."""
    compiled = []

    def record(self):
        compiled.append(type(self).__name__)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(nn.Module, "compile", record)
    model = detector()
    optimized = optimize_for_inference(model, compile_backbone=True)
    assert compiled == ["StaggeredFPN", "Conv2d"]
    assert_same_detections(optimized(inputs()), model(inputs()))


def test_convolutions_in_a_sequential_are_folded():
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.ReLU(),
        nn.BatchNorm2d(6),
        Conv2d(6, 5, 1, activation=nn.ReLU()),
        nn.BatchNorm2d(5),
    ).eval()
    layers[1].running_mean.uniform_(generator=generator)
    layers[1].running_var.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    expected = layers(x)
    # The others stand behind a ReLU, in the Sequential or in the convolution itself.
    assert fold_batch_norms(layers) == 1
    assert isinstance(layers[1], nn.Identity)
    torch.testing.assert_close(layers(x), expected)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "resnetv2_18"])
def test_networks_of_timm_are_folded(name, norm):
    """Norms that hold an activation, plain ones, and (v2) norms in front of convolutions."""
    pytest.importorskip("timm")
    backbone = TimmBackbone(name, ["res3", "res5"], norm=norm).eval().requires_grad_(False)
    count = randomise_norms(backbone)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = backbone(images)
    folded = fold_batch_norms(backbone)
    left = [m for m in backbone.modules() if optimize._is_batch_norm(m)]
    assert folded + len(left) == count > 10
    # The first norm of each of the 8 v2 blocks reads a sum.
    assert len(left) == (8 if name == "resnetv2_18" else 0)
    for level, x in backbone(images).items():
        torch.testing.assert_close(x, expected[level], rtol=1e-5, atol=1e-5 * x.abs().max().item())


def test_a_convolution_that_others_read_keeps_its_norm():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

        def forward(self, x):
            both = self.convs[0](x)
            x = self.norms[0](both) + both  # read twice
            x = self.norms[1](self.convs[1](self.convs[1](x)))  # the convolution runs twice
            return self.convs[3](self.norms[2](self.convs[2](x)))

    network = Network()
    assert optimize._conv_norm_pairs(network) == [(network.convs[2], "norms.2")]


def test_detectron2s_own_detectors_are_taken():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 2, x * 4] for x in (8, 16, 32, 64, 128)]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert randomise_norms(model) == 20
    assert_same_detections(optimize_for_inference(model)(inputs()), model(inputs()), atol=1e-2)
    with pytest.raises(ValueError, match="MimicDet's options; the model is RetinaNet"):
        optimize_for_inference(model, precision="float16")


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="float32, float16, bfloat16, got 'int8'"):
        optimize_for_inference(detector(), precision="int8")
