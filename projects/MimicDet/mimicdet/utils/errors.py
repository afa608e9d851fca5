"""Errors that a user can cause, and checks that raise them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mimicdet_runtime.errors import UserError, command, file_errors

__all__ = ["UserError", "check_choice", "command", "error_text", "file_errors", "read_json"]


def check_choice(key: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise UserError where a setting is none of the allowed values."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{key} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError where it is missing, cannot be read or is no JSON."""
    with file_errors():
        data = path.read_bytes()
    try:
        return json.loads(data)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} is not JSON: {error}") from error


def error_text(error: Exception) -> str:
    """An error's message; str() of a KeyError would be its message in quotes."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or repr(error)
