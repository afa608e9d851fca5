"""The staggered pyramid, backbones that Detectron2 lacks, and a feature pyramid on any of them."""

from . import shufflenet, staged
from .pyramid import build_pyramid_backbone
from .staggered_fpn import StaggeredFPN, build_resnet_staggered_fpn_backbone

__all__ = [
    "StaggeredFPN",
    "build_pyramid_backbone",
    "build_resnet_staggered_fpn_backbone",
    "shufflenet",
    "staged",
]
