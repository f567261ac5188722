"""The one error that a user sees without a traceback."""


class UserError(ValueError):
    """Bad input. The message says all: the file or key, the value, the constraint and the remedy."""


def shortened(text: str, most: int = 60) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= most else text[: most - 1] + "…"


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters of it, to be quoted in another message."""
    return str(error).strip().split("\n")[0][:200]
