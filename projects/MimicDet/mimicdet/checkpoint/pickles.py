"""
Reading of .pkl weights that come from anywhere: the legacy files of Detectron2's and Caffe2's model
zoos, and those of tools/convert_backbone.py. A pickle names functions to call; here it gets
stand-ins that make numbers and nothing else, and any other name is refused.
"""

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

from ..utils.errors import UserError


def load_arrays(path: str) -> Any:
    """
    The content of a .pkl of NumPy arrays, numbers and text in nested dicts.

    Raises:
        UserError: names the class or function that the file asks for and arrays do not need.
        Exception: of many kinds, where the file is no pickle.
    """
    with open(path, "rb") as file:
        return _unwrap(_ArrayUnpickler(file, encoding="latin1").load(), set())


class _Dtype:
    """Stands for numpy.dtype: of numbers alone, whatever a file says of its fields and flags."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        self.value = np.dtype(_text(code))
        if self.value.kind not in "biufc":
            raise UserError(f"it holds an array of {self.value}, not of numbers")

    def __setstate__(self, state: Any) -> None:
        byte_order = _text(state[1])
        if byte_order in ("<", ">"):
            self.value = self.value.newbyteorder(byte_order)


class _Array:
    """Stands for numpy.ndarray."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes in Python 2's protocols so; Python 2's own are text in latin1."""
    return text.encode("latin1") if isinstance(text, str) else text


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: str = "C", *_: Any) -> np.ndarray:
    array = np.frombuffer(bytearray(_encode(data)), dtype.value).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # which torch wants


def _scalar(dtype: _Dtype, data: Any) -> np.generic:
    return _from_buffer(data, dtype, (1,))[0]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


# By module and name; NumPy 2 has renamed numpy.core.
_STAND_INS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",
    "collections.OrderedDict": OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if stand_in is None:
            raise UserError(f"it asks for {module}.{name}: only arrays are read, no code is run")
        return stand_in


def _unwrap(content: Any, seen: set[int]) -> Any:
    """Put the arrays in place of what stands for them, in dicts of dicts; each dict once."""
    if isinstance(content, _Array):
        return content.value
    if isinstance(content, dict) and id(content) not in seen:
        seen.add(id(content))
        for key, value in content.items():
            content[key] = _unwrap(value, seen)
    return content
