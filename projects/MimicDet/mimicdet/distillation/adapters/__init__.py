"""Adapters of detectors. Importing a file here registers its adapters."""

from . import dense, mimicdet, rcnn
from .base import ADAPTER_REGISTRY, DetectorAdapter, build_adapter

__all__ = ["ADAPTER_REGISTRY", "DetectorAdapter", "build_adapter", "dense", "mimicdet", "rcnn"]
