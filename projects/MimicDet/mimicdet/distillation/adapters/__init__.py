from .base import ADAPTER_REGISTRY, DetectorAdapter, build_adapter
from .dense import (
    ATSSAdapter,
    DenseDetectorAdapter,
    FCOSAdapter,
    GFLAdapter,
    MultiClassRPNAdapter,
    RetinaNetAdapter,
)
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
    "MultiClassRPNAdapter",
    "RetinaNetAdapter",
    "build_adapter",
]
