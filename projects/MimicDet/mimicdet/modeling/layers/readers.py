"""Ways to run alignment layers over a pyramid: on whole maps, or at the requested locations."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import image_indices
from .alignment import AlignmentLayer
from .deform_conv import deform_conv2d
from .sparse_conv import Places, RowLayout, conv_at, kernel_points, pyramid_rows


class PyramidReader(ABC):
    """The alignment layers' output at the requested locations of a pyramid."""

    def __init__(
        self,
        features: list[Tensor],
        delta_maps: list[Tensor],
        locations: Sequence[Tensor],
        scales: Sequence[int] = (),
    ):
        """
        Args:
            features: L x (N, C, Hl, Wl), or finer maps, see scales.
            delta_maps: L x (N, 4, Hl, Wl), the refinement module's deltas.
            locations: N x (Ri,) int64 in [0, R), on the levels of delta_maps.
            scales: pixels of each level's features in a stride of the level; empty: 1.
        """
        self._features, self._delta_maps, self._locations = features, delta_maps, locations
        self._scales = tuple(scales)

    @abstractmethod
    def read(self, layers: Sequence[AlignmentLayer]) -> Tensor:
        """
        Args:
            layers: that of each level; levels may share one.

        Returns:
            (B, O), image after image, before the activation.
        """


class MapReader:
    """A LevelReader of one level as it is; the shape (...) is (N, H, W)."""

    def __init__(self, x: Tensor, delta_map: Tensor):
        """x: (N, C, H, W); delta_map: (N, 4, H, W)."""
        self._x, self._delta_map = x, delta_map

    @property
    def guidance(self) -> Tensor:
        return self._delta_map.permute(0, 2, 3, 1)

    def conv(self, conv: nn.Conv2d, offsets: Tensor | None = None) -> Tensor:
        if offsets is not None:
            offsets = offsets.permute(0, 3, 1, 2)
            return deform_conv2d(self._x, offsets, conv.weight, conv.bias).permute(0, 2, 3, 1)
        mixed = torch.is_autocast_enabled(self._x.device.type)
        x = self._x if mixed else self._x.to(conv.weight.dtype)
        padding = conv.weight.shape[-1] // 2
        return F.conv2d(x, conv.weight, conv.bias, padding=padding).permute(0, 2, 3, 1)


class RowReader:
    """A LevelReader of M locations on all levels that share a layer; the shape (...) is (M,)."""

    def __init__(self, rows: Tensor, guidance: Tensor, places: Places):
        """rows: the features, see sparse_conv.pyramid_rows; guidance: (M, 4); places: M of them."""
        self.guidance = guidance
        self._rows, self._places = rows, places

    def conv(self, conv: nn.Conv2d, offsets: Tensor | None = None) -> Tensor:
        return conv_at(self._rows, self._places, offsets, conv.weight, conv.bias)

    def kernel_points(self, kernel_size: int, offsets: Tensor | None) -> Tensor:
        """(M, k * k, 2): where `conv` reads, (dy, dx) from the location in strides of its level."""
        return kernel_points(self._places, kernel_size, offsets) - kernel_points(self._places, 1)


class DensePyramid(PyramidReader):
    """Computes whole maps, as the paper has it, and takes the requested locations from them."""

    def read(self, layers: Sequence[AlignmentLayer]) -> Tensor:
        levels = zip(layers, self._features, self._delta_maps)
        maps = [layer(MapReader(x, deltas)).flatten(1, 2) for layer, x, deltas in levels]
        rows = torch.cat(maps, dim=1)
        return torch.cat([rows[i, requested] for i, requested in enumerate(self._locations)])


class SparsePyramid(PyramidReader):
    """Computes the requested locations alone: the same numbers and much less work."""

    def __init__(
        self,
        features: list[Tensor],
        delta_maps: list[Tensor],
        locations: Sequence[Tensor],
        scales: Sequence[int] = (),
    ):
        super().__init__(features, delta_maps, locations, scales)
        self._sizes, self._map_sizes = (
            tuple(tuple(x.shape[-2:]) for x in maps) for maps in (delta_maps, features)
        )
        self._flat_locations = torch.cat(tuple(locations))
        self._images = image_indices([len(x) for x in locations], features[0].device)

    def read(self, layers: Sequence[AlignmentLayer]) -> Tensor:
        outs, order = [], []
        for layer, reader, chosen in self._parts(layers):
            outs.append(layer(reader))
            order.append(chosen)
        return torch.cat(outs)[torch.cat(order).argsort()]

    def points(self, layers: Sequence[AlignmentLayer]) -> list[Tensor]:
        """
        Where each location's layer reads: B x (k * k, 2), (dy, dx) from the location in strides of
        its level.
        """
        points: list[Tensor] = [torch.empty(0)] * len(self._flat_locations)
        for layer, reader, chosen in self._parts(layers):
            moved = reader.kernel_points(layer.conv.kernel_size[0], layer.offsets(reader))
            for index, own in zip(chosen.tolist(), moved):
                points[index] = own
        return points

    def _parts(
        self, layers: Sequence[AlignmentLayer]
    ) -> Iterator[tuple[AlignmentLayer, "RowReader", Tensor]]:
        """
        Each layer, its reader, and which of the locations the reader is for. A layer that none
        needs takes part as well: it has a gradient in every step.
        """
        deltas = torch.cat([x.flatten(2) for x in self._delta_maps], dim=2)  # (N, 4, R)
        for layer, levels in levels_by_layer(layers):
            layout = RowLayout.of(
                self._sizes, levels, self._flat_locations.device, self._map_sizes, self._scales
            )
            level_of = layout.levels(self._flat_locations)
            chosen = torch.nonzero(sum(level_of == i for i in levels)).squeeze(1)
            locations, images = self._flat_locations[chosen], self._images[chosen]
            rows = pyramid_rows([self._features[i] for i in levels])
            guidance = deltas[images, :, locations]
            yield layer, RowReader(rows, guidance, layout.locate(locations, images)), chosen


def levels_by_layer(
    layers: Sequence[AlignmentLayer],
) -> list[tuple[AlignmentLayer, tuple[int, ...]]]:
    """Each layer once, with the levels that it serves."""
    return [
        (layer, tuple(i for i, own in enumerate(layers) if own is layer))
        for layer in dict.fromkeys(layers)
    ]
