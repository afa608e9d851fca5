from .base import DISTILLATION_REGISTRY, DistillationMethod
from .distiller import Distiller, build_distiller
from .head_mimic import HeadMimic
from .separate_teacher import SeparateTeacher, build_separate_teacher

__all__ = [
    "DISTILLATION_REGISTRY",
    "DistillationMethod",
    "Distiller",
    "HeadMimic",
    "SeparateTeacher",
    "build_distiller",
    "build_separate_teacher",
]
