from .alignment import ALIGNMENTS, GuidedAlignment, build_alignment
from .deform_conv import deform_conv2d
from .linear import Linear, linear
from .precision import channels_last_pays, fresh_casts
from .sparse_conv import Places, RowLayout, conv_at, kernel_points, pyramid_rows, sample_rows

__all__ = [
    "ALIGNMENTS",
    "GuidedAlignment",
    "Linear",
    "Places",
    "RowLayout",
    "build_alignment",
    "channels_last_pays",
    "conv_at",
    "deform_conv2d",
    "fresh_casts",
    "kernel_points",
    "linear",
    "pyramid_rows",
    "sample_rows",
]
