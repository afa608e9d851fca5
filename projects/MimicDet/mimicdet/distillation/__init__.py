from .adapters import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .distiller import (
    DistillationState,
    Distiller,
    Term,
    build_distiller,
    inherit_from_teacher,
)
from .methods import DISTILLATION_REGISTRY, DistillationMethod
from .teacher import FrozenTeacher, build_separate_teacher
from .tensors import DetectorTensors, Locations, Positives

__all__ = [
    "ADAPTER_REGISTRY",
    "DISTILLATION_REGISTRY",
    "DetectorAdapter",
    "DetectorTensors",
    "DistillationMethod",
    "DistillationState",
    "Distiller",
    "FrozenTeacher",
    "Locations",
    "Positives",
    "Term",
    "build_adapter",
    "build_distiller",
    "build_separate_teacher",
    "inherit_from_teacher",
]
