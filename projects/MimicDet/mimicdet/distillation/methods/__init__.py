"""Distillation methods, one file each."""

from .base import DISTILLATION_REGISTRY, DistillationMethod
from .feature_imitation import FeatureImitation
from .fine_grained import FineGrained
from .head_mimic import HeadMimic
from .prediction_guided import PredictionGuided
from .rank_mimicking import RankMimicking
from .soft_labels import SoftLabels

__all__ = [
    "DISTILLATION_REGISTRY",
    "DistillationMethod",
    "FeatureImitation",
    "FineGrained",
    "HeadMimic",
    "PredictionGuided",
    "RankMimicking",
    "SoftLabels",
]
