"""The staggered pyramid (backbone.py): levels, what runs when, and what is built."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import DepthwiseSeparableConv2d, ShapeSpec
from detectron2.modeling import build_backbone

from mimicdet import StaggeredFPN
from tests.helpers import count_calls, make_input, small_cfg, small_model

NO_TEACHER = ("MODEL.MIMICDET.TEACHER.ENABLED", False, "MODEL.MIMICDET.MIMIC.ENABLED", False)
LEVELS = ["p2", "p3", "p4", "p5", "p6", "p7"]
PLAIN_LEVELS = "MODEL.MIMICDET.FPN.PLAIN_LEVELS"


def build(*opts):
    torch.manual_seed(0)
    return build_backbone(small_cfg(*opts), ShapeSpec(channels=3))


def counters(backbone):
    names = [f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)]
    return {n: count_calls(getattr(backbone, n)) for n in names if hasattr(backbone, n)}


def test_levels_shapes_and_strides():
    backbone = build().train()
    out = backbone(torch.rand(2, 3, 64, 128))
    assert list(out) == LEVELS
    for level, (name, x) in zip(range(2, 8), out.items()):
        assert x.shape == (2, 16, math.ceil(64 / 2**level), math.ceil(128 / 2**level))
        assert backbone.output_shape()[name].stride == 2**level


@pytest.mark.parametrize("plain", [[], ["p2", "p4"]])
@torch.no_grad()
def test_the_pyramid_by_hand(plain):
    """Laterals, nearest upsampling, 3x3 outputs where not plain; P6 from C5, P7 from ReLU(P6)."""
    backbone = build(PLAIN_LEVELS, plain).train()
    x = torch.rand(1, 3, 64, 64)
    actual = backbone(x)
    c = backbone.bottom_up(x)

    def conv(name, value, stride=1):
        layer = getattr(backbone, name, None) or getattr(backbone.top_block, name)
        pad = layer.weight.shape[-1] // 2
        return F.conv2d(value, layer.weight, layer.bias, stride=stride, padding=pad)

    inner, expected = None, {}
    for level in (5, 4, 3, 2):
        lateral = conv(f"fpn_lateral{level}", c[f"res{level}"])
        if inner is not None:
            lateral = lateral + inner.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        inner = lateral
        name = f"p{level}"
        expected[name] = inner if name in plain else conv(f"fpn_output{level}", inner)
    expected["p6"] = conv("p6", c["res5"], stride=2)
    expected["p7"] = conv("p7", F.relu(expected["p6"]), stride=2)
    for name in LEVELS:
        torch.testing.assert_close(actual[name], expected[name])


@torch.no_grad()
def test_p2_is_not_computed_in_evaluation():
    model = small_model().eval()
    calls = counters(model.backbone)
    model([make_input()])
    assert {name: count[0] for name, count in calls.items()} == {
        "fpn_lateral2": 0,
        "fpn_output2": 0,
        "fpn_lateral3": 1,
        "fpn_output3": 1,
        "fpn_lateral4": 1,
        "fpn_output4": 1,
        "fpn_lateral5": 1,
        "fpn_output5": 1,
    }


def test_p2_is_computed_in_training():
    model = small_model()
    calls = counters(model.backbone)
    model([make_input()])
    assert {name: count[0] for name, count in calls.items()} == dict.fromkeys(calls, 1)
    assert len(calls) == 8


@torch.no_grad()
def test_p2_is_computed_when_the_teacher_is_evaluated():
    model = small_model("MODEL.MIMICDET.EVAL_HEAD", "teacher").eval()
    calls = counters(model.backbone)
    model([make_input()])
    assert calls["fpn_lateral2"][0] == calls["fpn_output2"][0] == 1
    model.set_eval_head("student")
    model([make_input()])
    assert calls["fpn_lateral2"][0] == calls["fpn_output2"][0] == 1
    assert calls["fpn_output3"][0] == 2


@torch.no_grad()
def test_the_other_levels_do_not_change_without_p2():
    backbone = build()  # frozen batch norms: training and evaluation compute the same
    x = torch.rand(1, 3, 64, 96)
    everything = backbone.train()(x)
    backbone.eval().eval_out_features = ["p3", "p4", "p5", "p6", "p7"]
    actual = backbone(x)
    assert list(actual) == LEVELS[1:]
    for name, value in actual.items():
        assert torch.equal(value, everything[name])
    backbone.eval_out_features = ["p5"]
    assert torch.equal(backbone(x)["p5"], everything["p5"])


def test_p2_is_not_built_without_a_teacher():
    """It would have parameters without gradients."""
    backbone = build(*NO_TEACHER)
    assert list(backbone.output_shape()) == LEVELS[1:]
    assert not [name for name, _ in backbone.named_modules() if "lateral2" in name]
    low = ["p3", "p4", "p5", "p6", "p7"]
    unstaggered = build("MODEL.ROI_HEADS.IN_FEATURES", low)  # Table 4's other row
    assert list(unstaggered.output_shape()) == low


def test_without_p2_the_other_levels_are_the_same():
    full, short = build(), build(*NO_TEACHER)
    state = {k: v for k, v in full.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(state)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, actual = full.train()(x), short.train()(x)
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


@pytest.mark.parametrize("init", ["he", "xavier"])
def test_initialisation(init):
    backbone = build("MODEL.MIMICDET.FPN.INIT", init, "MODEL.FPN.OUT_CHANNELS", 64)
    for name in ("fpn_lateral5", "fpn_output3", "fpn_output5"):
        weight = getattr(backbone, name).weight
        fan_in = weight[0].numel()
        # He: normal of variance 2 / fan_in. c2_xavier_fill: uniform of variance 1 / fan_in.
        expected = math.sqrt((2 if init == "he" else 1) / fan_in)
        assert weight.std().item() == pytest.approx(expected, rel=0.06)
        if init == "xavier":
            assert weight.abs().max() <= math.sqrt(3 / fan_in)
        assert not getattr(backbone, name).bias.any()


@pytest.mark.parametrize(
    "opts, words",
    [
        (("MODEL.MIMICDET.FPN.INIT", "zeros"), "MODEL.MIMICDET.FPN.INIT.*zeros"),
        ((PLAIN_LEVELS, ["p2", "p6"]), f"{PLAIN_LEVELS}.*'p6'"),
        (("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]), "OUT_FEATURES.*res5"),
        (("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4"]), "res5"),
        (("MODEL.FPN.FUSE_TYPE", "avg"), "avg"),
    ],
)
def test_contradictions_are_named(opts, words):
    with pytest.raises(ValueError, match=words):
        build(*opts)


def test_a_plain_level_has_no_convolution_beside_separable_ones():
    backbone = build(PLAIN_LEVELS, ["p2"], "MODEL.MIMICDET.DEPTHWISE", True)
    outputs = [getattr(backbone, f"fpn_output{level}") for level in (2, 3, 4, 5)]
    kinds = [torch.nn.Identity, *3 * [DepthwiseSeparableConv2d]]
    assert list(map(type, outputs)) == kinds
    assert outputs[::-1] == list(backbone.output_convs)  # what forward runs


def test_the_builder_gives_a_staggered_pyramid():
    assert isinstance(build(), StaggeredFPN)
