"""
Tensors that say they are a GPU's and compute on the CPU: mixed devices fail as they would there.

For inference: autograd would look for the GPU itself. Where a GPU is at hand it is the better test.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
# Between devices on purpose.
_COPIES = {"_to_copy", "copy_"}
# Left to the dispatcher below, which sees the device that they ask for.
_BY_DISPATCH = {"to", "cpu", "cuda", "type", "detach", "requires_grad_"}
_BUILTIN = {"method_descriptor", "builtin_function_or_method", "wrapper_descriptor"}


class StandIn(Tensor):
    """A tensor of DEVICE around one of the CPU, `real`."""

    @staticmethod
    def __new__(cls, real: Tensor) -> "StandIn":
        found = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        found.real_tensor = real
        return found

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        # PyTorch's own functions select the device before they come to the dispatcher.
        if type(func).__name__ in _BUILTIN and "device" not in kwargs and name not in _BY_DISPATCH:
            return _run(name, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes a StandIn of what is created on the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def real(value: Any) -> Any:
    """A StandIn's tensor; anything else as it is."""
    return value.real_tensor if isinstance(value, StandIn) else value


def _dispatch(func, args, kwargs):
    device = kwargs.get("device")
    if device is None:
        return _run(func.overloadpacket.__name__, func, args, kwargs)
    found = func(*tree_map(real, args), **tree_map(real, {**kwargs, "device": "cpu"}))
    return StandIn(found) if torch.device(device).type == "cuda" else found


def _run(name, func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    stands_in = any(isinstance(x, StandIn) for x in tensors)
    if stands_in and name not in _COPIES:
        strangers = [x for x in tensors if not isinstance(x, StandIn) and x.dim() > 0]
        if strangers:
            raise RuntimeError(f"{name}: tensors of the CPU {[tuple(x.shape) for x in strangers]}")
    found = func(*tree_map(real, args), **tree_map(real, kwargs))
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place and isinstance(args[0], Tensor):
        return args[0]
    if not stands_in:
        return found
    return tree_map(lambda x: StandIn(x) if type(x) is Tensor else x, found)


def move(module: nn.Module) -> nn.Module:
    """Put parameters and buffers on DEVICE, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(StandIn(value.data), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = StandIn(value)
    return module


@contextlib.contextmanager
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """In it DEVICE can be asked for. Yields a counter of copies of Python's numbers to it."""
    copies: Counter = Counter()

    def from_python(create):
        def created(data, *args, device=None, **kwargs):
            if device is None or torch.device(device).type != "cuda":
                return create(data, *args, device=device, **kwargs)
            if isinstance(data, StandIn):
                return data
            copies[create.__name__] += 1
            return StandIn(create(data, *args, **kwargs))

        return created

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # has operators of its own
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, from_python(getattr(torch, name)))
    with _Factories(), torch.no_grad():
        yield copies
