from .base import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .dense import DenseDetectorAdapter, FCOSAdapter, RetinaNetAdapter
from .mimicdet import MimicDetAdapter
from .rcnn import GeneralizedRCNNAdapter

__all__ = [
    "ADAPTER_REGISTRY",
    "DenseDetectorAdapter",
    "DetectorAdapter",
    "FCOSAdapter",
    "GeneralizedRCNNAdapter",
    "MimicDetAdapter",
    "RetinaNetAdapter",
    "build_adapter",
]
