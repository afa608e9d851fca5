from .adapters import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .config import add_distillation_config
from .distiller import DistillationState, Distiller, Term, build_distiller
from .methods import (
    DISTILLATION_REGISTRY,
    DistillationMethod,
    FeatureImitation,
    FineGrained,
    HeadMimic,
    PredictionGuided,
    RankMimicking,
    SoftLabels,
)
from .teacher import FrozenTeacher, build_separate_teacher, build_teacher
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
    "FeatureImitation",
    "FineGrained",
    "FrozenTeacher",
    "HeadMimic",
    "Locations",
    "Positives",
    "PredictionGuided",
    "RankMimicking",
    "SoftLabels",
    "Term",
    "add_distillation_config",
    "build_adapter",
    "build_distiller",
    "build_separate_teacher",
    "build_teacher",
]
