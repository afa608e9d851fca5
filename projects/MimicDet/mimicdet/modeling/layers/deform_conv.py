"""
Deformable convolution, and the one rule which implementation runs it.

Detectron2's kernels run where they can: on CUDA, when Detectron2 was built with CUDA, on float32.
Everywhere else torchvision's do (Detectron2 has no backward on a CPU). Both have the same weights
and the same order of offsets; tests hold them to each other at 1e-5. Half precision is computed in
float32: sample points need the digits.
"""

import torch
from detectron2 import _C
from detectron2.layers.deform_conv import deform_conv as detectron2_deform_conv
from fvcore.nn.jit_handles import conv_flop_count, get_shape
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from .flops import register_flops
from .precision import at_least_float32

HAS_CUDA_KERNELS = bool(_C.has_cuda())  # in Detectron2's compiled part


def deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    Deformable convolution of stride 1 and "same" padding.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * k * k, H, W), in pixels of x; (dy, dx) for each kernel point, row-major.
        weight: (O, C, k, k); bias: (O,) or None.

    Returns:
        (N, O, H, W), in x's dtype. Points outside the map read as zero.
    """
    padding = int(weight.shape[-1]) // 2  # a tensor while jit traces
    dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        # A point that is nowhere reads as zero; torchvision's kernel would read beyond the map.
        offset = offset.to(x.dtype).nan_to_num(nan=torch.finfo(x.dtype).max)
        weight = weight.to(x.dtype)
        if x.is_cuda and x.dtype == torch.float32 and HAS_CUDA_KERNELS:
            out = detectron2_deform_conv(x, offset, weight, 1, padding)
            if bias is not None:
                out = out + bias.to(x.dtype)[:, None, None]
        else:
            bias = None if bias is None else bias.to(x.dtype)
            out = torchvision_deform_conv2d(x, offset, weight, bias, padding=padding)
    return out.to(dtype)


def _deform_conv_flops(inputs, outputs):
    """Multiply-adds of torchvision's operator, counted as a convolution's."""
    x, weight, out = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    return conv_flop_count(x, weight, out)


# Uncounted it would hide most of the S-head.
register_flops("torchvision::deform_conv2d", _deform_conv_flops)
