"""The one error that is the user's to put right, and the one place that turns it into a message."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Main = Callable[[Sequence[str] | None], int]


class UserError(ValueError):
    """What the user gave cannot be used; the message names it and is all that they need to see."""


def command(main: Main) -> Callable[..., int]:
    """
    Decorate a command's main(argv): a UserError becomes one message on stderr and exit code 2,
    Ctrl-C exit code 130. Any other error is a fault of the program and keeps its traceback.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130

    return run


@contextmanager
def file_errors() -> Iterator[None]:
    """Around the reading or writing of a file that the user named: OSError becomes UserError."""
    try:
        yield
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        raise UserError(f"{named}{error.strerror or error}") from error
