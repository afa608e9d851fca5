from .checkpoint import MimicCheckpointer, load_weights
from .hooks import BestCheckpointer
from .setup import load_config, setup_cfg
from .trainer import MimicTrainer
from .tta import MimicDetWithTTA

__all__ = [
    "BestCheckpointer",
    "MimicCheckpointer",
    "MimicDetWithTTA",
    "MimicTrainer",
    "load_config",
    "load_weights",
    "setup_cfg",
]
