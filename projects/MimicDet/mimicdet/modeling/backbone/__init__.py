"""The staggered pyramid, backbones that Detectron2 lacks, and a feature pyramid on any of them."""

from . import shufflenet
from .pyramid import build_pyramid_backbone
from .staggered_fpn import (
    StaggeredFPN,
    build_resnet_staggered_fpn_backbone,
    build_staggered_fpn_backbone,
)
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "StaggeredFPN",
    "TimmBackbone",
    "build_pyramid_backbone",
    "build_resnet_staggered_fpn_backbone",
    "build_staggered_fpn_backbone",
    "build_timm_backbone",
    "shufflenet",
]
