"""The configs that come with MimicDet, by name."""

from .model_zoo import get_checkpoint, get_config, get_config_file, list_configs

__all__ = ["get_checkpoint", "get_config", "get_config_file", "list_configs"]
