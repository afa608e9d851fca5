"""Files and folders that a reader sees whole or not at all, and their SHA-256."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mimicdet_runtime.files import file_sha256, new_path

__all__ = ["durable_path", "file_sha256", "new_path"]


@contextlib.contextmanager
def durable_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """`new_path` for a file that a power cut leaves whole too: the old one or the new one."""
    with new_path(target) as path:
        yield path
        _synchronize(path)
    _synchronize(Path(target).parent)


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
