from .adapters import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .base import DISTILLATION_REGISTRY, DistillationMethod
from .config import add_distillation_config, check_distillation_config
from .distiller import DistillationState, Distiller, Term, build_distiller
from .head_mimic import HeadMimic
from .separate_teacher import build_separate_teacher
from .teacher import FrozenTeacher, build_teacher
from .tensors import DetectorLayout, DetectorTensors, Locations, Positives

__all__ = [
    "ADAPTER_REGISTRY",
    "DISTILLATION_REGISTRY",
    "DetectorAdapter",
    "DetectorLayout",
    "DetectorTensors",
    "DistillationMethod",
    "DistillationState",
    "Distiller",
    "FrozenTeacher",
    "HeadMimic",
    "Locations",
    "Positives",
    "Term",
    "add_distillation_config",
    "build_adapter",
    "build_distiller",
    "build_separate_teacher",
    "build_teacher",
    "check_distillation_config",
]
