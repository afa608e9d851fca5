"""Half precision, where it is too little."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor of half precision as float32, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
