"""Tables in Markdown."""

import re


def markdown_table(rows: list[dict]) -> str:
    """A table without a newline at its end.

    Args:
        rows: at least one. All have the same keys, which are the header. Names in them have passed through
            `markdown_cell` or `readable_cell`.
    """
    header = list(rows[0])
    lines = [line_of(header), "|---" * len(header) + "|"]
    for row in rows:
        lines.append(line_of([row[key] for key in header]))
    return "\n".join(lines)


def line_of(cells: list) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown_cell(text: str) -> str:
    """A name that is shown as it is where Markdown and HTML are rendered, as in TensorBoard.

    Every character except ASCII letters, digits, space, dot and hyphen becomes a character reference, so that neither
    Markdown nor HTML is read into a class or a file name.
    """
    return re.sub(r"[^A-Za-z0-9 .-]", lambda match: f"&#{ord(match[0])};", text)


def readable_cell(text: str) -> str:
    """A name that people read in a terminal or a README: only bars and line breaks, which would end a cell, go.

    Not for a page that renders HTML: `<` stays.
    """
    return " ".join(text.replace("|", "\\|").split())
