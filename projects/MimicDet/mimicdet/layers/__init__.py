from .alignment import ALIGNMENTS, GuidedAlignment, build_alignment
from .deform_conv import deform_conv2d
from .sparse_conv import conv_at, gather_at, split_by_level

__all__ = [
    "ALIGNMENTS",
    "GuidedAlignment",
    "build_alignment",
    "conv_at",
    "deform_conv2d",
    "gather_at",
    "split_by_level",
]
