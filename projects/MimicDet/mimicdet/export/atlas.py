"""
The S-head's alignment layers at the requested locations, as one graph of fixed shape.

The eager head sorts locations by layer, with sizes that depend on the data, and sums rows by
embedding_bag, which ONNX lacks. A graph runs everywhere when its shapes do not depend on data:
here the levels that share a layer are laid out in one picture, the *atlas*, and a single bilinear
sampling reads from all of them. Shape shorthand: see modeling/structures.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.layers import AlignmentLayer, PyramidReader, levels_by_layer


@dataclass(frozen=True)
class MapPlaces:
    """Where locations lie in the map of their level."""

    levels: Tensor  # (..., M) int64 in [0, L)
    y: Tensor  # (..., M) in strides of the level, float32
    x: Tensor  # (..., M)
    height: Tensor  # (..., M) of the level's map
    width: Tensor  # (..., M)
    scale: Tensor | None  # (..., M) pixels of the map in a stride; None: 1


def map_places(
    features: list[Tensor],
    delta_maps: list[Tensor],
    locations: Tensor,
    scales: Sequence[int] = (),
) -> MapPlaces:
    """The places of (..., M) locations; arguments as of PyramidReader."""
    sizes, map_sizes = ([x.shape[-2:] for x in maps] for maps in (delta_maps, features))
    starts, start = [0], 0
    levels = torch.zeros_like(locations)
    for height, width in sizes[:-1]:
        start = start + height * width
        starts.append(start)
        levels = levels + (locations >= start)
    index = locations.float() - per_level(starts, locations)[levels]  # exact below 2 ** 23
    columns = per_level([x[1] for x in sizes], locations)[levels]
    y = ((index + 0.5) / columns).floor()
    x = index - y * columns
    height, width = (per_level(own, locations)[levels] for own in zip(*map_sizes))
    scale = per_level(scales, locations)[levels] if any(x != 1 for x in scales) else None
    return MapPlaces(levels, y, x, height, width, scale)


def per_level(values: Sequence[int], like: Tensor) -> Tensor:
    """(L,) float32 numbers that may depend on the input's size."""
    return torch.cat([torch.full((1,), x, device=like.device).float() for x in values])


class Atlas:
    """
    The maps of some levels below each other, with a border of zeros around each: a LevelReader of
    all (N, M) locations. What it reads elsewhere than on its levels is void.

    A point outside its level's map reads as zero in the eager operator. Clamped to the border it
    does so here, also half-way between border and map, so the numbers are the same.
    """

    def __init__(
        self, features: list[Tensor], levels: Sequence[int], places: MapPlaces, guidance: Tensor
    ):
        """
        Args:
            features: L x (N, C, Hl, Wl), fine to coarse; levels: which of them to lay out.
            places: of the locations; guidance: (N, M, 4).
        """
        self.guidance = guidance
        self._places = places
        width = features[levels[0]].shape[-1]
        parts, tops, top = [], [0] * len(features), 1
        for level in levels:
            x = features[level]
            parts.append(F.pad(x, (1, width - x.shape[-1] + 1, 1, 1)))
            tops[level] = top
            top = top + x.shape[-2] + 2
        self.image = torch.cat(parts, dim=2)
        # Row of the atlas where the map of each location's level begins.
        self.tops = per_level(tops, places.levels)[places.levels]

    def conv(self, conv: nn.Conv2d, offsets: Tensor | None = None) -> Tensor:
        """
        Convolution of stride 1 and "same" padding at each place, as layers.sparse_conv does.

        Args:
            offsets: (N, M, 2 * k * k) in strides of the level, (dy, dx); None: no offsets.

        Returns:
            (N, M, O).
        """
        places, weight = self._places, conv.weight
        k = weight.shape[-1]
        steps = torch.arange(k, device=weight.device, dtype=torch.float32) - k // 2
        y = places.y[..., None] + steps.repeat_interleave(k)
        x = places.x[..., None] + steps.repeat(k)
        if offsets is not None:
            y, x = y + offsets[..., 0::2], x + offsets[..., 1::2]
        if places.scale is not None:
            scale = places.scale[..., None]
            y, x = y * scale + (scale - 1) / 2, x * scale + (scale - 1) / 2
        y = torch.minimum(y.clamp(min=-1), places.height[..., None])
        x = torch.minimum(x.clamp(min=-1), places.width[..., None])
        y, x = y + self.tops[..., None], x + 1
        height, width = self.image.shape[-2:]
        # grid_sample takes (x, y) in [-1, 1] of the picture's outer edges.
        grid = torch.stack([(x + 0.5) * (2 / width) - 1, (y + 0.5) * (2 / height) - 1], dim=-1)
        sampled = F.grid_sample(self.image, grid, mode="bilinear", align_corners=False)
        return F.linear(sampled.transpose(1, 2).flatten(2), weight.flatten(1), conv.bias)


class AtlasPyramid(PyramidReader):
    """Reads (N, M) locations in float32; what it gives is (N, M, O)."""

    def __init__(
        self,
        features: list[Tensor],
        delta_maps: list[Tensor],
        locations: Tensor,
        scales: Sequence[int] = (),
    ):
        """locations: (N, M) int64 in [0, R)."""
        self._features = [x.float() for x in features]
        self._places = map_places(features, delta_maps, locations, scales)
        deltas = torch.cat([x.flatten(2).transpose(1, 2) for x in delta_maps], dim=1)
        self._guidance = deltas.float().gather(1, locations[..., None].expand(-1, -1, 4))

    def read(self, layers: Sequence[AlignmentLayer]) -> Tensor:
        aligned = None
        for layer, levels in levels_by_layer(layers):
            out = layer(Atlas(self._features, levels, self._places, self._guidance))
            if aligned is None:
                aligned = out
                continue
            here = torch.stack([self._places.levels == i for i in levels]).any(dim=0)
            aligned = torch.where(here[..., None], out, aligned)
        return aligned
