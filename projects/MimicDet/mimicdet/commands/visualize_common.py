"""What the command lines of the tools that draw have in common."""

import sys
from collections.abc import Iterable
from pathlib import Path

from ..utils.errors import error_text


def print_paths(tool: str, paths: Iterable[Path]) -> int:
    """
    Print each path as its file is written; what the user got wrong ends in one line on stderr.

    Args:
        tool: its name, in front of the error; paths: writes the files while it is read.

    Returns:
        the exit status: 0, or 2 for input that cannot be used.
    """
    try:
        for path in paths:
            print(path)
    except (AssertionError, KeyError, OSError, TypeError, ValueError) as error:
        print(f"{tool}: error: {error_text(error)}", file=sys.stderr)
        return 2
    return 0
