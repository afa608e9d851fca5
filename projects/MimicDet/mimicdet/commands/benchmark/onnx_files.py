"""Exported files side by side in ONNX Runtime: what tools/benchmark.py --onnx runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import model_zoo
from ...utils.errors import UserError
from .calibration import calibrate
from .detectors import DETECTORS, onnx_bytes, open_session, random_model
from .timing import interleave, summarize
from .workloads import make_inputs


def compare_onnx_files(
    paths: Sequence[str],
    sizes: Sequence[int],
    thread_counts: Sequence[int],
    repeats: int,
    *,
    num_classes: int,
    nms_boxes: int,
) -> Iterator[dict[str, Any]]:
    """
    Time files of any detector on the same square images, alternating in this process.

    The input of three channels gets an image, in 0..255 where the file also asks for image_sizes
    (MimicDet's), else in 0..1; a file of fixed size is left out at other sizes.

    Args:
        paths: ONNX files, and names of this project's MimicDet configs (ending in .yaml), which are
            exported first with random weights; of fixed size where there is one size alone.
        num_classes, nms_boxes: of models with random weights, see calibration.calibrate.

    Yields:
        for each size, number of threads and file a dict: size, threads, name, ms (median and
        quartiles), ratio to the first file (median and quartiles of the rounds' ratios), load (of
        the machine, in processes, over the last minute).

    Raises:
        UserError: a file or config that is missing, or a file that does not take one image.
    """
    models = {x: _model(x, sizes, num_classes, nms_boxes) for x in paths}
    for threads in thread_counts:
        sessions = {path: open_session(model, threads) for path, model in models.items()}
        for size in sizes:
            inputs = make_inputs((size, size), 1, num_classes)
            pixels = np.stack([x["image"].numpy() for x in inputs])
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


def _model(path: str, sizes: Sequence[int], num_classes: int, nms_boxes: int) -> str | bytes:
    """The path of an ONNX file, or the content of a config's export, calibrated at sizes[0]."""
    if not path.endswith(".yaml"):
        if not Path(path).is_file():
            raise UserError(f"--onnx: there is no file {path!r}")
        return path
    cfg = model_zoo.get_config(path)
    if cfg.MODEL.META_ARCHITECTURE != "MimicDet":
        raise UserError(f"--onnx: {path} is no MimicDet, but {cfg.MODEL.META_ARCHITECTURE}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(cfg, num_classes, "cpu").eval()
    canvas = (sizes[0], sizes[0])
    calibrate(DETECTORS["mimicdet"], model, make_inputs(canvas, 1, num_classes), nms_boxes)
    return onnx_bytes(model, canvas if len(sizes) == 1 else None)


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
