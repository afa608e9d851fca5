"""Half precision, where it is too little, and the layout of maps."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor of half precision as float32, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cpu_has_bfloat16() -> bool:
    """Whether the CPU's own instructions compute in bfloat16, as oneDNN sees it."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def mixed_precision(key: str, enabled: bool, device: torch.device | str) -> bool:
    """
    Whether to compute in half precision: as the config's key says, but never on a CPU that would
    only emulate bfloat16, several times slower than float32; a warning then names the key.
    """
    if enabled and torch.device(device).type == "cpu" and not cpu_has_bfloat16():
        logger.warning("%s has no effect: this CPU has no bfloat16, float32 is faster here", key)
        return False
    return enabled


def channels_last_pays(device: torch.device | str, half_precision: bool) -> bool:
    """
    Whether training should lay convolutions' weights channels last, which their maps follow.

    Convolutions of half precision are made for it; on a CPU a step in float32 takes 4 % less time
    (docs/performance.md).
    """
    return half_precision or torch.device(device).type == "cpu"


def fresh_casts(device: torch.device) -> torch.autocast:
    """
    The ambient mixed precision, without its store of weights in half precision: a weight that is
    cast under no_grad and stored there has no gradient when it is used again.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=enabled, cache_enabled=False)
