"""MobileNetV2 and VGG as Detectron2 backbones, and the pyramid on any of them."""

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from mimicdet.config import load_config

IMAGE = ShapeSpec(channels=3)
ALL = ["res2", "res3", "res4", "res5"]


def cfg_of(name: str, *opts: object) -> CfgNode:
    builder = ["MODEL.BACKBONE.NAME", f"build_{name}_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
    everything = ["MODEL.MOBILENET_V2.OUT_FEATURES", ALL, "MODEL.VGG.OUT_FEATURES", ALL]
    return load_config("", [*builder, *everything, "MODEL.RESNETS.OUT_FEATURES", ALL, *opts])


def build(name: str, *opts: object) -> nn.Module:
    return build_backbone(cfg_of(name, *opts), IMAGE)


def build_on_meta(name: str, *opts: object) -> nn.Module:
    with torch.device("meta"):
        return build(name, *opts)


@pytest.mark.parametrize(
    "name, opts, channels",
    [
        ("mobilenet_v2", ["MODEL.MOBILENET_V2.WIDTH", 1.0], [24, 32, 96, 320]),
        ("mobilenet_v2", ["MODEL.MOBILENET_V2.WIDTH", 0.5], [16, 16, 48, 160]),
        ("vgg", ["MODEL.VGG.DEPTH", 11], [256, 512, 512, 512]),
        ("vgg", ["MODEL.VGG.DEPTH", 16], [256, 512, 512, 512]),
        ("vgg", ["MODEL.VGG.DEPTH", 11, "MODEL.VGG.NORM", "BN"], [256, 512, 512, 512]),
    ],
)
def test_maps_are_as_large_as_they_say(name, opts, channels):
    backbone = build_on_meta(name, *opts)
    with torch.device("meta"):
        maps = backbone(torch.zeros(1, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(maps) == list(shapes) == ALL
    assert [shapes[n].channels for n in ALL] == channels
    assert [shapes[n].stride for n in ALL] == [4, 8, 16, 32]
    for n in ALL:
        stride = shapes[n].stride
        assert maps[n].shape == (1, shapes[n].channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    "name, opts, network",
    [
        ("mobilenet_v2", [], "mobilenet_v2"),
        ("vgg", ["MODEL.VGG.DEPTH", 11], "vgg11"),
        ("vgg", ["MODEL.VGG.DEPTH", 16], "vgg16"),
        ("vgg", ["MODEL.VGG.DEPTH", 16, "MODEL.VGG.NORM", "BN"], "vgg16_bn"),
    ],
)
def test_parameters_are_torchvisions(name, opts, network):
    """Same names and shapes, so its weights load; nothing is missing but what comes after res5."""
    with torch.device("meta"):
        source = torchvision.models.get_model(network, weights=None).state_dict()
    unused = ("classifier.", "features.18.") if name == "mobilenet_v2" else ("classifier.",)
    expected_shapes = {k: v.shape for k, v in source.items() if not k.startswith(unused)}
    built = {k: v.shape for k, v in build_on_meta(name, *opts).state_dict().items()}
    assert built == expected_shapes


def test_maps_are_torchvisions():
    torch.manual_seed(0)
    source = torchvision.models.mobilenet_v2(width_mult=0.5).eval()
    backbone = build("mobilenet_v2", "MODEL.MOBILENET_V2.WIDTH", 0.5).eval()
    backbone.load_state_dict(source.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, expected = backbone(images), images
        for layer in source.features[:18]:
            expected = layer(expected)
    torch.testing.assert_close(maps["res5"], expected)


def test_layers_behind_the_last_map_are_left_out():
    few = build_on_meta("vgg", "MODEL.VGG.OUT_FEATURES", ["res4"])
    assert list(few.output_shape()) == ["res4"]
    assert not isinstance(few.features[-1], nn.MaxPool2d)
    few = build_on_meta("mobilenet_v2", "MODEL.MOBILENET_V2.OUT_FEATURES", ["res2", "res3"])
    assert len(few.features) == 7


@pytest.mark.parametrize("name, freeze_at, length", [("vgg", 1, 10), ("mobilenet_v2", 2, 4)])
def test_freezing_freezes_whole_stages(name, freeze_at, length):
    backbone = build_on_meta(name, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    for index, layer in enumerate(backbone.features):
        assert all(p.requires_grad == (index >= length) for p in layer.parameters())
        norms = [m for m in layer.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
        assert all(isinstance(m, FrozenBatchNorm2d) == (index < length) for m in norms)


def test_frozen_batch_norm_is_a_choice():
    backbone = build("mobilenet_v2", "MODEL.MOBILENET_V2.NORM", "FrozenBN")
    norms = [type(m) for m in backbone.modules() if "BatchNorm" in type(m).__name__]
    assert set(norms) == {FrozenBatchNorm2d}


# ---------------------------------------------------------------- the pyramid


def pyramid(*opts: object) -> nn.Module:
    names = ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    return build_on_meta("pyramid", *names, *opts)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


def test_on_c5_it_is_detectron2s_retinanet_backbone():
    with torch.device("meta"):
        cfg = cfg_of("retinanet_resnet_fpn", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
        reference = build_backbone(cfg, IMAGE)
    assert shapes_of(pyramid("MODEL.PYRAMID.EXTRA_LEVELS", "conv_on_c5")) == shapes_of(reference)


@pytest.mark.parametrize(
    "extra, levels, p6_input",
    [
        ("none", "p3 p4 p5", None),
        ("maxpool", "p3 p4 p5 p6", None),
        ("conv_on_c5", "p3 p4 p5 p6 p7", 320),
        ("conv_on_p5", "p3 p4 p5 p6 p7", 256),
    ],
)
def test_extra_levels(extra, levels, p6_input):
    bottom_up = ["MODEL.PYRAMID.BOTTOM_UP", "build_mobilenet_v2_backbone"]
    backbone = pyramid(*bottom_up, "MODEL.PYRAMID.EXTRA_LEVELS", extra)
    with torch.device("meta"):
        maps = backbone(torch.zeros(1, 3, 128, 256))
    assert list(maps) == levels.split()
    for name, value in maps.items():
        stride = 2 ** int(name[1])
        assert value.shape == (1, 256, 128 // stride, 256 // stride)
    if p6_input:
        assert backbone.top_block.p6.in_channels == p6_input


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.PYRAMID.EXTRA_LEVELS", "p8"],
            "EXTRA_LEVELS must be one of none, maxpool, .*, got 'p8'",
        ),
        (["MODEL.PYRAMID.BOTTOM_UP", "resnet"], "there is no backbone 'resnet'"),
        (["MODEL.PYRAMID.BOTTOM_UP", "build_pyramid_backbone"], "there is no backbone"),
        (
            ["MODEL.RESNETS.OUT_FEATURES", ["res5"]],
            r"IN_FEATURES .* must be one of res5, got 'res3', 'res4'",
        ),
        (["MODEL.FPN.IN_FEATURES", ["res3", "res4"]], "'res4' of stride 16"),
        (
            ["MODEL.PYRAMID.BOTTOM_UP", "build_vgg_backbone", "MODEL.VGG.DEPTH", 12],
            "MODEL.VGG.DEPTH must be one of 11, 13, 16, 19, got 12",
        ),
        (
            ["MODEL.PYRAMID.BOTTOM_UP", "build_vgg_backbone", "MODEL.VGG.OUT_FEATURES", ["conv5"]],
            "OUT_FEATURES must be some of .*conv5",
        ),
    ],
)
def test_wrong_settings_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        pyramid(*opts)


def test_half_a_resnet_by_keys_alone():
    half = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 128]
    half += ["MODEL.RESNETS.WIDTH_PER_GROUP", 32]
    whole, halved = shapes_of(build_on_meta("resnet")), shapes_of(build_on_meta("resnet", *half))
    assert list(whole) == list(halved)
    for key, shape in whole.items():
        images_in = key.startswith("stem.conv1.weight")
        expected = [n if i > 1 or (i == 1 and images_in) else n // 2 for i, n in enumerate(shape)]
        assert list(halved[key]) == expected, key
