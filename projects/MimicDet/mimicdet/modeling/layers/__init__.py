from .alignment import (
    ALIGNMENTS,
    AlignmentLayer,
    AlignmentSettings,
    build_alignments,
    register_alignment,
    start_at_boxes,
)
from .deform_conv import deform_conv2d
from .precision import channels_last_pays, fresh_casts, mixed_precision
from .readers import DensePyramid, PyramidReader, SparsePyramid, levels_by_layer
from .separable import conv3x3

__all__ = [
    "ALIGNMENTS",
    "AlignmentLayer",
    "AlignmentSettings",
    "DensePyramid",
    "PyramidReader",
    "SparsePyramid",
    "build_alignments",
    "channels_last_pays",
    "conv3x3",
    "deform_conv2d",
    "fresh_casts",
    "levels_by_layer",
    "mixed_precision",
    "register_alignment",
    "start_at_boxes",
]
