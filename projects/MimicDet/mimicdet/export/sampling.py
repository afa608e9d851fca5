"""
The S-head's alignment layer at chosen positions, as one graph of fixed shape.

The eager head sorts positions by kernel, with sizes that depend on the data, and sums rows by
embedding_bag, which ONNX lacks. A graph runs everywhere when its shapes do not depend on data:
here the levels that share a kernel are laid out in one picture, the *atlas*, and a single bilinear
sampling reads from all of them. Shape shorthand: see structures.py; M: positions of each image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling.layers.alignment import ConvAlignment, DeformAlignment, GuidedAlignment


@dataclass(frozen=True)
class MapPlaces:
    """Where positions lie in the map of their level."""

    levels: Tensor  # (..., M) int64 in [0, L)
    y: Tensor  # (..., M) row in the level's map, float32
    x: Tensor  # (..., M) column
    height: Tensor  # (..., M) of the level's map
    width: Tensor  # (..., M)

    def at(self, positions: Tensor) -> "MapPlaces":
        """Those of (N, M) positions, out of the (R,) of all."""
        return MapPlaces(*(table[positions] for table in vars(self).values()))


def all_places(features: list[Tensor]) -> MapPlaces:
    """The places of all R positions, in the order of `features`: L x (N, C, Hl, Wl)."""
    rows = []
    for level, x in enumerate(features):
        height, width = x.shape[-2:]
        row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        y = row[:, None].expand(height, width).reshape(-1)
        x = column[None].expand(height, width).reshape(-1)
        size = [torch.full_like(y, height), torch.full_like(y, width)]
        rows.append([torch.full_like(y, level), *(z.float() for z in (y, x, *size))])
    return MapPlaces(*(torch.cat(column) for column in zip(*rows)))


class Atlas:
    """
    The maps of some levels below each other, with a border of zeros around each.

    A point outside its level's map reads as zero in the eager operator. Clamped to the border it
    does so here, also half-way between border and map, so the numbers are the same.
    """

    def __init__(self, features: list[Tensor], levels: list[int]):
        """
        Args:
            features: L x (N, C, Hl, Wl), fine to coarse; levels: which of them to lay out.
        """
        width = features[levels[0]].shape[-1]
        parts, self.tops, top = [], {}, 1
        for level in levels:
            x = features[level]
            parts.append(F.pad(x, (1, width - x.shape[-1] + 1, 1, 1)))
            self.tops[level] = top
            top = top + x.shape[-2] + 2
        self.image = torch.cat(parts, dim=2)

    def conv_at(self, places: MapPlaces, offset: Tensor | None, weight: Tensor, bias: Tensor):
        """
        Convolution of stride 1 and "same" padding at each place; see sparse_conv.conv_at.

        Args:
            places: of (N, M) positions; what comes out at a level that is not here has no meaning.
            offset: (N, M, 2 * k * k) in pixels of the map, (dy, dx); None: no offsets.
            weight: (O, C, k, k); bias: (O,).

        Returns:
            (N, M, O).
        """
        k = weight.shape[-1]
        steps = torch.arange(k, device=weight.device, dtype=torch.float32) - k // 2
        y = places.y[..., None] + steps.repeat_interleave(k)
        x = places.x[..., None] + steps.repeat(k)
        if offset is not None:
            y, x = y + offset[..., 0::2], x + offset[..., 1::2]
        y = torch.minimum(y.clamp(min=-1), places.height[..., None])
        x = torch.minimum(x.clamp(min=-1), places.width[..., None])
        y, x = y + self._tops_of(places.levels)[..., None], x + 1
        height, width = self.image.shape[-2:]
        # grid_sample wants (x, y) in [-1, 1] of the picture's outer edges.
        grid = torch.stack([(x + 0.5) * (2 / width) - 1, (y + 0.5) * (2 / height) - 1], dim=-1)
        sampled = F.grid_sample(self.image, grid, mode="bilinear", align_corners=False)
        return F.linear(sampled.transpose(1, 2).flatten(2), weight.flatten(1), bias)

    def _tops_of(self, levels: Tensor) -> Tensor:
        """Row of the atlas where the map of each position's level begins."""
        tops = torch.zeros_like(levels)
        for level, top in self.tops.items():
            tops = torch.where(levels == level, torch.full_like(levels, top), tops)
        return tops.float()


def align_at(layer: ConvAlignment, atlas: Atlas, places: MapPlaces, deltas: Tensor) -> Tensor:
    """
    An alignment layer at each place: (N, M, O), before the activation.

    Args:
        deltas: (N, M, 4), the refinement module's deltas at the places.
    """
    offset = None
    if isinstance(layer, GuidedAlignment):
        offset = layer.offset(deltas.transpose(1, 2)[..., None]).squeeze(3).transpose(1, 2)
    elif isinstance(layer, DeformAlignment):
        offset = atlas.conv_at(places, None, layer.offset.weight, layer.offset.bias)
    return atlas.conv_at(places, offset, layer.conv.weight, layer.conv.bias)
