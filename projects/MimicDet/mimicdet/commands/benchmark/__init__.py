"""Time, memory and size of MimicDet beside Detectron2's detectors: what tools/benchmark.py runs."""

from .calibration import calibrate
from .detectors import CASES, DETECTORS, ModelSettings, build_detector
from .report import format_report
from .timing import interleave

__all__ = [
    "CASES",
    "DETECTORS",
    "ModelSettings",
    "build_detector",
    "calibrate",
    "format_report",
    "interleave",
]
