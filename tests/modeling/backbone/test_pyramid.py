"""The pyramid on any backbone."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from mimicdet.config import load_config

IMAGE = ShapeSpec(channels=3)
ALL = ["res2", "res3", "res4", "res5"]


def cfg_of(name: str, *opts: object) -> CfgNode:
    builder = ["MODEL.BACKBONE.NAME", f"build_{name}_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
    return load_config("", [*builder, "MODEL.RESNETS.OUT_FEATURES", ALL, *opts])


def build_on_meta(name: str, *opts: object) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(cfg_of(name, *opts), IMAGE)


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
        ("conv_on_c5", "p3 p4 p5 p6 p7", 2048),
        ("conv_on_p5", "p3 p4 p5 p6 p7", 256),
    ],
)
def test_extra_levels(extra, levels, p6_input):
    backbone = pyramid("MODEL.PYRAMID.EXTRA_LEVELS", extra)
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
            ["MODEL.PYRAMID.BOTTOM_UP", "build_vgg_backbone"],
            "no backbone 'build_vgg_backbone'; did you mean build_timm_backbone",
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
