"""Entries of YAML files; what is wrong with one is a UserError that names it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import UserError, check_choice, read_text


def read_yaml(path: Path) -> Any:
    """The content of a file of plain YAML."""
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no plain YAML: {error}") from error


def as_mapping(
    key: str, value: Any, required: Sequence[str], known: Sequence[str]
) -> dict[str, Any]:
    """A mapping whose keys are `known`, with those that are `required`."""
    if not isinstance(value, dict):
        raise UserError(f"{key} must be a mapping of {', '.join(known)}, got {value!r}")
    for name in value:
        check_choice(f"an entry of {key}", name, known)
    missing = [name for name in required if name not in value]
    if missing:
        raise UserError(f"{key}: {', '.join(missing)} is missing")
    return value


def as_list(key: str, value: Any) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{key} must be a list with entries, got {value!r}")
    return value


def as_mappings(
    key: str, content: dict[str, Any], required: Sequence[str], known: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """(what messages call it, entry) of a list of mappings; none where the list is left out."""
    listed = as_list(key, content[key]) if key in content else []
    named = [(f"{key}[{index}]", entry) for index, entry in enumerate(listed)]
    return [(name, as_mapping(name, entry, required, known)) for name, entry in named]


def as_text(key: str, value: Any) -> str:
    """A text, not a number that looks like one."""
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text, got {value!r}")
    return value
