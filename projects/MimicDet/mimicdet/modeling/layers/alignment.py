"""The S-head's alignment layers: the designs of the paper's Table 2, under one interface."""

from collections.abc import Sequence

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .deform_conv import deform_conv2d
from .linear import linear
from .sparse_conv import Places, conv_at


class ConvAlignment(nn.Module):
    """Table 2 (a): a plain k x k convolution; the guidance is not used."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W) features of one level.
            guidance: (N, 4, H, W) deltas of the refinement module at the same positions.

        Returns:
            (N, O, H, W) aligned features, before the activation.
        """
        return self.conv(x)

    def at(self, rows: Tensor, guidance: Tensor, places: Places) -> Tensor:
        """
        The same at M positions only.

        Args:
            rows: the features of all levels that share the layer, see sparse_conv.pyramid_rows.
            guidance: (M, 4) deltas at the positions.
            places: where the positions lie in the rows.

        Returns:
            (M, O), before the activation.
        """
        offsets = self.offsets_at(rows, guidance, places)
        return conv_at(rows, places, offsets, self.conv.weight, self.conv.bias)

    def offsets_at(self, rows: Tensor, guidance: Tensor, places: Places) -> Tensor | None:
        """(M, 2 * k * k) offsets at M positions, in pixels of their map; None: the points stay."""
        return None

    def hidden_layers(self) -> list[nn.Conv2d]:
        """The convolutions that a ReLU follows; the last one of the offsets is none of them."""
        return [self.conv]


class DeformAlignment(ConvAlignment):
    """Table 2 (b): a deformable convolution whose offsets come from the features themselves."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)
        self.offset = nn.Conv2d(
            in_channels, 2 * kernel_size**2, kernel_size, padding=kernel_size // 2
        )

    def offsets(self, x: Tensor, guidance: Tensor) -> Tensor:
        """(N, 2 * k * k, H, W) offsets in pixels of x, (dy, dx) for each kernel point."""
        with torch.autocast(x.device.type, enabled=False):  # places need the digits
            return self.offset(x.to(self.offset.weight.dtype))

    def offsets_at(self, rows: Tensor, guidance: Tensor, places: Places) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(self.offset.weight.dtype)
            return conv_at(rows, places, None, self.offset.weight, self.offset.bias)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return deform_conv2d(x, self.offsets(x, guidance), self.conv.weight, self.conv.bias)


class GuidedAlignment(DeformAlignment):
    """
    Table 2 (c), (d): guided deformable convolution. A micro-network of three 1x1 convs computes the
    offsets from the refinement module's deltas at that position (3.3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        offset_dims: Sequence[int] = (64, 128),
    ):
        super().__init__(in_channels, out_channels, kernel_size)
        layers, channels = [], 4
        for dim in offset_dims:
            layers += [Conv2d(channels, dim, 1, activation=nn.ReLU())]
            channels = dim
        self.offset = nn.Sequential(*layers, Conv2d(channels, 2 * kernel_size**2, 1))

    def offsets(self, x: Tensor, guidance: Tensor) -> Tensor:
        with torch.autocast(guidance.device.type, enabled=False):
            return self.offset(guidance.to(self.conv.weight.dtype))

    def offsets_at(self, rows: Tensor, guidance: Tensor, places: Places) -> Tensor:
        with torch.autocast(guidance.device.type, enabled=False):
            x = guidance.to(self.conv.weight.dtype)
            for layer in self.offset:
                x = linear(x, layer.weight.flatten(1), layer.bias)
                x = x if layer.activation is None else layer.activation(x)
            return x

    def hidden_layers(self) -> list[nn.Conv2d]:
        return [self.conv, *self.offset[:-1]]

    @torch.no_grad()
    def start_at_box(self, anchor_size: float, delta_weights: Sequence[float]) -> None:
        """
        Let the k x k points start on a regular grid over the adjusted anchor box, as RoIAlign would
        lay it, instead of around the anchor's centre. Not in the paper.

        To first order in the deltas the offsets that do this are linear, and the micro-network can
        hold a linear map: its first eight hidden units carry the deltas' positive and negative
        parts. All weights stay free to train.

        Args:
            anchor_size: side of the level's anchors in units of the stride.
            delta_weights: the (x, y, w, h) weights of the refinement module's parametrisation.
        """
        *hidden, last = self.offset
        if min(layer.out_channels for layer in hidden) < 8:
            raise ValueError(
                "MODEL.MIMICDET.STUDENT.OFFSET_INIT 'box' needs OFFSET_DIMS of at least 8"
            )
        signs = torch.tensor([1.0, -1.0])
        first = torch.kron(torch.eye(4), signs[:, None])  # (8, 4)
        for layer, weight in zip(hidden, [first] + [torch.eye(8)] * (len(hidden) - 1)):
            layer.weight[:8] = 0
            layer.weight[:8, : weight.shape[1], 0, 0] = weight
        k = self.conv.kernel_size[0]
        steps = torch.arange(k) - k // 2
        linear = torch.zeros(k, k, 2, 4)  # d(dy, dx) of each point by d(x, y, w, h)
        linear[..., 0, 1] = linear[..., 1, 0] = anchor_size
        linear[..., 0, 3] = steps[:, None] * anchor_size / k
        linear[..., 1, 2] = steps[None, :] * anchor_size / k
        linear = linear.flatten(0, 2) / torch.tensor(delta_weights)
        last.weight[:, :8, 0, 0] = torch.kron(linear, signs[None])
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
        last.bias.copy_((grid * (anchor_size / k - 1)).flatten())


ALIGNMENTS: dict[str, type[ConvAlignment]] = {
    "conv": ConvAlignment,
    "deform": DeformAlignment,
    "guided": GuidedAlignment,
}


def build_alignment(
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    offset_dims: Sequence[int] = (64, 128),
) -> ConvAlignment:
    """One alignment layer by name; ValueError for an unknown name or an even kernel."""
    if name not in ALIGNMENTS:
        raise ValueError(
            f"MODEL.MIMICDET.STUDENT.ALIGNMENT is {name!r}; it must be one of {sorted(ALIGNMENTS)}"
        )
    if kernel_size % 2 == 0:
        raise ValueError(
            f"MODEL.MIMICDET.STUDENT.KERNEL_SIZES must be odd numbers, got {kernel_size}"
        )
    if name == "guided":
        return GuidedAlignment(in_channels, out_channels, kernel_size, offset_dims)
    return ALIGNMENTS[name](in_channels, out_channels, kernel_size)
