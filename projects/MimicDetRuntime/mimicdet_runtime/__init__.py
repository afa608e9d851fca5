"""
Run exported MimicDet detectors with ONNX Runtime.

    from mimicdet_runtime import Detector, read_image

    detections = Detector("model.onnx")(read_image("photo.jpg"))

Neither PyTorch nor Detectron2 is imported, here or anywhere in this package. The public names are
looked up when they are first used, so that the command line answers before NumPy, OpenCV and ONNX
Runtime are loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .errors import UserError
    from .images import read_image
    from .metadata import ModelInfo

__all__ = ["Detections", "Detector", "UserError", "ModelInfo", "__version__", "read_image"]

_HOMES = {
    "Detections": "detections",
    "Detector": "detector",
    "UserError": "errors",
    "ModelInfo": "metadata",
    "read_image": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
