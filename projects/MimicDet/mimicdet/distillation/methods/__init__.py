"""Distillation methods, one file each. Importing a file here registers its method."""

from importlib import import_module
from pkgutil import iter_modules

from .base import DISTILLATION_REGISTRY, DistillationMethod

__all__ = ["DISTILLATION_REGISTRY", "DistillationMethod"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
