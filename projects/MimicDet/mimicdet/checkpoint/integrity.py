"""
Whether a checkpoint is what was written, and fit to be written.

Beside each checkpoint lies its SHA-256, `model_final.pth.sha256`, which `sha256sum -c` reads too. A
file without one is accepted: those of torch.save have a CRC-32 of each tensor, which is compared
then.
"""

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ..utils.files import durable_path, file_sha256

DIGEST_ENDING = ".sha256"
# What new_path leaves of a save during which the process was killed.
_LEFTOVER = re.compile(rf"\.(last_checkpoint|.+\.pth({DIGEST_ENDING})?)-\w{{8}}")


class _HashingFile:
    """A file of which torch.save needs write and flush; keeps the SHA-256, and a failure's cause"""

    def __init__(self, file: IO[bytes]):
        self._file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return count

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """
    torch.save of `content`, and the digest beside it. A process that is killed at any moment leaves
    the old file or the new one, whole, with its own digest or without one.

    Raises:
        OSError: the disk is full or cannot be written to; the old file is as it was.
    """
    path = Path(path)
    digest_file = path.with_name(path.name + DIGEST_ENDING)
    with durable_path(path) as new:
        with open(new, "wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(content, hashing)
            except RuntimeError as error:  # torch says only that a write has failed
                raise hashing.error or error from None
        digest_file.unlink(missing_ok=True)  # the old file's would make the new one look damaged
    with durable_path(digest_file) as new:
        new.write_text(f"{hashing.sha256.hexdigest()}  {path.name}\n")


def check_whole(path: str) -> None:
    """
    Raise ValueError where a file has another SHA-256 than the digest beside it, or where it has
    none and a tensor another CRC-32; zipfile.BadZipFile where a .pth is cut short.
    """
    digest_file = Path(path + DIGEST_ENDING)
    if digest_file.is_file():
        expected = digest_file.read_text(errors="replace").split()[:1]
        if expected != [file_sha256(path)]:
            raise ValueError(
                f"it is damaged or was replaced: its SHA-256 is not that of {digest_file.name}, "
                "which you can remove if you trust the file"
            )
        return
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # other formats have no checksum
            return
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"it is damaged: the CRC-32 of {damaged} does not fit")


def remove_leftovers(folder: str | Path) -> None:
    """Remove temporary folders of killed saves, and digests whose checkpoint is gone."""
    for path in Path(folder).iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)
        elif path.name.endswith(".pth" + DIGEST_ENDING) and not path.with_suffix("").exists():
            path.unlink()


def non_finite(content: Any, name: str = "") -> str | None:
    """The name of the first tensor in nested mappings and lists with a NaN or infinite value."""
    if isinstance(content, torch.Tensor):
        return None if torch.isfinite(content).all() else name
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    found = (non_finite(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return next((x for x in found if x), None)
