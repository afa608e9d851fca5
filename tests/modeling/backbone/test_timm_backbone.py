"""Networks of timm as backbones: maps, freezing, norms, padding, and what goes wrong."""

import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from mimicdet.config import load_config
from mimicdet.modeling.backbone.timm_backbone import SameConv2d
from tests.helpers import REPOSITORY, make_input, small_cfg, small_model

timm = pytest.importorskip("timm")
ALL = ["res2", "res3", "res4", "res5"]
TIMM = ["MODEL.PYRAMID.BOTTOM_UP", "build_timm_backbone"]


def build(name, *opts, freeze_at=0):
    chosen = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name]
    cfg = load_config("", [*chosen, "MODEL.BACKBONE.FREEZE_AT", freeze_at, *opts])
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, channels",
    [
        ("tf_efficientnet_lite0", [24, 40, 112, 320]),
        ("mobilenetv2_050", [16, 16, 48, 160]),
        ("convnext_atto", [40, 80, 160, 320]),  # another family: layer norms, stem of stride 4
    ],
)
def test_maps_are_timms(name, channels):
    backbone = build(name).eval()
    reference = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    reference.load_state_dict(backbone.network.state_dict())
    images = torch.randn(2, 3, 64, 96)
    maps, expected = backbone(images), reference(images)[-4:]
    assert list(maps) == list(backbone.output_shape()) == ALL
    for (n, value), reference_map, c, stride in zip(
        maps.items(), expected, channels, (4, 8, 16, 32)
    ):
        shape = backbone.output_shape()[n]
        assert (shape.channels, shape.stride) == (c, stride)
        assert value.shape == (2, c, 64 // stride, 96 // stride)
        torch.testing.assert_close(value, reference_map)
    assert backbone.size_divisibility == 32


def test_layers_behind_the_last_map_are_left_out():
    """They would have parameters without gradients."""
    backbone = build("mobilenetv2_050", "MODEL.TIMM.OUT_FEATURES", ["res3", "res4"]).train()
    assert backbone.size_divisibility == 16
    assert list(backbone.output_shape()) == ["res3", "res4"]
    sum(x.sum() for x in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_of_maps_of_one_stride_the_last_is_taken():
    backbone = build(
        "resnet10t",
        *["MODEL.TIMM.OPTIONS", ["output_stride", 16]],
        *["MODEL.TIMM.OUT_FEATURES", ["res3", "res4"]],
    )
    assert backbone.output_shape()["res4"] == ShapeSpec(channels=512, stride=16)


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freezing_ends_behind_the_map(freeze_at):
    backbone = build("mobilenetv2_050", freeze_at=freeze_at).train()
    model = backbone.network.model
    stages = [model.conv_stem, model.bn1, *model.blocks]
    # Stages of strides 2, 4, 8, 16, 16, 32, 32 behind the stem's two layers.
    count = (0, 3, 4, 5, 7, 9)[freeze_at]
    for i, stage in enumerate(stages):
        assert all(p.requires_grad is (i >= count) for p in stage.parameters())
        trains = [isinstance(m, nn.BatchNorm2d) for m in stage.modules() if hasattr(m, "eps")]
        assert all(is_norm is (i >= count) for is_norm in trains)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert any("bn1.running_mean" in k for k in changed) == (freeze_at < 5)
    assert any(k.startswith("network.model.bn1.") for k in changed) == (freeze_at == 0)


@torch.no_grad()  # which must not hide what a map is computed from
@pytest.mark.parametrize("freeze_at, convs", [(1, [0, 2, 5, 7]), (2, [0, 2, 5, 7, 10, 12])])
def test_freezing_vgg_at_1_freezes_conv1_and_conv2(freeze_at, convs):
    """VGG-13's, of two layers each."""
    with torch.device("meta"):
        backbone = build("vgg13", freeze_at=freeze_at)
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    names = [f"network.model.features.{i}" for i in convs]
    assert frozen == [f"{name}.{x}" for name in names for x in ("weight", "bias")]


@torch.no_grad()
def test_frozen_norms_keep_the_activation_and_the_output():
    plain = build("mobilenetv2_050").eval()
    frozen = build("mobilenetv2_050", "MODEL.TIMM.NORM", "FrozenBN")
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in frozen.modules())
    frozen.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    expected = plain(images)["res5"]
    torch.testing.assert_close(frozen.train()(images)["res5"], expected)
    synced = build("mobilenetv2_050", "MODEL.TIMM.NORM", "SyncBN")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    assert not any(type(m) is nn.BatchNorm2d for m in synced.modules())


@torch.no_grad()
@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (5, 2, 1), (2, 2, 1), (3, 2, 2)])
def test_static_same_padding_is_timms(kernel, stride, dilation):
    conv = timm.layers.Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    images = torch.randn(1, 2, 16, 24)
    expected = conv(images)
    conv.__class__ = SameConv2d
    torch.testing.assert_close(conv(images), expected)
    assert any(isinstance(m, SameConv2d) for m in build("tf_efficientnet_lite0").modules())


@torch.no_grad()
def test_same_padding_is_exported_for_other_sizes():
    name = "tf_mobilenetv3_small_minimal_100"
    backbone = build(name).eval()
    height, width = (32 * torch.export.Dim(x, min=2, max=20) for x in ("rows", "columns"))
    shapes = {"x": {2: height, 3: width}}
    example = torch.randn(1, 3, 96, 128)
    exported = torch.export.export(backbone, (example,), dynamic_shapes=shapes).module()
    reference = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    reference.load_state_dict(backbone.network.state_dict())
    images = torch.randn(1, 3, 160, 64)
    for actual, expected in zip(exported(images).values(), reference(images)[-4:]):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_every_trainable_parameter_of_a_mimicdet_gets_a_gradient(norm):
    options = ["MODEL.TIMM.NAME", "mobilenetv2_050", "MODEL.TIMM.NORM", norm]
    model = small_model(*TIMM, *options)
    losses = model([make_input()])
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(loss) for loss in losses.values())
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all(
        "conv_stem" in n or "blocks.0." in n or "blocks.1." in n or "model.bn1" in n for n in frozen
    )  # FREEZE_AT 2


@pytest.mark.parametrize("base", ["RetinaNet", "FCOS", "ATSS", "GFL", "FasterRCNN-FPN"])
def test_other_detectors_take_it_by_the_same_key(base):
    file = REPOSITORY / "configs" / "Distillation" / f"Base-{base}.yaml"
    cfg = load_config(str(file), [*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_050"])
    backbone = build_backbone(cfg)
    assert backbone.bottom_up.timm_name == "mobilenetv2_050"
    levels = {"RetinaNet": "p7", "FCOS": "p7", "ATSS": "p7", "GFL": "p7"}
    assert list(backbone.output_shape())[-1] == levels.get(base, "p6")


def test_pixel_statistics_are_timms_unless_set():
    lite0 = small_cfg(*TIMM)
    assert lite0.MODEL.PIXEL_MEAN == lite0.MODEL.PIXEL_STD == [127.5] * 3
    assert lite0.INPUT.FORMAT == "RGB"
    mobilenet = small_cfg(*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_100")
    assert mobilenet.MODEL.PIXEL_MEAN == pytest.approx([123.675, 116.28, 103.53])
    assert mobilenet.MODEL.PIXEL_STD == pytest.approx([58.395, 57.12, 57.375])
    detectron2 = small_cfg()
    set_again = ["MODEL.PIXEL_MEAN", detectron2.MODEL.PIXEL_MEAN, "INPUT.FORMAT", "BGR"]
    some = small_cfg(*TIMM, *set_again)
    assert some.MODEL.PIXEL_MEAN == detectron2.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert some.INPUT.FORMAT == detectron2.INPUT.FORMAT == "BGR"
    assert some.MODEL.PIXEL_STD == [127.5] * 3
    assert detectron2.MODEL.PIXEL_STD == [1.0] * 3


def test_a_config_that_was_saved_stays_as_it_is(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(small_cfg(*TIMM).dump())
    assert load_config(str(file)).dump() == file.read_text()


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.TIMM.NAME", "tf_eficientnet_lite0"], "timm has no.*mean tf_efficientnet_lite0"),
        (["MODEL.TIMM.NAME", "tf_efficientnet_lite0.in2k"], "did you mean.*lite0.in1k"),
        (["MODEL.TIMM.OPTIONS", ["drop_path"]], "OPTIONS are pairs"),
        (["MODEL.TIMM.OPTIONS", ["depht", 3]], "unexpected keyword argument 'depht'"),
        (["MODEL.TIMM.OPTIONS", ["pretrained", True]], "pretrained"),
        (["MODEL.TIMM.NORM", "GN"], "MODEL.TIMM.NORM must be one of BN, FrozenBN, SyncBN"),
        (["MODEL.TIMM.OUT_FEATURES", ["res6"]], "must be one of res1.*res5, got 'res6'"),
        (["MODEL.TIMM.OUT_FEATURES", []], "OUT_FEATURES is empty"),
        (["MODEL.TIMM.NAME", "convnext_atto", "MODEL.BACKBONE.FREEZE_AT", 1], "no map of stride 2"),
        (["MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224"], "takes no image of 128 x 160"),
        (["MODEL.TIMM.NAME", "inception_v3"], "res1 of inception_v3 has the shape"),
        (["MODEL.TIMM.OUT_FEATURES", ["res3", "res4", "res5"]], "FPN.IN_FEATURES.*got 'res2'"),
        (["MODEL.TIMM.OPTIONS", ["output_stride", 16]], "OUT_FEATURES.*got 'res5'"),
        (["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4"]], "goes on to 32"),
        (["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res5"]], "twice the stride"),
        (
            [
                "MODEL.FPN.IN_FEATURES",
                ["res3", "res4"],
                "MODEL.TIMM.OUT_FEATURES",
                ["res3", "res4"],
            ],
            "P6 continues C5 of stride 32.*16",
        ),
        (["MODEL.PYRAMID.BOTTOM_UP", "build_tim_backbone"], "did you mean build_timm_backbone"),
        (["MODEL.PYRAMID.BOTTOM_UP", "build_staggered_fpn_backbone"], "there is no backbone"),
    ],
)
def test_contradictions_are_named(opts, words):
    with pytest.raises(ValueError, match=words):
        build_backbone(small_cfg(*TIMM, *opts))


def test_without_timm_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("mimicdet.utils.errors.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs timm: pip install timm"):
        small_cfg(*TIMM)
