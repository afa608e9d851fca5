"""
Convolutions for inference on a CPU: oneDNN's kernels, with what follows a convolution done in them.

A ReLU behind a convolution, and the sum with a shortcut before it, each read and write a whole map
again; oneDNN applies them while its results are still in registers. It also likes weights in an
order of its own, which PyTorch makes anew in every call.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn

# What may follow a convolution: oneDNN's name and parameters for it.
_ACTIVATIONS: dict[str, list[float]] = {"none": [], "relu": [], "hardtanh": [0.0, 6.0]}


class FusedConv2d(nn.Module):
    """
    activation(conv(x)), or activation(conv(x) + other), by oneDNN in one go.

    The best order of the weights depends on the map's size, and oneDNN is slow where it gets
    another one. So weights are packed for a size when it is seen again, and kept for few sizes;
    until then, and for images that all differ, PyTorch's order is used, as ever. Where oneDNN's
    operator cannot be (another device or type, gradients, export, torch.compile) the result is
    PyTorch's. The state_dict is the convolution's.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none", kept_sizes: int = 1):
        """
        Args:
            conv: its weight and bias are shared; norm and activation, where it is Detectron2's,
                are not looked at.
            activation: "none", "relu" or "hardtanh", which is ReLU6.
            kept_sizes: for how many sizes of maps packed weights are kept, each as large as the
                weights.
        """
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, not one of {sorted(_ACTIVATIONS)}")
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.activation = activation
        self.kept_sizes = kept_sizes
        self._packed: dict[torch.Size, Tensor | None] = {}  # None: seen once

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W); other: what is added, of the result's shape."""
        x = x.to(self.weight.dtype)
        if not self._is_for_onednn(x, other):
            padding, stride, dilation, groups = self.geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if other is None else y + other
            return (
                y if self.activation == "none" else getattr(F, self.activation)(y, *self._scalars)
            )
        weight = self._weight_for(x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise
        after = self.activation, self._scalars
        if other is None:
            return convolve(x, weight, self.bias, *self.geometry, *after, "")
        if self.activation == "none":
            after = None, []
        return convolve.binary(
            x, other.to(x.dtype), weight, self.bias, *self.geometry, "add", 1.0, *after, None
        )

    @property
    def _scalars(self) -> list[float]:
        return _ACTIVATIONS[self.activation]

    def _is_for_onednn(self, x: Tensor, other: Tensor | None) -> bool:
        tensors = [t for t in (x, other, self.weight, self.bias) if t is not None]
        return (
            {t.device.type for t in tensors} == {"cpu"}
            and x.dtype in (torch.float32, torch.bfloat16)
            and (other is None or self.activation != "hardtanh")  # which is not behind a sum
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )

    def _weight_for(self, size: torch.Size) -> Tensor:
        """The weight as oneDNN takes it fastest for maps of the size."""
        kept = self._packed  # never changed in place: other threads may be reading it
        packed = kept.get(size)
        if packed is None and size in kept:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *self.geometry, list(size)
            )
        others = [item for item in kept.items() if item[0] != size]
        first = max(0, len(others) + 1 - self.kept_sizes)  # what was used longest ago goes
        self._packed = dict([*others[first:], (size, packed)])
        return self.weight if packed is None else packed

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.geometry}, activation={self.activation}"

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights have no storage that copy.deepcopy or torch.save could read."""
        return {**self.__dict__, "_packed": {}}


def fuse_convolutions(model: nn.Module, kept_sizes: int = 1) -> int:
    """
    Replace every convolution inside the model, in place, by one of oneDNN's with packed weights,
    together with the activation and the sum that follow it, as far as they are known: those of
    Detectron2's convolutions and ResNets, and what stands behind a convolution in a Sequential.
    The model is in eval mode and its batch norms are folded.

    Args:
        kept_sizes: see FusedConv2d; as many as there are levels where they share a convolution.

    Returns:
        how many convolutions were replaced.
    """
    count = 0
    for name, child in list(model.named_children()):
        if _convertible(child):
            activation = _name_of(getattr(child, "activation", None))
            setattr(model, name, FusedConv2d(child, activation, kept_sizes))
            count += 1
            continue
        count += fuse_convolutions(child, kept_sizes)
        wrapper = _RESNET_PARTS.get(type(child))
        if wrapper is not None and isinstance(child.conv1, FusedConv2d):
            setattr(model, name, wrapper(child))
    if isinstance(model, nn.Sequential):
        _take_in_activations(model)
    return count


class _FusedStem(nn.Module):
    """Detectron2's BasicStem."""

    def __init__(self, stem: BasicStem):
        super().__init__()
        self.conv1 = stem.conv1
        self.conv1.activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class _FusedBlock(nn.Module):
    """Detectron2's BasicBlock and BottleneckBlock."""

    def __init__(self, block: BasicBlock | BottleneckBlock):
        super().__init__()
        self.shortcut = block.shortcut
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.conv3 = getattr(block, "conv3", None)
        for conv in (self.conv1, self.conv2, self.conv3):
            if conv is not None:
                conv.activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.conv3 is None:
            return self.conv2(self.conv1(x), shortcut)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


_RESNET_PARTS = {BasicStem: _FusedStem, BasicBlock: _FusedBlock, BottleneckBlock: _FusedBlock}


def _convertible(module: nn.Module) -> bool:
    return (
        type(module) in (nn.Conv2d, Conv2d)
        and getattr(module, "norm", None) is None
        and _name_of(getattr(module, "activation", None)) is not None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _name_of(activation: Any) -> str | None:
    """oneDNN's name for an activation of a Detectron2 convolution; None: it has none."""
    if activation is None:
        return "none"
    if isinstance(activation, nn.ReLU6):
        return "hardtanh"
    if isinstance(activation, nn.ReLU) or activation in (F.relu, F.relu_):
        return "relu"
    return None


def _take_in_activations(layers: nn.Sequential) -> None:
    """Give each convolution the activation behind it; an Identity stays in its place."""
    names = [name for name, x in layers._modules.items() if not isinstance(x, nn.Identity)]
    for first, second in zip(names, names[1:]):
        conv, activation = layers._modules[first], layers._modules[second]
        name = _name_of(activation)
        if isinstance(conv, FusedConv2d) and conv.activation == "none" and name is not None:
            conv.activation = name
            layers._modules[second] = nn.Identity()
