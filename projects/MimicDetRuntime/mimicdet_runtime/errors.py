"""The one error that is the user's to put right, and the one place that turns it into a message."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Main = Callable[[Sequence[str] | None], int]


class UserError(ValueError):
    """What the user gave cannot be used; the message names it and is all that they need to see."""


class ImageError(UserError):
    """One image of several cannot be dealt with: the one at `index` of those given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


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
def file_errors(path: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """
    Around the reading or writing of a file that the user named: OSError becomes UserError. It names
    the file that the OSError names, or `path` where that names none, as on a full disk.
    """
    try:
        yield
    except OSError as error:
        name = error.filename if error.filename is not None else path
        named = f"{name}: " if name is not None else ""
        raise UserError(f"{named}{error.strerror or error}") from error
