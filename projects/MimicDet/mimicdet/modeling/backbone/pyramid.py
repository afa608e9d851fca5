"""A feature pyramid on any registered backbone."""

from collections.abc import Iterable, Mapping, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ...utils.errors import UserError, check_choice, check_choices, near_names

# Builders of pyramids, which MODEL.PYRAMID.BOTTOM_UP cannot name.
PYRAMIDS = (
    "build_pyramid_backbone",
    "build_staggered_fpn_backbone",
    "build_resnet_staggered_fpn_backbone",
)
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


def bottom_up_prefix(names: Iterable[str]) -> str:
    """How a model's names of the network below its pyramid begin; of all its backbone without."""
    pyramid = any(name.startswith("backbone.bottom_up.") for name in names)
    return "backbone.bottom_up." if pyramid else "backbone."


def anchor_scales(cfg, levels: Sequence[ShapeSpec]) -> list[float]:
    """Side of each level's anchors in its strides, by MODEL.ANCHOR_GENERATOR.SIZES."""
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    sizes = list(sizes) * len(levels) if len(sizes) == 1 else sizes
    return [size[0] / level.stride for size, level in zip(sizes, levels)]


def build_bottom_up(cfg, input_shape: ShapeSpec) -> tuple[Backbone, dict[str, ShapeSpec]]:
    """
    The backbone of MODEL.PYRAMID.BOTTOM_UP and the shapes of its maps.

    Raises:
        UserError: unknown names, a pyramid, or maps that the pyramid cannot read.
    """
    name, in_features = cfg.MODEL.PYRAMID.BOTTOM_UP, cfg.MODEL.FPN.IN_FEATURES
    known = [builder for builder, _ in BACKBONE_REGISTRY if builder not in PYRAMIDS]
    if name not in known:
        raise UserError(
            f"MODEL.PYRAMID.BOTTOM_UP: there is no backbone {name!r}{near_names(name, known)}"
        )
    bottom_up = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    shapes = bottom_up.output_shape()
    what = f"MODEL.FPN.IN_FEATURES (OUT_FEATURES of {name})"
    strides = [level.stride for level in level_shapes(what, in_features, shapes)]
    if not strides or any(b != 2 * a for a, b in zip(strides, strides[1:])):
        raise UserError(f"{what}: each must have twice the stride of the one before, got {strides}")
    divisor = bottom_up.size_divisibility
    if divisor and strides[-1] % divisor:
        raise UserError(
            f"{what} end at stride {strides[-1]}, but the backbone goes on to {divisor}: take the "
            "maps that no level reads out of OUT_FEATURES"
        )
    return bottom_up, shapes


@BACKBONE_REGISTRY.register()
def build_pyramid_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Detectron2's FPN on MODEL.PYRAMID.BOTTOM_UP, with MODEL.PYRAMID.EXTRA_LEVELS above.

    With build_resnet_backbone and "conv_on_c5" it is Detectron2's
    build_retinanet_resnet_fpn_backbone; "maxpool" is its build_resnet_fpn_backbone.

    Raises:
        UserError: unknown names, or a backbone without the maps that the pyramid reads.
    """
    bottom_up, shapes = build_bottom_up(cfg, input_shape)
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
