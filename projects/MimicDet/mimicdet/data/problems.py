"""Collects what is wrong in a user's data, so that one run reports all of it."""

import logging
from collections.abc import Hashable, Iterable
from pathlib import Path

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN_PER_KIND = 3


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
        """Raise UserError with the summary."""
        if self._records:
            raise UserError(self.summary())

    def warn_if_any(self) -> None:
        """Log the summary as a warning."""
        if self._records:
            logger.warning(self.summary())
