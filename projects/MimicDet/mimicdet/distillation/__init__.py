from .adapters import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .base import DISTILLATION_REGISTRY, DistillationMethod
from .config import add_distillation_config, check_distillation_config
from .distiller import DistillationState, Distiller, Term, build_distiller
from .feature_imitation import FeatureImitation
from .fine_grained import FineGrained
from .head_mimic import HeadMimic
from .prediction_guided import PredictionGuided
from .rank_mimicking import RankMimicking
from .separate_teacher import build_separate_teacher
from .soft_labels import SoftLabels
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
    "check_distillation_config",
]
