"""The folder for data that this package writes itself."""

import hashlib
import os
from pathlib import Path

from ..utils.files import new_path


def cache_root() -> Path:
    """
    $MIMICDET_CACHE, else $XDG_CACHE_HOME/mimicdet, else ~/.cache/mimicdet (not created here).
    """
    if os.environ.get("MIMICDET_CACHE"):
        return Path(os.environ["MIMICDET_CACHE"]).expanduser().absolute()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser().absolute() / "mimicdet"
    return Path.home() / ".cache" / "mimicdet"


def cached_json(kind: str, text: str) -> Path:
    """A file of the cache with this content, KIND/HASH.json: written unless it is there."""
    path = cache_root() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():  # its name tells its content
        with new_path(path) as new:
            new.write_text(text, encoding="utf-8")
    return path
