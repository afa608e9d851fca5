"""Detectors, their parts, and the pure functions that they are made of."""

from . import backbone, heads, meta_arch, proposal_generator
from .meta_arch import ATSS, FCOS, GFL, MimicDet, MultiClassRPN

__all__ = [
    "ATSS",
    "FCOS",
    "GFL",
    "MimicDet",
    "MultiClassRPN",
    "backbone",
    "heads",
    "meta_arch",
    "proposal_generator",
]
