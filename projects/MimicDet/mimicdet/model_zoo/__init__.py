"""The configs that come with MimicDet, by name, and the trained models that are published."""

from .model_zoo import (
    get,
    get_checkpoint_url,
    get_config,
    get_config_file,
    list_configs,
    list_models,
)

__all__ = [
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "list_configs",
    "list_models",
]
