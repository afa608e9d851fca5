"""Exported files side by side in ONNX Runtime: what tools/benchmark.py --onnx runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError
from .timing import interleave, summarize
from .workloads import make_inputs


def compare_onnx_files(
    paths: Sequence[str], sizes: Sequence[int], thread_counts: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """
    Time files of any detector on the same square images, alternating in this process.

    The input of three channels gets an image, in 0..255 where the file also asks for image_sizes
    (MimicDet's), else in 0..1; a file of fixed size is left out at other sizes.

    Yields:
        for each size, number of threads and file a dict: size, threads, name, ms (median and
        quartiles), ratio to the first file (median and quartiles of the rounds' ratios), load (of
        the machine, in processes, over the last minute).

    Raises:
        UserError: a file that is missing or does not take one image.
    """
    for threads in thread_counts:
        sessions = {path: _session(path, threads) for path in paths}
        for size in sizes:
            pixels = np.stack([x["image"].numpy() for x in make_inputs((size, size), 1, 80)])
            work: dict[str, Callable[[], object]] = {}
            for path, session in sessions.items():
                feed = _feed(path, session, pixels.astype(np.float32))
                if feed is not None:
                    work[path] = partial(session.run, None, feed)
            if not work:
                continue
            seconds = interleave(work, repeats, warmup=2)
            first = next(iter(seconds.values()))
            for path, own in seconds.items():
                yield {
                    "size": size,
                    "threads": threads,
                    "name": Path(path).stem,
                    "ms": summarize([1000 * x for x in own]),
                    "ratio": summarize([a / b for a, b in zip(own, first)]),
                    "load": os.getloadavg()[0],
                }


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as a table in Markdown."""
    lines = ["| pixels | threads | file | ms | quartiles | to the first | quartiles | load |"]
    lines.append("| --- " * 8 + "|")
    for row in rows:
        ms, ratio = row["ms"], row["ratio"]
        lines.append(
            f"| {row['size']} | {row['threads']} | {row['name']} | {ms.median:.1f} | "
            f"{ms.low:.1f} to {ms.high:.1f} | {ratio.median:.2f} | "
            f"{ratio.low:.2f} to {ratio.high:.2f} | {row['load']:.1f} |"
        )
    return "\n".join(lines)


def _session(path: str, threads: int):
    import onnxruntime

    if not Path(path).is_file():
        raise UserError(f"--onnx: there is no file {path!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after a run would take the next file's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feed(path: str, session: Any, pixels: np.ndarray) -> dict[str, np.ndarray] | None:
    """The file's inputs; None where its size is fixed to another."""
    feed: dict[str, np.ndarray] = {}
    inputs = {x.name: x for x in session.get_inputs()}
    sized = inputs.pop("image_sizes", None)
    if len(inputs) != 1 or len(next(iter(inputs.values())).shape) != 4:
        raise UserError(f"--onnx: {path} does not take one image, but {', '.join(inputs)}")
    name, image = next(iter(inputs.items()))
    if any(isinstance(a, int) and a != b for a, b in zip(image.shape, pixels.shape)):
        return None
    if sized is None:
        feed[name] = pixels / 255
    else:
        feed = {name: pixels, "image_sizes": np.array([pixels.shape[2:]], np.int64)}
    return feed
