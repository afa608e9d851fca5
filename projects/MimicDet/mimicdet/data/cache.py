"""The folder for data that this package writes itself."""

import os
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
