"""Linear layers on rows, in the library that multiplies fastest."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    torch.nn.functional.linear, (..., C) to (..., O).

    On a CPU in float32 it runs as a 1x1 convolution, by oneDNN. PyTorch gives matrix products to
    MKL, which took twice the time on the processor that was measured, forward and backward
    (docs/performance.md). Exported and traced graphs hold a linear layer.
    """
    if not _by_convolution(x):
        return F.linear(x, weight, bias)
    rows = x.reshape(1, 1, -1, x.shape[-1])
    found = F.conv2d(rows.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return found.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _by_convolution(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")  # half precision is oneDNN's in any case
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and x.numel() > 0
    )


class Linear(nn.Linear):
    """torch.nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
