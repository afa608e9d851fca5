"""MimicDet for Detectron2: importing this registers its components and data sets."""

from . import data, model_zoo
from .backbone import StaggeredFPN, build_resnet_staggered_fpn_backbone
from .backbones import build_pyramid_backbone
from .config import add_mimicdet_config
from .detectors import ATSS, FCOS, GFL, MultiClassRPN
from .distillation import DISTILLATION_REGISTRY, DistillationMethod, Distiller, build_distiller
from .inference import optimize_for_inference
from .meta_arch import MimicDet
from .refinement import RefinementModule
from .student_head import StudentHead
from .teacher_head import MimicTeacherHeads

__version__ = "0.1.0"

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
    "add_mimicdet_config",
    "build_distiller",
    "build_pyramid_backbone",
    "build_resnet_staggered_fpn_backbone",
    "data",
    "model_zoo",
    "optimize_for_inference",
]
