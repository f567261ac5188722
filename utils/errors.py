"""The one error that a user sees without a traceback, and what its messages quote."""


class UserError(ValueError):
    """Bad input. The message says all: the file or key, the value, the constraint and the remedy."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters of it, to be quoted in another message."""
    return str(error).strip().split("\n")[0][:200]


def listed(items: list[str], most: int = 180) -> str:
    """Items in a row, the first one and those after it that fit into so many characters; how many more there are."""
    text = items[0]
    for number, item in enumerate(items[1:], start=1):
        if len(text) + len(item) > most:
            return f"{text}; and {len(items) - number} more"
        text += f"; {item}"
    return text


def printable(name: object, most: int = 80) -> str:
    """A name from a file of others, to be quoted in a message: control characters as escapes, cut if it is long."""
    if not isinstance(name, str):
        return f"a {type(name).__name__}"
    return escaped(name[:most]) + ("…" if len(name) > most else "")


def escaped(text: str) -> str:
    """Text with escapes for what cannot be printed, such as control characters, which could rewrite the screen."""
    characters = []
    for character in text:
        if not character.isprintable():
            character = character.encode("unicode_escape").decode()
        characters.append(character)
    return "".join(characters)
