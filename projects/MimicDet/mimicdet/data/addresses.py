"""Kinds of data addresses, "PREFIX:...": entries of DATASETS.TRAIN and TEST that need no Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AddressKind:
    """
    How an address of one prefix is read.

    Attributes:
        usage: how to write one, for errors; it begins with the prefix and a colon.
        register: called as register(address, *parse(address)), it checks the data and registers
            them in Detectron2's catalogs as `address`, with thing_classes and evaluator_type.
        parse: the parts of an address, by default those between colons; ValueError: faulty.
        readable: called as readable(*parse(address)): what to call the data in a file name.
    """

    usage: str
    register: Callable[..., None]
    parse: Callable[[str], Sequence[Any]]
    readable: Callable[..., str]


_KINDS: dict[str, AddressKind] = {}


def address_kind(
    usage: str,
    parse: Callable[[str], Sequence[Any]] = lambda address: address.split(":")[1:],
    readable: Callable[..., str] = lambda *parts: "_".join(map(str, parts)),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Decorator: the function registers the data of addresses with the prefix of `usage`; see
    AddressKind. Importing its file is enough. ValueError: the prefix is taken.
    """
    prefix = usage.partition(":")[0]

    def add(function: Callable[..., None]) -> Callable[..., None]:
        if prefix in _KINDS:
            raise ValueError(f"there is a kind of data address {prefix!r} already")
        _KINDS[prefix] = AddressKind(usage, function, parse, readable)
        return function

    return add


def find_kind(name: str) -> AddressKind | None:
    """The kind of an address; None for a name that is none."""
    prefix, colon, _ = name.partition(":")
    return _KINDS.get(prefix) if colon else None


def how_to_write() -> str:
    """Every kind's usage, for errors."""
    *others, last = (kind.usage for kind in _KINDS.values())
    return f"{', '.join(others)} or {last}"
