"""Collects what is wrong in a user's data, so that one run reports all of it."""

from collections import Counter
from pathlib import Path

from ..utils.errors import UserError, read_text

_SHOWN_PER_KIND = 3


class Problems:
    """
    Faults found in one file or folder, grouped by kind; each names its record.

    The same record of faults serves for errors (`raise_if_any`) and for warnings (`summary`).
    """

    def __init__(self, source: str | Path):
        self.source = source
        self._records: dict[str, list[str]] = {}

    def add(self, kind: str, record: str) -> None:
        self._records.setdefault(kind, []).append(record)

    def __len__(self) -> int:
        return sum(len(records) for records in self._records.values())

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


def read_image_list(path: Path, word: str) -> list[str]:
    """
    The images of a split file, one a line; blank lines are skipped.

    Args:
        word: what a line holds, "name" or "id", for the errors.

    Raises:
        UserError: lines of several words, an image listed twice, no image.
    """
    problems = Problems(path)
    images: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if len(words) > 1:
            problems.add(f"not one image {word} a line", f"line {number}: {line.strip()!r}")
        images += words[:1]
    for image, count in Counter(images).items():
        if count > 1:
            problems.add("image listed twice", image)
    problems.raise_if_any()
    if not images:
        raise UserError(f"{path} lists no image")
    return images
