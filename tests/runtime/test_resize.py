"""Resizing: Detectron2's sizes and pixels."""

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge

from mimicdet_runtime import Detector
from mimicdet_runtime.metadata import ResizeRule


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


@pytest.mark.parametrize("min_size", [0, 64])
def test_what_is_larger_than_the_canvas_shrinks_until_it_fits(min_size):
    rule = ResizeRule(min_size, 96, canvas=(64, 80))
    assert rule.output_size(64, 80) == (64, 80)
    assert rule.output_size(128, 160) == (64, 80)
    assert rule.output_size(300, 100) == (64, 21)
    assert rule.output_size(100, 300) == (27, 80)


@pytest.mark.parametrize("height, width", [(200, 301), (30, 41), (782, 90), (48, 64)])
def test_pixels_are_detectron2s(model_file, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    detector = Detector(model_file)
    rule = detector.info.resize
    transform = ResizeShortestEdge(rule.min_size, rule.max_size).get_transform(image)
    assert np.array_equal(detector._resized(image), transform.apply_image(image))
