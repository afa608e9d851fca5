"""STUDENT.OFFSET_INIT box and edges: where the guided points lie before any training."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec

from mimicdet.config import load_config
from mimicdet.modeling.heads.student_head import StudentHead
from mimicdet.modeling.layers import AlignmentSettings, build_alignments
from mimicdet.modeling.layers.readers import MapReader

SIZE = 4.0  # the paper's anchors, in strides


def box_alignment(kernel_size, weights=(1.0, 1.0, 1.0, 1.0), offset_dims=(64, 128), **kwargs):
    settings = AlignmentSettings("guided", (kernel_size,), 8, offset_dims)
    layer = build_alignments(8, settings)[f"k{kernel_size}"]
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    layer.start_at_box(SIZE, weights, **kwargs)
    return layer


def points(layer, deltas, weights=(1.0, 1.0, 1.0, 1.0)):
    """(y, x) of the k x k points relative to the anchor's centre, in strides."""
    guidance = (torch.tensor(deltas) * torch.tensor(weights)).view(1, 4, 1, 1)
    k = layer.conv.kernel_size[0]
    steps = torch.arange(k) - k // 2
    kernel = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    return kernel + layer.offsets(MapReader(None, guidance)).view(k, k, 2)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("dims", [(64, 128), (8,), (8, 16, 8)])
def test_zero_deltas_give_the_bin_centres_of_the_anchor(kernel_size, dims):
    actual = points(box_alignment(kernel_size, offset_dims=dims), [0.0, 0.0, 0.0, 0.0])
    bins = SIZE * ((torch.arange(kernel_size) + 0.5) / kernel_size - 0.5)
    torch.testing.assert_close(actual[:, 0, 0], bins)
    torch.testing.assert_close(actual[0, :, 1], bins)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_outer_points_can_start_on_the_edges(kernel_size):
    actual = points(box_alignment(kernel_size, to_edges=True), [0.0, 0.0, 0.0, 0.0])
    places = torch.linspace(-SIZE / 2, SIZE / 2, kernel_size) if kernel_size > 1 else torch.zeros(1)
    torch.testing.assert_close(actual[:, 0, 0], places)
    torch.testing.assert_close(actual[0, :, 1], places)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_points_follow_the_adjusted_box_to_first_order(weights):
    dx, dy, dw, dh = deltas = [0.3, -0.2, 0.02, -0.03]
    actual = points(box_alignment(3, weights), deltas, weights)
    width, height = SIZE * math.exp(dw), SIZE * math.exp(dh)
    steps = torch.tensor([-1.0, 0.0, 1.0])
    y, x = SIZE * dy + steps * height / 3, SIZE * dx + steps * width / 3
    expected = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    torch.testing.assert_close(actual, expected, atol=SIZE / 3 * 0.03**2, rtol=0)


def head(*opts):
    names = [f"p{level}" for level in range(3, 8)]
    cfg = load_config("configs/Base-MimicDet.yaml", list(opts))
    return StudentHead(cfg, {n: ShapeSpec(channels=16, stride=8 << i) for i, n in enumerate(names)})


def test_the_head_starts_at_boxes_only_when_asked():
    key = "MODEL.MIMICDET.STUDENT.OFFSET_INIT"
    for kernel in ("k3", "k5"):
        box = points(head(key, "box").alignments[kernel], [0.0, 0.0, 0.0, 0.0])
        edges = points(head(key, "edges").alignments[kernel], [0.0, 0.0, 0.0, 0.0])
        random = points(head(key, "random").alignments[kernel], [0.0, 0.0, 0.0, 0.0])
        k = int(kernel[1])
        assert box[-1, -1].tolist() == pytest.approx([SIZE / k * (k // 2)] * 2, abs=0.02)
        assert edges[-1, -1].tolist() == pytest.approx([SIZE / 2] * 2, abs=0.02)
        assert random[-1, -1].tolist() == pytest.approx([k // 2] * 2, abs=0.02)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.MIMICDET.STUDENT.OFFSET_INIT", "nowhere"],
        ["MODEL.MIMICDET.STUDENT.OFFSET_INIT", "box", "MODEL.MIMICDET.STUDENT.ALIGNMENT", "conv"],
        [
            *("MODEL.MIMICDET.STUDENT.OFFSET_INIT", "box"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [400]]"),
        ],
        [
            *("MODEL.MIMICDET.STUDENT.OFFSET_INIT", "box"),
            *("MODEL.MIMICDET.STUDENT.OFFSET_DIMS", "[4, 4]"),
        ],
    ],
)
def test_what_cannot_start_at_boxes_is_an_error(opts):
    with pytest.raises(ValueError, match="OFFSET_INIT"):
        head(*opts)
