"""Loading, publishing and cutting down of checkpoints."""

from .checkpointer import MimicCheckpointer, load_weights
from .resume import has_checkpoint

__all__ = ["MimicCheckpointer", "has_checkpoint", "load_weights"]
