"""
What other rooms say about the config: their own keys, and what must hold between keys.

They register it here, so that this room imports none of them.
"""

from collections.abc import Callable

from detectron2.config import CfgNode

from ..utils.errors import UserError

_DEFAULTS: list[Callable[[CfgNode], None]] = []
_CHECKS: list[Callable[[CfgNode], list[str]]] = []


def config_defaults(function: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Decorator: the function adds keys with their defaults to every new config, in place."""
    _DEFAULTS.append(function)
    return function


def config_check(function: Callable[[CfgNode], list[str]]) -> Callable[[CfgNode], list[str]]:
    """Decorator: the function returns a line for each contradiction, naming the key."""
    _CHECKS.append(function)
    return function


def add_extensions(cfg: CfgNode) -> None:
    """Add what is registered as config_defaults, in place."""
    for add in _DEFAULTS:
        add(cfg)


def check_config(cfg: CfgNode) -> None:
    """Raise UserError with every contradiction in the config, before anything is built."""
    problems = [line for check in _CHECKS for line in check(cfg)]
    if problems:
        raise UserError("The config contradicts itself:\n  " + "\n  ".join(problems))
