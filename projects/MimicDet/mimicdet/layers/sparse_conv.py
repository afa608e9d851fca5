"""
Convolution, plain or deformable, at chosen positions only: the same numbers as the dense operator,
since a deformable convolution at a point is a bilinear sample of its k * k points times a matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .precision import at_least_float32


def conv_at(
    x: Tensor, index: Tensor, offset: Tensor | None, weight: Tensor, bias: Tensor
) -> Tensor:
    """
    Convolution of stride 1 and "same" padding at M positions of each map.

    Args:
        x: (N, C, H, W).
        index: (N, M) int64, row-major positions in [0, H * W).
        offset: (N, M, 2 * k * k) in pixels of x, (dy, dx) for each kernel point; None: no offsets.
        weight: (O, C, k, k); bias: (O,).

    Returns:
        (N, M, O), in x's dtype; computed in float32 where x is of half precision. Points outside
        the map read as zero.
    """
    dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        size, k = x.shape[-2:], weight.shape[-1]
        points = _kernel_points(index, size[1], k).to(x.dtype)
        if offset is not None:
            points = points + offset.to(x.dtype).unflatten(2, (k * k, 2))
        # grid_sample wants (x, y) in [-1, 1] of the map's outer edges.
        scale = points.new_tensor([2.0 / size[1], 2.0 / size[0]])
        grid = (points.flip(-1) + 0.5) * scale - 1
        sampled = F.grid_sample(x, grid, mode="bilinear", align_corners=False)  # (N, C, M, k * k)
        columns = sampled.transpose(1, 2).flatten(2)
        out = F.linear(columns, weight.to(x.dtype).flatten(1), bias.to(x.dtype))
    return out.to(dtype)


def _kernel_points(index: Tensor, width: int, kernel_size: int) -> Tensor:
    """(y, x) of the kernel points around each position, row-major: (N, M, k * k, 2)."""
    center = torch.stack([index // width, index % width], dim=-1)
    steps = torch.arange(kernel_size, device=index.device) - kernel_size // 2
    kernel = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    return center[:, :, None] + kernel


def gather_at(x: Tensor, index: Tensor) -> Tensor:
    """Values of a map at M positions: (N, C, H, W), (N, M) -> (N, C, M, 1)."""
    wanted = index[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, wanted).unsqueeze(3)


def split_by_level(
    positions: list[Tensor], sizes: Sequence[int]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """
    Sort the positions of N images by level.

    Args:
        positions: N x (Ri,) int64 in [0, R), R = sum of sizes; sizes: positions of each level.

    Returns:
        index: L x (N, Ml) positions inside the level, filled up with 0; Ml is at least 1, so that
            every level takes part in every step.
        valid: L x (N, Ml) bool, False on the filling.
        order: (B,) int64: where each of the concatenated positions lies in the concatenation of
            the levels' valid entries.
    """
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    edges = torch.tensor(starts[1:], device=positions[0].device)
    levels = [torch.bucketize(p, edges, right=True) for p in positions]
    offsets = torch.tensor([0] + [len(p) for p in positions[:-1]]).cumsum(0).tolist()
    index, valid, order = [], [], []
    for level, start in enumerate(starts[:-1]):
        rows = [torch.nonzero(of == level).squeeze(1) for of in levels]
        order += [row + offset for row, offset in zip(rows, offsets)]
        filled = pad_sequence(
            [p[row] - start for p, row in zip(positions, rows)], batch_first=True, padding_value=-1
        )
        if filled.shape[1] == 0:
            filled = filled.new_full((len(positions), 1), -1)
        valid.append(filled >= 0)
        index.append(filled.clamp(min=0))
    return index, valid, torch.cat(order).argsort()
