"""Collects what is wrong in a user's data, so that one run reports all of it."""

import logging
import reprlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN_PER_KIND = 3
MAX_COORDINATE = 1e9  # float32 keeps numbers of this size finite through every augmentation

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 100
_shortened.maxlevel = 3


def shown(value: object) -> str:
    """A user's value for an error: one line, not too long, however deep it is."""
    return _shortened.repr(value)


def printable(text: str) -> str:
    """A user's text for an error: itself where that is one line."""
    return text if text.isprintable() else shown(text)


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number between -MAX_COORDINATE and MAX_COORDINATE."""
    return type(value) in (float, int) and -MAX_COORDINATE <= value <= MAX_COORDINATE


class Problems:
    """
    Faults found in one file or folder, grouped by kind; each names its record.

    They become an error (`raise_if_any`) or a warning (`warn_if_any`).
    """

    def __init__(self, source: str | Path):
        self.source = source
        self._records: dict[str, list[str]] = {}

    def add(self, kind: str, record: str) -> None:
        self._records.setdefault(kind, []).append(record)

    def add_repeated(self, kind: str, records: Iterable[tuple[Hashable, str]]) -> None:
        """Add each (key, record) whose key an earlier one has."""
        keys = set()
        for key, record in records:
            if key in keys:
                self.add(kind, record)
            keys.add(key)

    def by_kind(self) -> dict[str, list[str]]:
        """The records of each kind."""
        return self._records

    def summary(self) -> str:
        """One line: the source, each kind with its count and its first records."""
        kinds = []
        for kind, records in self._records.items():
            shown = ", ".join(records[:_SHOWN_PER_KIND])
            more = len(records) - _SHOWN_PER_KIND
            kinds.append(
                f"{kind} ({len(records)}): {shown}" + (f" and {more} more" if more > 0 else "")
            )
        return f"{self.source}: " + "; ".join(kinds)

    def raise_if_any(self) -> None:
        """Raise UserError with the summary; its `problems` are these."""
        if self._records:
            error = UserError(self.summary())
            error.problems = self  # for who wants to see all
            raise error

    def warn_if_any(self) -> None:
        """Log the summary as a warning."""
        if self._records:
            logger.warning(self.summary())
