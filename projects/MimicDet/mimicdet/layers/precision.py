"""Half precision, where it is too little."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor of half precision as float32, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def fresh_casts(device: torch.device) -> torch.autocast:
    """
    The ambient mixed precision, without its store of weights in half precision: a weight that is
    cast under no_grad and stored there has no gradient when it is used again.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=enabled, cache_enabled=False)
