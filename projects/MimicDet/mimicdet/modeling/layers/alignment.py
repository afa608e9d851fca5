"""
The S-head's alignment layers: the designs of the paper's Table 2, under one interface.

A layer is written once, over a LevelReader: how the maps are read (whole maps, some locations of
many maps, a graph of fixed shapes) is the reader's business, so that a layer runs dense, sparse and
exported, and can be drawn, without a word of its own about any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import UserError, check_choice

_AT_BOXES = "MODEL.MIMICDET.STUDENT.OFFSET_INIT 'box' or 'edges'"


class LevelReader(Protocol):
    """The maps that a layer runs on, at the requested locations: (...) stands for their shape."""

    @property
    def guidance(self) -> Tensor:
        """(..., 4) float: the refinement module's deltas at the locations."""

    def conv(self, conv: nn.Conv2d, offsets: Tensor | None = None) -> Tensor:
        """
        A convolution of stride 1 and "same" padding at the locations.

        Args:
            conv: of k x k, on the maps' channels.
            offsets: (..., 2 * k * k) in strides of the level, (dy, dx) for each kernel point,
                row-major; None: no offsets. Points outside the map read as zero.

        Returns:
            (..., O).
        """


@dataclass(frozen=True)
class AlignmentSettings:
    """What the alignment layers of all levels have in common."""

    name: str  # of ALIGNMENTS
    kernel_sizes: tuple[int, ...]  # of each level; levels of equal kernel share one layer (3.3)
    dim: int  # channels of the output
    offset_dims: tuple[int, ...] = (64, 128)  # hidden channels of the guided offsets
    offset_init: str = "random"  # where guided points start: "box", "edges": see start_at_box
    anchor_sizes: tuple[float, ...] = ()  # side of each level's anchors in strides
    delta_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # of the refinement module's deltas

    @property
    def layer_names(self) -> list[str]:
        """The name, in the S-head's state_dict, of each level's layer."""
        return [f"k{kernel}" for kernel in self.kernel_sizes]


ALIGNMENTS: dict[str, type["AlignmentLayer"]] = {}


def register_alignment(name: str) -> Callable[[type["AlignmentLayer"]], type["AlignmentLayer"]]:
    """Decorator: MODEL.MIMICDET.STUDENT.ALIGNMENT can name the class from now on."""

    def register(layer: type[AlignmentLayer]) -> type[AlignmentLayer]:
        ALIGNMENTS[name] = layer
        return layer

    return register


class AlignmentLayer(nn.Module):
    """
    A k x k convolution at the requested locations, its points moved by offsets.

    A subclass says where the points go in `offsets`, or computes something else in `forward`. It
    is constructed as cls(in_channels, kernel_size, settings).
    """

    def __init__(self, in_channels: int, kernel_size: int, settings: AlignmentSettings):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, settings.dim, kernel_size, padding=kernel_size // 2)

    def forward(self, reader: LevelReader) -> Tensor:
        """(..., dim) aligned features, before the activation."""
        return reader.conv(self.conv, self.offsets(reader))

    def offsets(self, reader: LevelReader) -> Tensor | None:
        """(..., 2 * k * k) offsets in strides, in float32; None: the points stay."""
        return None

    def hidden_layers(self) -> list[nn.Conv2d]:
        """The convolutions that a ReLU follows; the last one of the offsets is none of them."""
        return [self.conv]

    def start_at_box(
        self, anchor_size: float, delta_weights: Sequence[float], to_edges: bool = False
    ) -> None:
        """Let the points start on a grid over the adjusted anchor box, where the layer can."""
        raise UserError(f"{_AT_BOXES} needs ALIGNMENT 'guided'")


@register_alignment("conv")
class ConvAlignment(AlignmentLayer):
    """Table 2 (a): a plain k x k convolution; the guidance is not used."""


@register_alignment("deform")
class DeformAlignment(AlignmentLayer):
    """Table 2 (b): a deformable convolution whose offsets come from the features themselves."""

    def __init__(self, in_channels: int, kernel_size: int, settings: AlignmentSettings):
        super().__init__(in_channels, kernel_size, settings)
        self.offset = nn.Conv2d(
            in_channels, 2 * kernel_size**2, kernel_size, padding=kernel_size // 2
        )

    def offsets(self, reader: LevelReader) -> Tensor:
        with torch.autocast(self.offset.weight.device.type, enabled=False):  # places need digits
            return reader.conv(self.offset)


@register_alignment("guided")
class GuidedAlignment(DeformAlignment):
    """
    Table 2 (c), (d): guided deformable convolution. A micro-network of three 1x1 convs computes the
    offsets from the refinement module's deltas at that location (3.3).
    """

    def __init__(self, in_channels: int, kernel_size: int, settings: AlignmentSettings):
        super().__init__(in_channels, kernel_size, settings)
        layers, channels = [], 4
        for dim in settings.offset_dims:
            layers += [Conv2d(channels, dim, 1, activation=nn.ReLU())]
            channels = dim
        self.offset = nn.Sequential(*layers, Conv2d(channels, 2 * kernel_size**2, 1))

    def offsets(self, reader: LevelReader) -> Tensor:
        guidance = reader.guidance
        with torch.autocast(guidance.device.type, enabled=False):
            x = guidance.to(self.conv.weight.dtype)
            for layer in self.offset:  # 1x1 convs: linear on each location
                x = F.linear(x, layer.weight.flatten(1), layer.bias)
                x = x if layer.activation is None else layer.activation(x)
            return x

    def hidden_layers(self) -> list[nn.Conv2d]:
        return [self.conv, *self.offset[:-1]]

    @torch.no_grad()
    def start_at_box(
        self, anchor_size: float, delta_weights: Sequence[float], to_edges: bool = False
    ) -> None:
        """
        Let the k x k points start on a regular grid over the adjusted anchor box, instead of around
        the anchor's centre. Not in the paper.

        To first order in the deltas the offsets that do this are linear, and the micro-network can
        hold a linear map: its first eight hidden units carry the deltas' positive and negative
        parts. All weights stay free to train.

        Args:
            anchor_size: side of the level's anchors in units of the stride.
            delta_weights: the (x, y, w, h) weights of the refinement module's parametrisation.
            to_edges: the outer points lie on the edges of the box; else each point is the centre of
                one of k x k equal parts of the box, as RoIAlign would lay it.
        """
        *hidden, last = self.offset
        if min(layer.out_channels for layer in hidden) < 8:
            raise UserError(f"{_AT_BOXES} needs OFFSET_DIMS of at least 8")
        signs = torch.tensor([1.0, -1.0])
        first = torch.kron(torch.eye(4), signs[:, None])  # (8, 4)
        for layer, weight in zip(hidden, [first] + [torch.eye(8)] * (len(hidden) - 1)):
            layer.weight[:8] = 0
            layer.weight[:8, : weight.shape[1], 0, 0] = weight
        k = self.conv.kernel_size[0]
        spacing = anchor_size / max(k - 1 if to_edges else k, 1)
        steps = torch.arange(k) - k // 2
        linear = torch.zeros(k, k, 2, 4)  # d(dy, dx) of each point by d(x, y, w, h)
        linear[..., 0, 1] = linear[..., 1, 0] = anchor_size
        linear[..., 0, 3] = steps[:, None] * spacing
        linear[..., 1, 2] = steps[None, :] * spacing
        linear = linear.flatten(0, 2) / torch.tensor(delta_weights)
        last.weight[:, :8, 0, 0] = torch.kron(linear, signs[None])
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
        last.bias.copy_((grid * (spacing - 1)).flatten())


def build_alignments(in_channels: int, settings: AlignmentSettings) -> nn.ModuleDict:
    """
    The alignment layers by AlignmentSettings.layer_names, one for each kernel size.

    Raises:
        UserError: an unknown name, or an even kernel.
    """
    check_choice("MODEL.MIMICDET.STUDENT.ALIGNMENT", settings.name, sorted(ALIGNMENTS))
    even = [kernel for kernel in settings.kernel_sizes if kernel % 2 == 0]
    if even:
        raise UserError(f"MODEL.MIMICDET.STUDENT.KERNEL_SIZES must be odd numbers, got {even[0]}")
    layer = ALIGNMENTS[settings.name]
    kernels = sorted(set(settings.kernel_sizes))
    return nn.ModuleDict({f"k{k}": layer(in_channels, k, settings) for k in kernels})


def start_at_boxes(alignments: nn.ModuleDict, settings: AlignmentSettings) -> None:
    """
    Call start_at_box of every layer.

    Raises:
        UserError: a layer that cannot, or levels of one layer whose anchors differ in strides.
    """
    for name, layer in alignments.items():
        sizes = {s for s, own in zip(settings.anchor_sizes, settings.layer_names) if own == name}
        if len(sizes) != 1:
            raise UserError(
                f"{_AT_BOXES} needs levels of one kernel whose anchors are alike in strides, "
                f"got {sorted(sizes)}"
            )
        to_edges = settings.offset_init == "edges"
        layer.start_at_box(sizes.pop(), settings.delta_weights, to_edges)
