"""The console: the one place that prints. What the console cannot take is lost, and nothing else: no print may raise.

A pipe may close, the disk under stdout may be full, a terminal may go away, and names may hold what no console shows.
None of that may end a training, or keep it from saving.
"""

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO

try:
    from tqdm import tqdm
except ImportError:  # optional: no bars without it
    tqdm = None

WIDTH = 100  # characters in a line of a message
MESSAGES = ("error: ", "warning: ")  # what a message begins with; other lines, such as tables, stay as they are


class LossyStream:
    """A text stream that loses what it cannot write instead of raising, and shows as an escape what it cannot show."""

    failure: OSError | ValueError | None = None  # the latest, of any stream; a reader that went away is none

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        with self.noting_failure():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with self.noting_failure():
            self.stream.flush()

    @contextlib.contextmanager
    def noting_failure(self):
        try:
            yield
        except BrokenPipeError:
            pass
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            LossyStream.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def secure_console() -> None:
    """Make this program's stdout and stderr lossy, also for what argparse, warnings, tqdm and tracebacks print.

    A descriptor that was closed (`>&-`) becomes the null device. Else the next file that is opened would get its
    number, and what a library prints would go into a checkpoint.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # open() gives the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, LossyStream(stream))


def say(line: str = "", *, to_stderr: bool = False, bar: Any = None) -> None:
    """Print a line, or several. An error or a warning is broken into lines that fit.

    Args:
        bar: a progress bar on the screen; the line appears above it.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed before the program began
        return
    for label in MESSAGES:
        if line.startswith(label):
            line = fitted(line.removeprefix(label), label)
    if not isinstance(stream, LossyStream):
        stream = LossyStream(stream)
    if bar is not None:
        bar.write(line, file=stream)
    else:
        stream.write(line + "\n")
    stream.flush()


def say_from_signal_handler(line: str) -> None:
    """A line on stderr. A handler may interrupt a print, which would refuse a second one inside it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def fitted(message: str, label: str = "") -> str:
    """Label and message in lines of at most WIDTH characters. A longer word, such as a path, stays whole."""
    lines = []
    for line in message.splitlines():
        wrapped = textwrap.wrap(
            line, WIDTH, initial_indent=label, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        lines += wrapped or [label]
        label = ""
    return "\n".join(lines)


def progress_bar(items: Iterable | None = None, **options: Any) -> Any:
    """tqdm's bar over `items`, or with `total=`; without tqdm, or where stderr is no terminal, `items` as they are."""
    if tqdm is None or sys.stderr is None or not sys.stderr.isatty():
        return items
    return tqdm(items, **options)
