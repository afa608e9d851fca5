"""A feature pyramid on any registered backbone."""

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ...utils.errors import UserError, check_choice, check_choices

EXTRA_LEVELS = ("none", "maxpool", "conv_on_c5", "conv_on_p5")


def level_shapes(
    key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec]
) -> list[ShapeSpec]:
    """
    The shapes of the named levels of a backbone.

    Args:
        key: of the config, which gave the names.

    Raises:
        UserError: a level that the backbone lacks, or levels that do not go from fine to coarse.
    """
    check_choices(key, names, shapes)
    levels = [shapes[name] for name in names]
    if any(b.stride <= a.stride for a, b in zip(levels, levels[1:])):
        raise UserError(f"{key} {list(names)} must go from fine to coarse, each level once")
    return levels


def anchor_scales(cfg, levels: Sequence[ShapeSpec]) -> list[float]:
    """Side of each level's anchors in its strides, by MODEL.ANCHOR_GENERATOR.SIZES."""
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    sizes = list(sizes) * len(levels) if len(sizes) == 1 else sizes
    return [size[0] / level.stride for size, level in zip(sizes, levels)]


@BACKBONE_REGISTRY.register()
def build_pyramid_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Detectron2's FPN on MODEL.PYRAMID.BOTTOM_UP, with MODEL.PYRAMID.EXTRA_LEVELS above.

    With build_resnet_backbone and "conv_on_c5" it is Detectron2's
    build_retinanet_resnet_fpn_backbone; "maxpool" is its build_resnet_fpn_backbone.

    Raises:
        UserError: unknown names, or a backbone without the maps that the pyramid reads.
    """
    keys = cfg.MODEL.PYRAMID
    if keys.BOTTOM_UP not in BACKBONE_REGISTRY or keys.BOTTOM_UP == "build_pyramid_backbone":
        raise UserError(f"MODEL.PYRAMID.BOTTOM_UP: there is no backbone {keys.BOTTOM_UP!r}")
    bottom_up = BACKBONE_REGISTRY.get(keys.BOTTOM_UP)(cfg, input_shape)
    shapes = bottom_up.output_shape()
    what = f"MODEL.FPN.IN_FEATURES (OUT_FEATURES of {keys.BOTTOM_UP})"
    check_choices(what, cfg.MODEL.FPN.IN_FEATURES, shapes)
    return FPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_extra_levels(cfg, shapes),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _extra_levels(cfg, shapes: dict[str, ShapeSpec]) -> nn.Module | None:
    name, channels = cfg.MODEL.PYRAMID.EXTRA_LEVELS, cfg.MODEL.FPN.OUT_CHANNELS
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    check_choice("MODEL.PYRAMID.EXTRA_LEVELS", name, EXTRA_LEVELS)
    if name != "none" and shapes[last].stride != 32:
        raise UserError(
            f"MODEL.PYRAMID.EXTRA_LEVELS {name!r} continues P5, but the last of "
            f"MODEL.FPN.IN_FEATURES is {last!r} of stride {shapes[last].stride}"
        )
    if name == "maxpool":
        return LastLevelMaxPool()
    if name == "conv_on_c5":
        return LastLevelP6P7(shapes[last].channels, channels, last)
    if name == "conv_on_p5":
        return LastLevelP6P7(channels, channels, "p5")
    return None
