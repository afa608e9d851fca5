"""From a config file and overrides to a config that is known to be sound."""

import torch
from detectron2.config import CfgNode

from ..config import check_config, load_config
from ..data import register_datasets
from ..utils.errors import UserError


def setup_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """
    `load_config`, then the data sets registered and checked, the classes taken from them, the
    device checked, and all of MimicDet's keys checked against each other; frozen.
    """
    cfg = load_config(config_file, opts)
    register_datasets(cfg)
    _check_device(cfg)
    check_config(cfg)
    cfg.freeze()
    return cfg


def _check_device(cfg: CfgNode) -> None:
    device = cfg.MODEL.DEVICE
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE is {device!r}, which is no device of PyTorch") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {device!r}, but no CUDA device is available; for a CPU add the "
            "override MODEL.DEVICE cpu"
        )
