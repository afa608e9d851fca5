"""Backbone with the staggered feature pyramid (3.1)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn

from ...utils.errors import UserError, check_choice, check_choices
from ..layers.separable import conv3x3
from .pyramid import build_bottom_up

_PLAIN_LEVELS = "MODEL.MIMICDET.FPN.PLAIN_LEVELS"


class StaggeredFPN(FPN):
    """
    Detectron2's FPN with P2..P7 in training and only what inference asks for in evaluation.

    In evaluation neither the lateral nor the output convolution of a level runs that is finer than
    every one of eval_out_features: P2 costs nothing (3.1).
    """

    def __init__(
        self,
        *args,
        eval_out_features: Sequence[str] | None = None,
        depthwise: bool = False,
        plain_levels: Sequence[str] = (),
        **kwargs,
    ):
        """
        Args:
            eval_out_features: names of the levels that evaluation reads; None: all. It can be set
                later, on the attribute of the same name.
            depthwise: the output convolutions are separable, see layers.conv3x3.
            plain_levels: names of levels without an output convolution.
            args, kwargs: see Detectron2's FPN.
        """
        super().__init__(*args, **kwargs)
        if self._fuse_type != "sum":
            raise UserError(f"StaggeredFPN adds levels up, got fuse_type {self._fuse_type!r}")
        self.eval_out_features = eval_out_features
        for level in self._out_features[: len(self.in_features)]:
            if level in plain_levels:
                self._set_output(level, nn.Identity())
            elif depthwise:
                norm = kwargs.get("norm", "")
                channels = self._out_feature_channels[level]
                self._set_output(level, conv3x3(channels, channels, depthwise=True, norm=norm))

    def _set_output(self, level: str, module: nn.Module) -> None:
        name = f"fpn_output{level[1:]}"
        self.output_convs[self.output_convs.index(getattr(self, name))] = module
        setattr(self, name, module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W) normalised images, H and W divisible by size_divisibility.

        Returns:
            maps by name, high to low resolution: (N, C, H / stride, W / stride).
        """
        requested = self._out_features if self.training else self.eval_out_features
        requested = set(self._out_features if requested is None else requested)
        bottom_up = self.bottom_up(x)
        results: dict[str, Tensor] = {}
        top_down = None
        # From low to high resolution; nothing below the finest level that is requested.
        names = self._out_features[: len(self.in_features)][::-1]
        finest = max(i for i, name in enumerate(names) if name in requested or i == 0)
        for name, feature, lateral, output in zip(
            names[: finest + 1], self.in_features[::-1], self.lateral_convs, self.output_convs
        ):
            lateral_features = lateral(bottom_up[feature])
            if top_down is not None:
                # To this level's size and not by a factor of 2, which is the same for sizes
                # divisible by size_divisibility: an exporter then has no equality to prove.
                lateral_features = lateral_features + F.interpolate(
                    top_down, size=lateral_features.shape[-2:], mode="nearest"
                )
            top_down = lateral_features
            if name in requested:
                results[name] = output(top_down)
        if self.top_block is not None:
            tops = self._out_features[len(self.in_features) :]
            top_in = bottom_up.get(self.top_block.in_feature)
            top_in = results[self.top_block.in_feature] if top_in is None else top_in
            results.update(zip(tops, self.top_block(top_in)))
        return {name: results[name] for name in self._out_features if name in results}


def _initialise_pyramid(fpn: FPN, method: str) -> None:
    check_choice("MODEL.MIMICDET.FPN.INIT", method, ("he", "xavier"))
    if method == "xavier":  # what Detectron2's FPN has done already
        return
    for name, module in fpn.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("bottom_up"):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_staggered_fpn_backbone(cfg, input_shape) -> StaggeredFPN:
    """
    The staggered pyramid on MODEL.PYRAMID.BOTTOM_UP: levels of MODEL.FPN.IN_FEATURES (P2..P5),
    P6 = 3x3 stride-2 conv on C5, P7 = the same on ReLU(P6) (3.1).

    A level that no head reads (P2 without a T-head) is not built: it would have parameters without
    gradients, which DistributedDataParallel refuses.

    Raises:
        UserError: the backbone lacks maps that the pyramid reads, or their strides do not fit.
    """
    bottom_up, shapes = build_bottom_up(cfg, input_shape)
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    if shapes[last].stride != 32:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES: P6 continues C5 of stride 32, but the last of "
            f"{list(cfg.MODEL.FPN.IN_FEATURES)} has stride {shapes[last].stride}"
        )
    used = list(cfg.MODEL.RPN.IN_FEATURES)  # levels that some part of the model reads
    if cfg.MODEL.MIMICDET.STUDENT.ENABLED:
        used += cfg.MODEL.MIMICDET.STUDENT.IN_FEATURES
    if cfg.MODEL.MIMICDET.TEACHER.ENABLED:
        used += cfg.MODEL.ROI_HEADS.IN_FEATURES
    levels = [f"p{int(math.log2(shapes[name].stride))}" for name in cfg.MODEL.FPN.IN_FEATURES]
    finest = next((i for i, level in enumerate(levels) if level in used), len(levels))
    in_features = cfg.MODEL.FPN.IN_FEATURES[finest:]
    if not in_features:
        raise UserError(
            f"MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES {used} use no level of "
            f"MODEL.FPN.IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)}"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    check_choices(_PLAIN_LEVELS, cfg.MODEL.MIMICDET.FPN.PLAIN_LEVELS, levels)
    fpn = StaggeredFPN(
        bottom_up,
        in_features,
        channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(shapes[last].channels, channels, last),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        depthwise=cfg.MODEL.MIMICDET.DEPTHWISE,
        plain_levels=cfg.MODEL.MIMICDET.FPN.PLAIN_LEVELS,
    )
    _initialise_pyramid(fpn, cfg.MODEL.MIMICDET.FPN.INIT)
    return fpn


@BACKBONE_REGISTRY.register()
def build_resnet_staggered_fpn_backbone(cfg, input_shape) -> StaggeredFPN:
    """build_staggered_fpn_backbone by another name, which configs and checkpoints may hold."""
    return build_staggered_fpn_backbone(cfg, input_shape)
