from .alignment import ALIGNMENTS, GuidedAlignment, build_alignment
from .deform_conv import deform_conv2d
from .sparse_conv import Places, RowLayout, conv_at, pyramid_rows, sample_rows

__all__ = [
    "ALIGNMENTS",
    "GuidedAlignment",
    "Places",
    "RowLayout",
    "build_alignment",
    "conv_at",
    "deform_conv2d",
    "pyramid_rows",
    "sample_rows",
]
