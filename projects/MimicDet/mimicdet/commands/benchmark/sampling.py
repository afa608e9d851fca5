"""
Ways to convolve at chosen positions, side by side: python -m mimicdet.commands.benchmark.sampling

The S-head uses embedding_bag; this measures what it was chosen from, on the same inputs, each
checked against it before it is timed.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...modeling.layers import Places, RowLayout, conv_at, linear, pyramid_rows
from .timing import interleave, summarize, synchronizer

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # maps, index, offset, weight


def make_problem(
    size: tuple[int, int], batch: int, positions: int, channels: int, kernel: int, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Returns:
        maps (N, C, H, W), index (N, M) of positions, offset (N, M, 2 * k * k) of some pixels,
        weight (O, C, k, k).
    """
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, channels, *size, generator=generator)
    index = torch.randint(0, size[0] * size[1], (batch, positions), generator=generator)
    offset = 3 * torch.randn(batch, positions, 2 * kernel**2, generator=generator)
    weight = torch.randn(channels, channels, kernel, kernel, generator=generator) / kernel**2
    return maps.to(device), index.to(device), offset.to(device), weight.to(device)


def _places(maps: Tensor, index: Tensor) -> Places:
    layout = RowLayout.of((tuple(maps.shape[-2:]),), (0,), maps.device)
    images = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    return layout.locate(index.flatten(), images.flatten())


def by_embedding_bag(maps: Tensor, index: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The S-head's own way."""
    bias = weight.new_zeros(len(weight))
    return conv_at(pyramid_rows([maps]), _places(maps, index), offset.flatten(0, 1), weight, bias)


def _points(maps: Tensor, index: Tensor, offset: Tensor, kernel: int) -> Tensor:
    """(N, M, k * k, 2) of (y, x)."""
    width = maps.shape[-1]
    center = torch.stack([index // width, index % width], dim=-1)
    steps = torch.arange(kernel, device=index.device) - kernel // 2
    grid = torch.cartesian_prod(steps, steps)
    return center[:, :, None] + grid + offset.unflatten(2, (kernel**2, 2))


def by_grid_sample(maps: Tensor, index: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    points = _points(maps, index, offset, weight.shape[-1])
    scale = points.new_tensor([2.0 / maps.shape[-1], 2.0 / maps.shape[-2]])
    grid = (points.flip(-1) + 0.5) * scale - 1
    sampled = F.grid_sample(maps, grid, align_corners=False)  # (N, C, M, k * k)
    return linear(sampled.transpose(1, 2).flatten(2).flatten(0, 1), weight.flatten(1))


def _corners(maps: Tensor, index: Tensor, offset: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Rows (N * M * k * k, 4) of the four neighbours of each point, and their weights."""
    height, width = maps.shape[-2:]
    points = _points(maps, index, offset, kernel)
    low = points.detach().floor()
    fraction = points - low
    y, x = (low[..., axis, None].long() for axis in (0, 1))
    y = y + y.new_tensor([0, 0, 1, 1])
    x = x + x.new_tensor([0, 1, 0, 1])
    dy, dx = fraction[..., 0, None], fraction[..., 1, None]
    share = torch.cat([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], dim=-1)
    share = share * ((y >= 0) & (y < height) & (x >= 0) & (x < width))
    start = torch.arange(len(maps), device=maps.device).view(-1, 1, 1, 1) * (height * width)
    rows = start + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return rows.flatten(0, 2), share.flatten(0, 2)


def by_gather_and_bmm(maps: Tensor, index: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    rows, share = _corners(maps, index, offset, weight.shape[-1])
    neighbours = pyramid_rows([maps])[rows]  # (N * M * k * k, 4, C)
    sampled = torch.bmm(share[:, None], neighbours)
    return _product(sampled, index, weight)


def by_sparse_matrix(maps: Tensor, index: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """A CSR matrix of four entries a row times the maps; without gradients of the offsets."""
    rows, share = _corners(maps, index, offset, weight.shape[-1])
    starts = torch.arange(0, 4 * len(rows) + 1, 4, device=rows.device)
    source = pyramid_rows([maps])
    matrix = torch.sparse_csr_tensor(
        starts, rows.flatten(), share.flatten(), (len(rows), len(source)), check_invariants=False
    )
    return _product(matrix @ source, index, weight)


def _product(sampled: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return linear(sampled.reshape(index.numel(), -1), weight.permute(0, 2, 3, 1).flatten(1))


WAYS: dict[str, Way] = {
    "embedding_bag": by_embedding_bag,
    "grid_sample": by_grid_sample,
    "gather + bmm": by_gather_and_bmm,
    "sparse matrix": by_sparse_matrix,
}
TRAINABLE = ("embedding_bag", "grid_sample", "gather + bmm")


def measure(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], train: bool, repeats: int
) -> dict[str, list[float]]:
    """
    Seconds of each way, one a round; train: with the backward pass to maps, offsets and weight.

    Raises RuntimeError where two ways disagree by more than 1e-4 of the largest output.
    """
    ways = {name: way for name, way in WAYS.items() if not train or name in TRAINABLE}
    with torch.no_grad():
        expected = by_embedding_bag(*problem)
        for name, way in ways.items():
            if (way(*problem) - expected).abs().max() > 1e-4 * expected.abs().max():
                raise RuntimeError(f"{name} does not agree with embedding_bag")
    maps, index, offset, weight = problem

    def run(way: Way) -> None:
        if not train:
            with torch.no_grad():
                way(*problem)
            return
        leaves = [x.detach().requires_grad_() for x in (maps, offset, weight)]
        way(leaves[0], index, *leaves[1:]).square().mean().backward()

    work = {name: (lambda way=way: run(way)) for name, way in ways.items()}
    return interleave(work, repeats, 2, synchronizer(maps.device.type))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a Markdown table of milliseconds."""
    parser = argparse.ArgumentParser(description="Ways to convolve at chosen positions.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, default=(50, 76), metavar=("H", "W"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print("| work | layout | " + " | ".join(WAYS) + " |")
    print("|---|---|" + "---|" * len(WAYS))
    for train, batch, positions in ((False, 1, 1000), (True, 2, 320)):
        for layout in (torch.contiguous_format, torch.channels_last):
            maps, *others = make_problem(args.size, batch, positions, 256, 5, args.device)
            problem = (maps.contiguous(memory_format=layout), *others)
            seconds = measure(problem, train, args.repeats)
            cells = [
                f"{1e3 * summarize(seconds[name]).median:.1f}" if name in seconds else "–"
                for name in WAYS
            ]
            work = f"{'training' if train else 'inference'}, {batch} x {positions} positions"
            name = "NCHW" if layout is torch.contiguous_format else "channels last"
            print(f"| {work} | {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
