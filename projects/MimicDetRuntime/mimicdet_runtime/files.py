"""Files and folders that a reader sees whole or not at all, and their SHA-256."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield a path to write a file or make a folder at, which becomes `target` when the block ends.

    The path has the name of `target` and lies in a temporary folder beside it. When the block
    raises, nothing is left. A file replaces the one that was there; a folder that another process
    put there in the meantime stays, and the new one is dropped.

    Raises:
        OSError: the folder of `target`, which is made if it is missing, cannot be written to, or
            the disk is full; it names `target`.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            yield temporary
            try:
                os.replace(temporary, target)
            except OSError:
                if not (temporary.is_dir() and target.is_dir()):
                    raise
    except OSError as error:
        # A full disk names no file, and the temporary name means nothing to the user.
        if error.filename is None or f".{target.name}-" in str(error.filename):
            error.filename = str(target)
        raise


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
