"""
Bilinear resizing that gives the same pixels as Pillow's, which Detectron2 uses.

OpenCV's INTER_LINEAR looks at four pixels whatever the factor; Pillow's bilinear filter widens with
it when an image shrinks, and a detector was trained on the latter. Pillow rounds its weights to 22
bits and its result to 8 bits after each direction; this file does the same in NumPy.
"""

import math

import numpy as np

_ONE = 1 << 22  # Pillow's weights are integers in units of 2^-22


def filter_weights(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The input pixels that make up each output pixel along one direction.

    Returns:
        first: (out_size,) int64, index of the first of them.
        weights: (out_size, taps) float64 integers, in units of 2^-22; 0 where there are fewer.
    """
    scale = in_size / out_size
    support = max(scale, 1.0)
    centers = (np.arange(out_size) + 0.5) * scale
    # Pillow's int() and astype both cut towards zero.
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), in_size)
    indices = first[:, None] + np.arange(math.ceil(support) * 2 + 1)
    distances = np.abs(indices - centers[:, None] + 0.5) / support
    weights = np.where(indices < last[:, None], np.maximum(1.0 - distances, 0.0), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return first, np.floor(weights * _ONE + 0.5)


def _resize_rows(image: np.ndarray, out_size: int) -> np.ndarray:
    """Resize (H, W, C) uint8 along its first direction."""
    rows = image.reshape(len(image), -1)
    result = np.empty((out_size, rows.shape[1]), dtype=np.uint8)
    for out_row, start, weights in zip(result, *filter_weights(len(rows), out_size)):
        used = rows[start : start + len(weights)]
        # Sums of integers below 2^31: exact in float64, which NumPy multiplies fastest.
        total = weights[: len(used)] @ used.astype(np.float64)
        out_row[:] = (total + _ONE / 2) * (1 / _ONE)  # the cast to uint8 cuts, and so rounds
    return result.reshape(out_size, *image.shape[1:])


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resize an image as Pillow's BILINEAR does, to the bit where both sides grow.

    The width comes first. Pillow 13 takes the height first for some tall images that shrink, and
    rounds in between, so that a value may differ by 1.

    Args:
        image: (H, W, C) uint8.
        size: (height, width) of the result in pixels.
    """
    height, width = size
    if image.shape[1] != width:
        turned = _resize_rows(np.ascontiguousarray(image.transpose(1, 0, 2)), width)
        image = np.ascontiguousarray(turned.transpose(1, 0, 2))
    if image.shape[0] != height:
        image = _resize_rows(image, height)
    return image
