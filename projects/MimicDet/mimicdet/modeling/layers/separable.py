"""The 3x3 convolution of pyramid and refinement module, dense or separable."""

from collections.abc import Callable

from detectron2.layers import Conv2d, DepthwiseSeparableConv2d, get_norm
from torch import Tensor, nn


def conv3x3(
    in_channels: int,
    out_channels: int,
    *,
    depthwise: bool,
    norm: str = "",
    activation: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """
    A 3x3 convolution that keeps the map's size.

    Args:
        depthwise: as a depthwise 3x3 convolution and a 1x1 convolution (Xception's, MobileNet's):
            a ninth to an eighth of the work where channels are many.
        norm: behind it, a name of Detectron2's get_norm; activation: behind the norm.
    """
    if depthwise:
        return DepthwiseSeparableConv2d(
            in_channels, out_channels, norm2=norm, activation2=activation
        )
    return Conv2d(
        in_channels,
        out_channels,
        3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
