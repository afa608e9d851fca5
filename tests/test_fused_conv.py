"""Fused convolutions (layers/fused_conv.py): the same numbers, whatever follows a convolution."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mimicdet.inference import fold_batch_norms
from mimicdet.layers.fused_conv import FusedConv2d, fuse_convolutions

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "hardtanh": F.relu6}


class Operators(TorchDispatchMode):
    """The names of the operators that run while it is entered."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


def maps(*shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def frozen(module):
    """In eval mode without gradients, weights random and batch norms far from doing nothing."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.uniform_(-0.3, 0.5, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        dict(kernel_size=1),
        dict(kernel_size=3, padding=1, bias=False),
        dict(kernel_size=3, stride=2, padding=(1, 0), groups=2),
        dict(kernel_size=3, padding=2, dilation=2),
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_the_numbers_are_the_convolutions(activation, summed, settings):
    conv = frozen(nn.Conv2d(8, 12, **settings))
    fused = FusedConv2d(conv, activation)
    for size in ((9, 7), (9, 7), (9, 7), (4, 16)):  # not packed, packed, kept, another size
        x = maps(2, 8, *size)
        expected = conv(x)
        other = maps(*expected.shape, seed=1) if summed else None
        expected = ACTIVATIONS[activation](expected + other if summed else expected)
        torch.testing.assert_close(fused(x, other), expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_weights_are_packed_when_a_size_comes_again():
    fused = FusedConv2d(frozen(nn.Conv2d(16, 16, 3, padding=1)), kept_sizes=2)

    def packed():
        return [(tuple(size[2:]), x is not None) for size, x in fused._packed.items()]

    small, middle, large = (maps(1, 16, n, n) for n in (5, 8, 12))
    fused(small)
    assert packed() == [((5, 5), False)]
    fused(middle), fused(small)
    assert packed() == [((8, 8), False), ((5, 5), True)]
    assert fused._packed[small.shape].is_mkldnn
    fused(large)  # the one that was used longest ago makes room
    assert packed() == [((5, 5), True), ((12, 12), False)]


def test_threads_do_not_get_in_each_others_way():
    fused = FusedConv2d(frozen(nn.Conv2d(4, 4, 3)))
    images = [maps(1, 4, n, n, seed=n) for n in range(4, 10)]
    expected = [fused(x) for x in images]

    def work(number):
        for step in range(200):
            index = (number + step // 2) % len(images)
            torch.testing.assert_close(fused(images[index]), expected[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_copy_and_a_file_hold_the_weights():
    conv = frozen(nn.Conv2d(8, 4, 3))
    fused, x = FusedConv2d(conv, "relu"), maps(1, 8, 6, 6)
    for _ in range(2):
        expected = fused(x)
    torch.testing.assert_close(copy.deepcopy(fused)(x), expected)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)
    assert fused.state_dict().keys() == conv.state_dict().keys()
    assert torch.equal(fused.state_dict()["weight"], conv.weight)


def test_gradients_go_through():
    conv = nn.Conv2d(4, 6, 3)
    fused, x, other = FusedConv2d(conv, "relu"), maps(1, 4, 5, 5), maps(1, 6, 3, 3, seed=1)
    wanted = [conv.weight, conv.bias, x.requires_grad_(), other.requires_grad_()]
    found = torch.autograd.grad(fused(x, other).sum(), wanted)
    expected = torch.autograd.grad(F.relu(conv(x) + other).sum(), wanted)
    torch.testing.assert_close(found, expected)
    # Of what is added alone, too.
    frozen(conv)
    (found,) = torch.autograd.grad(fused(x.detach(), other).sum(), other)
    (expected,) = torch.autograd.grad(F.relu(conv(x.detach()) + other).sum(), other)
    torch.testing.assert_close(found, expected)


def test_a_trace_holds_pytorchs_operators():
    fused, x = FusedConv2d(frozen(nn.Conv2d(4, 6, 3)), "relu"), maps(1, 4, 9, 9)
    for _ in range(2):
        expected = fused(x)
    traced = torch.jit.trace(fused, x)
    assert "mkldnn" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), expected)


@needs_onednn
def test_bfloat16():
    conv = frozen(nn.Conv2d(16, 8, 3)).to(torch.bfloat16)
    fused, x = FusedConv2d(conv, "relu"), maps(1, 16, 7, 7)
    for _ in range(2):
        found = fused(x)
        assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), F.relu(conv.float()(x)), atol=0.05, rtol=0.02)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'gelu', not one of"):
        FusedConv2d(nn.Conv2d(3, 3, 1), "gelu")


@needs_onednn
@pytest.mark.parametrize(
    "part, channels",
    [
        (BasicStem(3, 8), 3),
        (BasicBlock(8, 8), 8),
        (BasicBlock(8, 12, stride=2), 8),
        (BottleneckBlock(8, 8, bottleneck_channels=4), 8),
        (BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, num_groups=2), 8),
    ],
    ids=["stem", "basic", "basic with shortcut", "bottleneck", "bottleneck with shortcut"],
)
def test_resnets_run_without_passes_of_their_own(part, channels):
    model = frozen(nn.Sequential(part))
    x = maps(2, channels, 14, 11)
    expected = model(x)
    assert fold_batch_norms(model) == (count := sum(isinstance(m, Conv2d) for m in part.modules()))
    keys = list(model.state_dict())
    assert fuse_convolutions(model) == count
    assert list(model.state_dict()) == keys
    with Operators() as operators:
        found = model(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert operators.names.count("_convolution_pointwise") == count
    assert not {"relu", "relu_", "add", "add_", "convolution"} & set(operators.names)


@needs_onednn
def test_activations_behind_a_convolution():
    model = frozen(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Identity(),  # a batch norm that was folded
            nn.ReLU6(),
            Conv2d(8, 8, 1, activation=F.relu_),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.MaxPool2d(2)),
        )
    )
    x = maps(1, 3, 9, 9)
    expected = model(x)
    assert fuse_convolutions(model) == 3
    found = [model[0].activation, model[3].activation, model[5][0].activation]
    assert found == ["hardtanh", "relu", "relu"]
    assert isinstance(model[2], nn.Identity) and isinstance(model[5][1], nn.Identity)
    assert isinstance(model[4], nn.ReLU)  # the convolution has its own
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4)),
        Conv2d(3, 4, 3, activation=nn.GELU()),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.ConvTranspose2d(3, 4, 3),
    ],
    ids=["norm", "activation", "padding mode", "padding name", "transposed"],
)
def test_what_onednn_cannot_do_is_left_alone(conv):
    model = nn.Sequential(conv, nn.ReLU())
    assert fuse_convolutions(model) == 0
    assert model[0] is conv and isinstance(model[1], nn.ReLU)


def test_a_block_with_a_norm_left_is_left_alone():
    block = BasicBlock(4, 4)
    model = nn.Sequential(block)
    assert fuse_convolutions(model) == 0 and model[0] is block
