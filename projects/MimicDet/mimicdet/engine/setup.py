"""From a config file and overrides to a config that is known to be sound."""

import os
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_mimicdet_config
from ..data import register_datasets
from ..validation import check_config


def load_config(config_file: str, opts: Sequence[str] | None = None) -> CfgNode:
    """
    Detectron2's config with MimicDet's keys, a file and KEY VALUE overrides merged in; not frozen,
    data sets not looked at. Raises FileNotFoundError for a missing file and ValueError or KeyError
    that name an unknown key, a wrong type or an override without a value.
    """
    cfg = get_cfg()
    add_mimicdet_config(cfg)
    if config_file:
        if "://" not in config_file and not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file: there is no file {config_file!r}")
        try:
            cfg.merge_from_file(config_file)
        except (AssertionError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{config_file}: {_text(error)}") from error
    opts = list(opts or [])
    if len(opts) % 2:
        raise ValueError(f"overrides are pairs KEY VALUE; {opts[-1]!r} stands alone in {opts}")
    try:
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"override: {_text(error)}") from error
    return cfg


def setup_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """
    `load_config`, then the data sets registered and checked, the classes taken from them, the
    device checked, and all of MimicDet's keys checked against each other; frozen.
    """
    cfg = load_config(config_file, opts)
    register_datasets(cfg)
    _check_device(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "MimicDet":
        check_config(cfg)
    cfg.freeze()
    return cfg


def _check_device(cfg: CfgNode) -> None:
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but no CUDA device is available; for a CPU add the "
            "override MODEL.DEVICE cpu"
        )


def _text(error: Exception) -> str:
    # str() of a KeyError would be its text in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or repr(error)
