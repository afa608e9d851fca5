"""Multiply-adds of operators that fvcore does not know and would count as free."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def register_flops(operator: str, count: Callable[[list[Any], list[Any]], Any]) -> None:
    """
    Let fvcore's FlopCountAnalysis, and so Detectron2's, count an operator in every model.

    fvcore offers this for one analysis at a time alone, and Detectron2's tools make their own:
    hence its private table. In a version without that table nothing is registered.

    Args:
        operator: "namespace::name"; count: multiply-adds by the traced inputs and outputs.
    """
    table = getattr(import_module("fvcore.nn.flop_count"), "_DEFAULT_SUPPORTED_OPS", {})
    table.setdefault(operator, count)
