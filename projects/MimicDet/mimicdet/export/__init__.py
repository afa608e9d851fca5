"""Deployable graphs of the student: ONNX, TorchScript and torch.export's pt2."""

from .detector import INPUT_NAMES, OUTPUT_NAMES, ExportableDetector
from .formats import FORMATS, load_exported
from .optimize import optimize_for_inference
from .writer import ExportOptions, export_model

__all__ = [
    "FORMATS",
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "ExportOptions",
    "ExportableDetector",
    "export_model",
    "load_exported",
    "optimize_for_inference",
]
