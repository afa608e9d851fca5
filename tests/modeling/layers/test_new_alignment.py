"""A new alignment layer is one class: it runs sparse, dense, exported, and can be drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from mimicdet.export.detector import ExportableDetector
from mimicdet.export.verify import to_batch
from mimicdet.modeling.layers import ALIGNMENTS, AlignmentLayer, register_alignment
from mimicdet.modeling.structures import HeadPredictions
from mimicdet.visualization import sampling_points
from tests.export.conftest import assert_same, decided_model, eager, noise
from tests.helpers import make_input

KEY = "MODEL.MIMICDET.STUDENT."


@pytest.fixture
def spread():
    """Points spread by what the deltas say of the box's size; a 1x1 conv sees the middle too."""

    @register_alignment("spread")
    class SpreadAlignment(AlignmentLayer):
        def __init__(self, in_channels, kernel_size, settings):
            super().__init__(in_channels, kernel_size, settings)
            self.middle = nn.Conv2d(in_channels, settings.dim, 1)
            steps = torch.arange(kernel_size) - kernel_size // 2
            self.register_buffer("grid", torch.cartesian_prod(steps, steps).float(), False)

        def offsets(self, reader):
            factor = 1 + reader.guidance[..., 2:].flip(-1).tanh()  # (dh, dw)
            return (factor[..., None, :] * self.grid).flatten(-2)

        def forward(self, reader):
            return super().forward(reader) + reader.conv(self.middle)

    yield SpreadAlignment
    del ALIGNMENTS["spread"]


@torch.no_grad()
def outputs(model, inputs):
    images = model.preprocess_image(inputs)
    actual = model.predict(model.backbone(images.tensor), images.image_sizes)
    return actual.proposals, actual.predictions


def test_a_new_layer_runs_sparse_dense_exported_and_drawn(spread):
    opts = (f"{KEY}ALIGNMENT", "spread")
    model, dense = decided_model(*opts), decided_model(*opts, f"{KEY}SPARSE", False)
    assert all(isinstance(x, spread) for x in model.student_head.alignments.values())
    dense.load_state_dict(model.state_dict())
    images = [noise(90, 120, 1), noise(131, 75, 3)]
    inputs = [{"image": torch.from_numpy(x).permute(2, 0, 1).float()} for x in images]
    (proposals, sparse_out), (_, dense_out) = outputs(model, inputs), outputs(dense, inputs)
    assert isinstance(sparse_out, HeadPredictions)
    for a, b in zip(vars(sparse_out).values(), vars(dense_out).values()):
        valid = proposals.valid
        bound = 1e-4 * float(b.abs().max())
        torch.testing.assert_close(a[valid], b[valid], atol=bound, rtol=1e-4)
    expected = eager(model, images)
    assert sum(map(len, expected)) > 20
    exported = ExportableDetector(model)
    assert_same(exported(*map(torch.from_numpy, to_batch(images))), expected)
    program = torch.jit.trace(exported, tuple(map(torch.from_numpy, to_batch(images))))
    other = [noise(100, 70, 5)]
    assert_same(program(*map(torch.from_numpy, to_batch(other))), eager(model, other))


def test_its_points_are_drawn_where_it_reads(spread):
    model = decided_model(f"{KEY}ALIGNMENT", "spread")
    record = sampling_points(model, make_input())
    assert len(record.points) == 5
    for xy, anchor, stride in zip(record.points, record.anchors, record.strides):
        middle = (anchor[:2] + anchor[2:]) / 2
        np.testing.assert_allclose(xy[len(xy) // 2], middle, atol=1e-3)
        width = np.ptp(xy[:, 0]) / (round(len(xy) ** 0.5) - 1)
        # The kernel's own step, and up to twice as much by the offsets.
        assert stride < width < 3 * stride
