"""Linear layers by oneDNN (layers/linear.py): torch's numbers, on the way that was chosen."""

import pytest
import torch
from torch.nn import functional as F

from mimicdet.modeling.layers import Linear, linear


def problem(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = [(*shape, 7), (5, 7), (5,)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in sizes]


@pytest.fixture
def convolutions(monkeypatch):
    """Shapes of what F.conv2d is given."""
    seen, convolve = [], F.conv2d

    def record(x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return convolve(x, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", record)
    return seen


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1,), ()])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape, with_bias, convolutions):
    x, weight, bias = problem(*shape)
    given = [x, weight, bias] if with_bias else [x, weight]
    found, expected = linear(*given), F.linear(*given)
    assert len(convolutions) == 1 and found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(found)
    for ours, reference in zip(
        torch.autograd.grad((found * factors).sum(), given),
        torch.autograd.grad((expected * factors).sum(), given),
    ):
        torch.testing.assert_close(ours, reference)


def test_rows_that_do_not_lie_together(convolutions):
    x, weight, bias = problem(4)
    columns = x.detach().t().contiguous().t()
    torch.testing.assert_close(linear(columns, weight, bias), F.linear(x, weight, bias))
    assert len(convolutions) == 1


@pytest.mark.parametrize("shape, dtype", [((0,), torch.float32), ((6,), torch.float64)])
def test_what_is_left_to_torch(shape, dtype, convolutions):
    x, weight, bias = problem(*shape, dtype=dtype)
    found = linear(x, weight, bias)
    assert not convolutions and found.shape == (*shape, 5)
    found.sum().backward()
    assert weight.grad.shape == weight.shape


def test_mixed_precision_is_left_to_torch(convolutions):
    x, weight, bias = problem(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert not convolutions


def test_graphs_hold_a_linear_layer():
    layer, (x, *_) = Linear(7, 5), problem(6)
    assert isinstance(layer, torch.nn.Linear)
    assert "aten::linear" in str(torch.jit.trace(layer, x.detach()).inlined_graph)
    exported = torch.export.export(layer, (x.detach(),))
    assert "aten.linear" in str(exported.graph) and "conv" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), layer(x))
