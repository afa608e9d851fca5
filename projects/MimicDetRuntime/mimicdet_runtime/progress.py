"""A progress bar of text."""

import sys
import time
from typing import TextIO

_WIDTH = 24
_LINES_WITHOUT_TERMINAL = 10


def format_progress(done: int, total: int, seconds: float) -> str:
    """One line: bar, count, speed and the time that is left; total 0: not known."""
    speed = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"{done} done  {speed:.1f}/s"
    filled = _WIDTH * done // total
    left = (total - done) / speed if speed else 0.0
    minutes, rest = divmod(round(left), 60)
    bar = "#" * filled + "-" * (_WIDTH - filled)
    return f"[{bar}] {done}/{total}  {speed:.1f}/s  {minutes}:{rest:02d} left"


class Progress:
    """
    Counts up on one line of a terminal; elsewhere it prints about ten lines.

    Args:
        total: how many there are; 0: not known.
        stream: where to; None: stderr.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = time.perf_counter()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        line = format_progress(self._done, self._total, time.perf_counter() - self._start)
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        elif self._is_milestone():
            print(line, file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        print(("\r\x1b[K" if self._terminal else "") + text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar's line."""
        if self._terminal and self._done:
            print(file=self._stream, flush=True)

    def _is_milestone(self) -> bool:
        every = max(self._total // _LINES_WITHOUT_TERMINAL, 1) if self._total else 100
        return self._done % every == 0 or self._done == self._total
