"""Which checkpoint of a folder a run goes on from."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.errors import UserError
from .integrity import non_finite

LAST_FILE = "last_checkpoint"
BEST_PREFIX = "model_best"  # kept for its AP; a run does not go on from it
logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A checkpoint that is whole, and what it holds."""

    path: Path
    content: dict[str, Any]


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a training run has left a checkpoint, whole or not, or the name of one."""
    return bool(_by_age(folder)) or Path(folder, LAST_FILE).is_file()


def newest_checkpoint(
    folder: str | Path, read: Callable[[str], dict[str, Any]], keys: Iterable[str]
) -> Found:
    """
    The checkpoint that `last_checkpoint` names, or a later one whose save was cut before its name
    was written there; where that one is missing or damaged, the newest that is whole. The log names
    what is skipped, and why.

    Args:
        read: reads a file; raises UserError for one that is damaged.
        keys: what a training checkpoint of this model holds.

    Raises:
        UserError: none can be gone on from; it says why of each.
    """
    skipped: list[str] = []

    def first_whole(paths: Iterable[Path]) -> Found | None:
        for path in paths:
            try:
                return Found(path, _read_training_checkpoint(path, Path(folder), read, keys))
            except UserError as error:
                skipped.append(str(error))
                logger.warning("--resume skips %s", error)
        return None

    others, last = _by_age(folder), Path(folder, LAST_FILE)
    # A power cut can leave a file of an older version empty or full of zeros.
    name = last.read_text(errors="replace").strip("\0 \n") if last.is_file() else ""
    named = Path(folder, name)
    found = first_whole([named]) if name else None
    if found:
        iteration = found.content["iteration"]
        age = last.stat().st_mtime_ns
        cut = [x for x in others if x.stat().st_mtime_ns > age and _number(x) > iteration]
        later = first_whole(cut)
        if later and later.content["iteration"] > iteration:
            found = later
    else:
        found = first_whole(x for x in others if x != named)
    if not found:
        why = "; ".join(skipped) or f"{LAST_FILE} names none"
        raise UserError(f"--resume: there is no checkpoint in {folder} to go on from: {why}")
    logger.info("--resume goes on from %s", found.path)
    return found


def _by_age(folder: str | Path) -> list[Path]:
    """
    The newest first. By the time of writing and not by the iteration, since a run that was started
    anew in the folder of a longer one must not go on with the other's.
    """
    paths = [x for x in Path(folder).glob("model_*.pth") if not x.name.startswith(BEST_PREFIX)]
    return sorted(paths, key=lambda x: (x.lstat().st_mtime_ns, x.name), reverse=True)


def _number(path: Path) -> float:
    """The iteration in a name; infinity for one without, such as model_final.pth."""
    number = re.fullmatch(r"model_(\d+)", path.stem)
    return int(number[1]) if number else float("inf")


def _read_training_checkpoint(
    path: Path, folder: Path, read: Callable[[str], dict[str, Any]], keys: Iterable[str]
) -> dict[str, Any]:
    if Path(os.path.realpath(path)).parent != Path(os.path.realpath(folder)):
        raise UserError(f"{path}: it lies outside {folder}, which is not followed")
    if not os.path.isfile(path):  # also of a name that no file can have
        raise UserError(f"{path}: there is no such file")
    content = read(str(path))
    missing = [x for x in keys if not isinstance(content, dict) or x not in content]
    if missing:
        raise UserError(f"{path}: no training run wrote it, it has no {', '.join(missing)}")
    if name := non_finite(content):
        raise UserError(f"{path}: {name} holds values that are not finite")
    return content
