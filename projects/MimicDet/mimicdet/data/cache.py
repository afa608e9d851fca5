"""The folder for data that this package writes itself, and how to write there safely."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_root() -> Path:
    """
    $MIMICDET_CACHE, else $XDG_CACHE_HOME/mimicdet, else ~/.cache/mimicdet (not created here).
    """
    if os.environ.get("MIMICDET_CACHE"):
        return Path(os.environ["MIMICDET_CACHE"]).expanduser().absolute()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser().absolute() / "mimicdet"
    return Path.home() / ".cache" / "mimicdet"


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """
    Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    Readers see either the whole folder or none. When another process put `target` there in the
    meantime, its folder stays and this one is dropped; when the block raises, nothing is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out others that share the cache
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
