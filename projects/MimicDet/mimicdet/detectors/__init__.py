"""Dense detectors that Detectron2 lacks or has without a yaml config."""

from .atss import ATSS
from .config import add_detector_config
from .fcos import FCOS
from .gfl import GFL
from .multi_class_rpn import MultiClassRPN

__all__ = ["ATSS", "FCOS", "GFL", "MultiClassRPN", "add_detector_config"]
