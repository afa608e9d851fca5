"""The staggered pyramid, backbones that Detectron2 lacks, and a feature pyramid on any of them."""

from .pyramid import build_pyramid_backbone
from .shufflenet import ShuffleNet, build_shufflenet_backbone
from .staged import StagedBackbone, build_mobilenet_v2_backbone, build_vgg_backbone
from .staggered_fpn import StaggeredFPN, build_resnet_staggered_fpn_backbone

__all__ = [
    "ShuffleNet",
    "StagedBackbone",
    "StaggeredFPN",
    "build_mobilenet_v2_backbone",
    "build_pyramid_backbone",
    "build_resnet_staggered_fpn_backbone",
    "build_shufflenet_backbone",
    "build_vgg_backbone",
]
