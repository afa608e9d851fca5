"""Configuration: the keys with their defaults, loading a file, checks of a whole config."""

from .defaults import add_mimicdet_config
from .extensions import check_config, config_check, config_defaults
from .load import load_config

__all__ = [
    "add_mimicdet_config",
    "check_config",
    "config_check",
    "config_defaults",
    "load_config",
]
