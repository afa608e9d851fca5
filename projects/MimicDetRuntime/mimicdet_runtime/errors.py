"""The one error that a user sees."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that names it."""
