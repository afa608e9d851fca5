from .adapters import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .config import add_distillation_config
from .distiller import DistillationState, Distiller, Term, build_distiller
from .methods import DISTILLATION_REGISTRY, DistillationMethod
from .methods.feature_imitation import FeatureImitation
from .methods.fine_grained import FineGrained
from .methods.head_mimic import HeadMimic
from .methods.prediction_guided import PredictionGuided
from .methods.rank_mimicking import RankMimicking
from .methods.soft_labels import SoftLabels
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
