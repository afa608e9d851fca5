"""
The backbone of FGFI's lightweight detector: a ShuffleNet of finer resolution (its 4.1).

ShuffleNet: Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices, CVPR 2018.

Not in the paper, which refers to a supplement: three groups, 240, 480 and 960 channels (ShuffleNet
1x with three groups), 768 channels and no shortcut in the last block. With these the three widths
have the paper's parameters.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ...utils.errors import UserError

STAGE_CHANNELS = (240, 480, 960)
STAGE_BLOCKS = (4, 6, 4)  # the original has 8 in its stage 3
ADDED_CHANNELS = (960, 768)
GROUPS = 3
STRIDE = 16  # of the last map: the stem's pooling and three stages halve it


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) -> the same channels, one of each group after the other."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """Grouped 1x1 conv, shuffle, 3x3 depthwise conv, grouped 1x1 conv, and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        stride: int = 1,
        group_first: bool = True,
        shortcut: bool = True,
    ):
        """
        Args:
            in_channels, out_channels: with stride 2 the input, pooled, is the first part of the
                output; with stride 1 it is added, and both must be equal.
            norm: behind each of the three convs.
            group_first: whether the first conv is grouped; it is not where the stem's few channels
                come in. The last conv is grouped where its output can be.
            shortcut: False: the block's output alone, with stride 1.
        """
        super().__init__()
        self.stride, self.has_shortcut = stride, shortcut
        middle = out_channels // 4
        added = out_channels - in_channels if stride == 2 else out_channels
        self.reduce = _conv(in_channels, middle, norm, groups=GROUPS if group_first else 1)
        self.spatial = _conv(middle, middle, norm, groups=middle, kernel=3, stride=stride)
        self.expand = _conv(middle, added, norm, groups=1 if added % GROUPS else GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        y = channel_shuffle(F.relu(self.reduce(x)), GROUPS)
        y = self.expand(self.spatial(y))
        if self.stride == 2:
            return torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), F.relu(y)], dim=1)
        return F.relu(x + y) if self.has_shortcut else F.relu(y)


def _conv(
    channels: int, out_channels: int, norm: str, groups: int, kernel: int = 1, stride: int = 1
) -> Conv2d:
    conv = Conv2d(
        channels,
        out_channels,
        kernel_size=kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    weight_init.c2_msra_fill(conv)
    return conv


class ShuffleNet(Backbone):
    """Stem of stride 1, three stages, two added blocks; one map of stride 16, "res4"."""

    def __init__(self, width: float, stem_channels: int, norm: str, freeze_at: int = 0):
        """
        Args:
            width: factor on the channels of all blocks: 1, 0.5 or 0.25.
            stem_channels: of the first conv (4.1: 16).
            norm: of all convs.
            freeze_at: 0 nothing, 1 the stem, 2 the first stage too, and so on.

        Raises:
            UserError: a width that leaves channels that the groups do not divide.
        """
        super().__init__()
        stages = [int(c * width) for c in STAGE_CHANNELS]
        added = [int(c * width) for c in ADDED_CHANNELS]
        if width <= 0 or any(c % (4 * GROUPS) for c in (*stages, *added)):
            raise UserError(
                f"MODEL.SHUFFLENET.WIDTH {width} gives blocks of {stages + added} channels, which "
                f"are not all multiples of {4 * GROUPS}"
            )
        self.stem = _conv(3, stem_channels, norm, groups=1, kernel=3)
        channels = stem_channels
        self.stages = nn.ModuleList()
        for index, (out_channels, count) in enumerate(zip(stages, STAGE_BLOCKS)):
            blocks = [ShuffleBlock(channels, out_channels, norm, 2, group_first=index > 0)]
            blocks += [ShuffleBlock(out_channels, out_channels, norm) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = out_channels
        self.added = nn.Sequential(
            ShuffleBlock(channels, added[0], norm),
            ShuffleBlock(added[0], added[1], norm, shortcut=False),
        )
        self._channels = added[1]
        for part in [self.stem, *self.stages][:freeze_at]:
            for parameter in part.parameters():
                parameter.requires_grad = False
            FrozenBatchNorm2d.convert_frozen_batchnorm(part)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, 3, H, W) normalised images -> {"res4": (N, C, H / 16, W / 16)}."""
        x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return {"res4": self.added(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res4": ShapeSpec(channels=self._channels, stride=STRIDE)}

    @property
    def size_divisibility(self) -> int:
        return STRIDE


@BACKBONE_REGISTRY.register()
def build_shufflenet_backbone(cfg, input_shape: ShapeSpec) -> ShuffleNet:
    """The backbone of MODEL.SHUFFLENET."""
    keys = cfg.MODEL.SHUFFLENET
    return ShuffleNet(keys.WIDTH, keys.STEM_CHANNELS, keys.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)
