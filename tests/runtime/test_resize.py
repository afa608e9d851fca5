"""Resizing: Pillow's pixels, Detectron2's sizes."""

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from mimicdet_runtime.metadata import ResizeRule
from mimicdet_runtime.resize import filter_weights, resize_bilinear


@pytest.mark.parametrize(
    "height, width, new_height, new_width",
    [
        (108, 192, 75, 133),
        (48, 64, 80, 107),
        (400, 301, 107, 80),
        (7, 5, 80, 57),
        (50, 60, 50, 60),
        (57, 101, 60, 33),
        (1, 9, 3, 27),
    ],
)
def test_same_pixels_as_pillow(height, width, new_height, new_width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_bilinear(image, (new_height, new_width)), np.asarray(expected))


def test_one_level_off_where_pillow_takes_the_height_first():
    image = np.random.default_rng(0).integers(0, 256, (782, 360, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((122, 266), Image.Resampling.BILINEAR))
    difference = resize_bilinear(image, (266, 122)).astype(int) - expected
    assert np.abs(difference).max() <= 1


def test_halving_weighs_four_pixels():
    first, weights = filter_weights(8, 4)
    assert first.tolist() == [0, 1, 3, 5]
    inner = weights[1] / 2**22
    assert inner[:4] == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], abs=2**-22)
    assert not inner[4:].any()


def test_sizes_are_those_of_resize_shortest_edge():
    generator = np.random.default_rng(0)
    for min_size, max_size in ((800, 1333), (64, 96), (600, 600), (0, 500)):
        rule = ResizeRule(min_size, max_size)
        reference = ResizeShortestEdge([min_size, min_size], max_size)
        for height, width in [(480, 640), (500, 500), *generator.integers(20, 2000, (300, 2))]:
            transform = reference.get_transform(np.zeros((height, width, 3), np.uint8))
            expected = (getattr(transform, "new_h", height), getattr(transform, "new_w", width))
            assert rule.output_size(height, width) == expected


def test_a_thread_of_pixels_keeps_one():
    assert ResizeRule(800, 1333).output_size(1, 5000) == (1, 1333)
