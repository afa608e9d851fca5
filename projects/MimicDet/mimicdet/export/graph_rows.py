"""
The S-head's alignment layers at the requested locations, as one graph of fixed shape.

The eager head sorts locations by layer, with sizes that depend on the data, and sums rows by
embedding_bag, which ONNX lacks. A graph runs everywhere when its shapes do not depend on data:
here every layer is computed at all locations, and a bilinear sample is four rows, gathered, times
their shares. Shape shorthand: see modeling/structures.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.layers import AlignmentLayer, PyramidReader, levels_by_layer
from ..modeling.layers.sparse_conv import pyramid_rows


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


class GraphRows:
    """
    The maps of some levels as rows, channels last: a LevelReader of all (N, M) locations. What it
    reads elsewhere than on its levels is void.
    """

    def __init__(
        self, features: list[Tensor], levels: Sequence[int], places: MapPlaces, guidance: Tensor
    ):
        """
        Args:
            features: L x (N, C, Hl, Wl); levels: which of them to lay out.
            places: of the locations; guidance: (N, M, 4).
        """
        self.guidance = guidance
        self._places = places
        self._rows = pyramid_rows([features[i] for i in levels])
        starts, rows = [0] * len(features), 0
        for level in levels:
            starts[level] = rows
            rows = rows + features[level].shape[-2] * features[level].shape[-1]
        # Of each location: the row where its level's map begins in the rows of one image, the last
        # of those rows, and where the image's rows begin.
        self._first_row = per_level(starts, places.levels)[places.levels]
        self._last_row = rows - 1 if len(levels) < len(features) else None
        self._image_row = torch.arange(features[0].shape[0], device=guidance.device) * rows

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
        y, next_line, line_shares = _neighbours(y, places.height[..., None])
        x, next_column, column_shares = _neighbours(x, places.width[..., None])
        width = places.width[..., None]
        corner = self._first_row[..., None] + y * width + x  # float32, exact below 2 ** 24
        below = corner + next_line * width
        # (N, M, P, 4), term by term: over axes of 2, ONNX Runtime takes five times as long.
        shares = torch.stack([a * b for a in line_shares for b in column_shares], dim=-1)
        corners = [corner, corner + next_column, below, below + next_column]
        index = torch.stack(corners, dim=-1)
        if self._last_row is not None:
            index = index.clamp(max=self._last_row)
        index = index.long() + self._image_row[:, None, None, None]
        # (N, M, P, 1, 4) times (N, M, P, 4, C)
        sampled = shares[..., None, :] @ F.embedding(index, self._rows)
        # The points' order is that of a channels-last weight.
        return F.linear(sampled.flatten(2), weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _neighbours(points: Tensor, size: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """
    The two pixels between which each point lies, along one axis.

    Args:
        points: (N, M, P), pixel centres at whole numbers; size: (N, M, 1), pixels of the axis.

    Returns:
        (N, M, P) the lower pixel, inside the map; (N, M, 1) how far the upper one is from it, 0
        where the map has a single pixel; 2 x (N, M, P) their shares, zero where the point is a
        pixel or more away: outside the map it is all zero.
    """
    low = torch.minimum(points.floor().clamp(min=0.0), (size - 2).clamp(min=0.0))
    step = (size - 1).clamp(max=1.0)
    distances = points - low
    shares = [F.relu(1 - distances.abs()), F.relu(1 - (distances - 1).abs()) * step]
    return low, step, shares


class GraphPyramid(PyramidReader):
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
            out = layer(GraphRows(self._features, levels, self._places, self._guidance))
            if aligned is None:
                aligned = out
                continue
            here = torch.stack([self._places.levels == i for i in levels]).any(dim=0)
            aligned = torch.where(here[..., None], out, aligned)
        return aligned
