"""Loading, publishing and cutting down of checkpoints."""

from .checkpointer import MimicCheckpointer, load_weights

__all__ = ["MimicCheckpointer", "load_weights"]
