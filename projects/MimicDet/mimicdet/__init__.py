"""MimicDet for Detectron2: importing this registers its components and data sets."""

from . import data, model_zoo
from .config import add_mimicdet_config
from .distillation import DISTILLATION_REGISTRY, DistillationMethod, Distiller, build_distiller
from .export import optimize_for_inference
from .modeling import ATSS, FCOS, GFL, MimicDet, MultiClassRPN
from .modeling.backbone import (
    StaggeredFPN,
    build_pyramid_backbone,
    build_resnet_staggered_fpn_backbone,
    build_staggered_fpn_backbone,
    build_timm_backbone,
)
from .modeling.heads import MimicTeacherHeads, StudentHead
from .modeling.proposal_generator import RefinementModule
from .utils.version import __version__

__all__ = [
    "ATSS",
    "DISTILLATION_REGISTRY",
    "DistillationMethod",
    "Distiller",
    "FCOS",
    "GFL",
    "MimicDet",
    "MimicTeacherHeads",
    "MultiClassRPN",
    "RefinementModule",
    "StaggeredFPN",
    "StudentHead",
    "__version__",
    "add_mimicdet_config",
    "build_distiller",
    "build_pyramid_backbone",
    "build_resnet_staggered_fpn_backbone",
    "build_staggered_fpn_backbone",
    "build_timm_backbone",
    "data",
    "model_zoo",
    "optimize_for_inference",
]
