from ..checkpoint import MimicCheckpointer, load_weights
from ..config import load_config
from .hooks import BestCheckpointer
from .predictor import Predictor
from .setup import setup_cfg
from .trainer import MimicTrainer
from .tta import MimicDetWithTTA

__all__ = [
    "BestCheckpointer",
    "MimicCheckpointer",
    "MimicDetWithTTA",
    "MimicTrainer",
    "Predictor",
    "load_config",
    "load_weights",
    "setup_cfg",
]
