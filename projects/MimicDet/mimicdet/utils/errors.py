"""Errors that a user can cause, and checks that raise them."""

import difflib
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mimicdet_runtime.errors import UserError, command, file_errors

__all__ = [
    "UserError",
    "check_choice",
    "check_choices",
    "check_installed",
    "command",
    "file_errors",
    "make_folder",
    "near_names",
    "read_json",
    "read_text",
]


def check_choice(key: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise UserError where a setting is none of the allowed values."""
    check_choices(key, [value], allowed)


def check_choices(key: str, values: Iterable[Any], allowed: Iterable[Any]) -> None:
    """Raise UserError where one of several values of a setting is none of the allowed ones."""
    allowed = list(allowed)
    unknown = [value for value in values if value not in allowed]
    if unknown:
        known, got = ", ".join(map(str, allowed)), ", ".join(map(repr, unknown))
        raise UserError(f"{key} must be one of {known}, got {got}")


def read_text(path: Path) -> str:
    """The content of a text file; UserError where it is missing, cannot be read or is no text."""
    try:
        with file_errors():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError where it is missing, cannot be read or is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: the JSON is nested too deeply") from error
    except ValueError as error:  # no JSON, or an integer of more digits than Python reads
        raise UserError(f"{path} is not JSON: {error}") from error


def make_folder(path: str | Path) -> None:
    """Make a folder to write to; UserError where that cannot be."""
    with file_errors():
        Path(path).mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: this folder cannot be written to")


def near_names(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean ...?", or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def check_installed(what: str, *packages: str, pip: str = "") -> None:
    """
    Raise UserError where an optional package is missing that `what` needs.

    Args:
        pip: what `pip install` takes to get it; "": the extra 'export'.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        line = f"pip install {pip}" if pip else "install the extra 'export'"
        raise UserError(f"{what} needs {', '.join(missing)}: {line}")
