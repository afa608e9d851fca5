"""Writing files and folders that a reader sees whole or not at all."""

from mimicdet_runtime.files import new_path

__all__ = ["new_path"]
