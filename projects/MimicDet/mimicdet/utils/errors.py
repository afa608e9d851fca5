"""What a user is told of an error."""


def error_text(error: Exception) -> str:
    """An error's message; str() of a KeyError would be its message in quotes."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or repr(error)
