from .base import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .dense import ATSSAdapter, DenseDetectorAdapter, FCOSAdapter, GFLAdapter, RetinaNetAdapter
from .mimicdet import MimicDetAdapter
from .rcnn import GeneralizedRCNNAdapter

__all__ = [
    "ADAPTER_REGISTRY",
    "ATSSAdapter",
    "DenseDetectorAdapter",
    "DetectorAdapter",
    "FCOSAdapter",
    "GFLAdapter",
    "GeneralizedRCNNAdapter",
    "MimicDetAdapter",
    "RetinaNetAdapter",
    "build_adapter",
]
