"""The one error that a user sees without a traceback, and what its messages quote."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says all: the file or key, the value, the constraint and the remedy."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters of it, to be quoted in another message."""
    return str(error).strip().split("\n")[0][:200]


def printable(name: object, most: int = 80) -> str:
    """A name from a file of others, to be quoted in a message: control characters as escapes, cut if it is long."""
    if not isinstance(name, str):
        return f"a {type(name).__name__}"
    characters = []
    for character in name[:most]:
        if not character.isprintable():
            character = character.encode("unicode_escape").decode()
        characters.append(character)
    return "".join(characters) + ("…" if len(name) > most else "")


def nearest(word: object, known: Iterable[str]) -> str:
    """The known name most like `word`: by its whole spelling, else by its last part."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_last_part = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(str(word).rsplit(".", 1)[-1], by_last_part, n=1, cutoff=0.0)
    if close:
        return by_last_part[close[0]]
    return ", ".join(known)
