"""Initial weights by name: what two models share starts alike, whatever else each has."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from ..data.loader import FOR_WEIGHTS, seed_generators, seeded


class _Touches(TorchFunctionMode):
    """
    Counts the calls of PyTorch's functions on parameters, and before each seeds the generators with
    the seed and the name of the parameter.
    """

    def __init__(self, seed: int, names: Iterator[str] | None = None):
        """
        Args:
            names: of the parameter of each call; None: not known yet, nothing is seeded.
        """
        super().__init__()
        self.seed, self.names = seed, names
        self.touched: list[nn.Parameter] = []

    def names_in(self, model: nn.Module) -> list[str]:
        """The name in the model of the parameter of each call; "": of one that is no part of it."""
        names = {id(p): name for name, p in model.named_parameters()}
        return [names.get(id(p), "") for p in self.touched]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # PyTorch hands the tensor of torch.nn.init's functions on as a keyword.
        given: tuple[Any, ...] = (*args[:1], *(kwargs or {}).values())
        parameter = next((x for x in given if isinstance(x, nn.Parameter)), None)
        if parameter is not None:
            if self.names:
                name = next(self.names, "")
                seed_generators(self.seed, *name.encode(), FOR_WEIGHTS)
            self.touched.append(parameter)
        return func(*args, **(kwargs or {}))


def build_by_name(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """
    A model in which what a parameter starts with is a function of (seed, its name, shape and
    distribution) alone, and not of the layers that were built before it. Parameters of one name,
    shape and distribution are thus equal in every model of the seed.

    A parameter has its name only when the model is whole. So it is built twice: the first one tells
    whose values are drawn when, before the second one each draw is seeded. Random numbers go on
    afterwards as if nothing had been drawn.

    Args:
        build: the same model at each call, its layers and random numbers in the same order.
        seed: >= 0.
    """
    with seeded(seed, FOR_WEIGHTS):
        with _Touches(seed) as first:
            model = build()
        names = first.names_in(model)
        with _Touches(seed, iter(names)) as second:
            model = build()
    if second.names_in(model) != names:
        raise ValueError("a model that was built twice was not built alike")
    return model
