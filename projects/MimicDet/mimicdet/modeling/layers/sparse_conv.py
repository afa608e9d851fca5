"""
Convolution, plain or deformable, at some locations only: the same numbers as the dense operator,
since a deformable convolution at a point is a bilinear sample of its k * k points times a matrix.

The maps of all levels that share a layer lie below each other as *rows*, channels last: one row a
location, images first, then levels, row-major inside a level. A bilinear sample is then a weighted
sum of four rows, whichever image, level and point it belongs to, and torch's embedding_bag is just
that sum, so that ragged numbers of locations need neither padding nor a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from fvcore.nn.jit_handles import get_shape
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .flops import register_flops
from .precision import at_least_float32

# Sampled values (locations * points * channels) that are held at a time: 128 MiB in float32.
MAX_SAMPLED_VALUES = 2**25


@dataclass(frozen=True)
class Places:
    """Where M locations lie in the rows of a pyramid; all fields (M,) int64."""

    first_row: Tensor  # the row of their map's top left pixel
    y: Tensor  # in strides of their level
    x: Tensor
    height: Tensor  # of their map
    width: Tensor
    scale: Tensor  # pixels of their map in a stride

    def __len__(self) -> int:
        return len(self.y)

    def split(self, size: int) -> list["Places"]:
        """Parts of at most `size` locations; at least one part."""
        parts = [getattr(self, field.name).split(size) for field in fields(self)]
        return [Places(*part) for part in zip(*parts)]


@dataclass(frozen=True)
class RowLayout:
    """Where the locations of L levels lie in the rows of some levels' maps, as (L,) tables."""

    ends: Tensor  # locations of the level and of all before it
    starts: Tensor  # locations before the level
    columns: Tensor  # locations in a line of the level
    heights: Tensor  # of the level's map
    widths: Tensor
    scales: Tensor  # pixels of its map in a stride
    first_rows: Tensor  # the map's first row in an image; meaningless where it has no rows
    rows_per_image: int

    @staticmethod
    @lru_cache(maxsize=64)
    def of(
        sizes: tuple[tuple[int, int], ...],
        levels: tuple[int, ...],
        device: torch.device,
        map_sizes: tuple[tuple[int, int], ...] = (),
        scales: tuple[int, ...] = (),
    ) -> "RowLayout":
        """
        Kept for the sizes that come again: a copy to a GPU makes the CPU wait.

        Args:
            sizes: (height, width) of each of the L levels; levels: those that have rows.
            map_sizes, scales: of each level's map, and its pixels in a stride of the level; empty:
                a location is a pixel.
        """
        table, location, row = [], 0, 0
        maps = zip(map_sizes or sizes, scales or (1,) * len(sizes))
        for level, ((lines, columns), ((height, width), scale)) in enumerate(zip(sizes, maps)):
            # Not "+=": under tracing these are tensors, which the table would see change.
            end = location + lines * columns
            table.append((end, location, columns, height, width, scale, row))
            location = end
            row = row + (height * width if level in levels else 0)
        with torch.inference_mode(False):  # for later steps too, which may be training's
            fields = torch.tensor(list(zip(*table)), device=device).unbind(0)
        return RowLayout(*fields, row)

    def levels(self, locations: Tensor) -> Tensor:
        """Level of each location in [0, R): int64 in [0, L)."""
        return torch.bucketize(locations, self.ends, right=True)

    def locate(self, locations: Tensor, images: Tensor) -> Places:
        """
        Args:
            locations: (M,) int64 in [0, R), on levels that have rows.
            images: (M,) int64 in [0, N).
        """
        levels = self.levels(locations)
        inside = locations - self.starts[levels]
        columns = self.columns[levels]
        return Places(
            first_row=images * self.rows_per_image + self.first_rows[levels],
            y=inside // columns,
            x=inside % columns,
            height=self.heights[levels],
            width=self.widths[levels],
            scale=self.scales[levels],
        )


def pyramid_rows(maps: Sequence[Tensor]) -> Tensor:
    """
    Maps (N, C, Hl, Wl) of some levels as rows (N * sum of Hl * Wl, C), contiguous: embedding_bag
    takes ten times as long over others.
    """
    # In this order ONNX Runtime joins the transposition with the convolution before it.
    rows = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps]
    return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).flatten(0, 1).contiguous()


def conv_at(
    rows: Tensor, places: Places, offset: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """
    Convolution of stride 1 and "same" padding at M locations; where a level's map is finer, its
    points are still strides of the level apart.

    Sampled in float32 at least; the product with the weight follows autocast. Where locations are
    many they go through in parts, and training computes a part's samples again in the backward
    pass instead of keeping them, so that memory does not grow with the number of locations.

    Args:
        rows: see pyramid_rows; of C channels.
        offset: (M, 2 * k * k) in strides of the location's level, (dy, dx) for each kernel point;
            None: no offsets.
        weight: (O, C, k, k); bias: (O,).

    Returns:
        (M, O). Points outside the map read as zero.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = at_least_float32(rows)
    size = max(MAX_SAMPLED_VALUES // (weight[0].numel()), 1)
    if len(places) <= size:
        return _conv_part(rows, places, offset, weight, bias)
    parts = places.split(size)
    offsets = [None] * len(parts) if offset is None else offset.split(size)
    if not torch.is_grad_enabled():
        outs = [_conv_part(rows, *part, weight, bias) for part in zip(parts, offsets)]
    else:
        outs = [
            checkpoint(_conv_part, rows, *part, weight, bias, use_reentrant=False)
            for part in zip(parts, offsets)
        ]
    return torch.cat(outs)


def _conv_part(
    rows: Tensor, places: Places, offset: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    k = weight.shape[-1]
    with torch.autocast(rows.device.type, enabled=False):
        scale = places.scale[:, None, None].to(rows.dtype)
        points = kernel_points(places, k, offset).to(rows.dtype) * scale + (scale - 1) / 2
        sampled = sample_rows(rows, places, points)
    # The points' order is that of a channels-last weight, which is a view where it lies so.
    return F.linear(sampled.flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias)


def sample_rows(rows: Tensor, places: Places, points: Tensor) -> Tensor:
    """
    Bilinear samples of each location's own map; zero outside of it.

    Args:
        points: (M, P, 2), (y, x) in pixels of the map, pixel centres at whole numbers.

    Returns:
        (M, P, C).
    """
    size = torch.stack([places.height, places.width], dim=1)[:, None]  # (M, 1, 2)
    # Beyond a pixel outside nothing changes; the bounds keep whole numbers small.
    points = torch.minimum(points.clamp(min=-1), size.to(points.dtype))
    corner = points.detach().floor()
    fraction = points - corner
    low = corner.long()
    ends = torch.stack([low, low + 1], dim=-1)  # (M, P, 2, 2): axis, lower or upper
    shares = torch.stack([1 - fraction, fraction], dim=-1)
    shares = shares * ((ends >= 0) & (ends < size[..., None]))
    ends = torch.minimum(ends.clamp(min=0), size[..., None] - 1)
    y, x = ends.unbind(2)
    y = places.first_row[:, None, None] + y * places.width[:, None, None]
    index = (y[..., None] + x[..., None, :]).flatten(0, 1).flatten(1)  # (M * P, 4)
    weights = (shares[..., 0, :, None] * shares[..., 1, None, :]).flatten(0, 1).flatten(1)
    sampled = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
    return sampled.unflatten(0, points.shape[:2])


def kernel_points(places: Places, kernel_size: int, offset: Tensor | None = None) -> Tensor:
    """
    Where a kernel reads: (y, x) of its points in strides of the level, row-major: (M, k * k, 2).

    Args:
        offset: (M, 2 * k * k) in strides, (dy, dx) for each kernel point; None: none.
    """
    center = torch.stack([places.y, places.x], dim=1)
    steps = torch.arange(kernel_size, device=center.device) - kernel_size // 2
    points = center[:, None] + torch.cartesian_prod(steps, steps).view(-1, 2)
    if offset is None:
        return points
    return points + at_least_float32(offset).unflatten(1, (kernel_size**2, 2))


def _embedding_bag_flops(inputs, outputs):
    """Multiply-adds: every index brings a weighted row."""
    rows, index = get_shape(inputs[0]), get_shape(inputs[1])
    return index[0] * rows[1]


register_flops("aten::embedding_bag", _embedding_bag_flops)
