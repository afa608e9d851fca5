"""MimicDet, and the dense detectors that Detectron2 lacks or has without a yaml config."""

from . import config_checks
from .atss import ATSS
from .fcos import FCOS
from .gfl import GFL
from .mimicdet import MimicDet
from .multi_class_rpn import MultiClassRPN

__all__ = ["ATSS", "FCOS", "GFL", "MimicDet", "MultiClassRPN", "config_checks"]
