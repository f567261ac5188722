"""The console: the one place that prints. What the console cannot take is lost, and nothing else: no print may raise.

A pipe may close, the disk under stdout may be full, a terminal may go away, and names may hold what no console shows.
None of that may end a training, or keep it from saving.
"""

import contextlib
import os
import sys
import textwrap
import weakref
from collections.abc import Iterable
from typing import Any, TextIO

from utils.errors import escaped

try:
    from tqdm import tqdm
except ImportError:  # optional: no bars without it
    tqdm = None

WIDTH = 100  # characters in a line of a message, or fewer on a narrow terminal
SECONDS_WITHOUT_BAR = 3.0  # what takes no longer than this shows no bar
MESSAGES = ("error: ", "warning: ")  # what a message begins with; other lines, such as tables, stay as they are
bars: weakref.WeakSet = weakref.WeakSet()  # every bar of this program that still exists


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
    """Print a line, or several, above a progress bar on the screen. An error or a warning is broken to fit.

    Args:
        bar: the bar; default: the one that is on the screen, if there is one.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed before the program began
        return
    for label in MESSAGES:
        if line.startswith(label):
            line = fitted(line.removeprefix(label), label)
    if not isinstance(stream, LossyStream):
        stream = LossyStream(stream)
    if bar is None:
        bar = open_bar()
    if bar is not None:
        bar.write(line, file=stream)
    else:
        stream.write(line + "\n")
    stream.flush()


def say_from_signal_handler(line: str) -> None:
    """A line on stderr. A handler may interrupt a print, which would refuse a second one inside it."""
    if open_bar() is not None:
        line = f"\n{line}"  # below the bar
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def columns_of(stream: TextIO | None) -> int:
    """The width of a terminal; 0 if the stream is none, or the terminal does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # no terminal, a closed stream, none at all
        return 0


def line_width() -> int:
    """Characters that a line may have: WIDTH, or as many as the terminal has columns if these are fewer."""
    return min(WIDTH, columns_of(sys.stdout) or WIDTH)


def fitted(message: str, label: str = "", indent: str = "  ") -> str:
    """Label and message in lines of at most `line_width`. A longer word, such as a path, stays whole.

    Args:
        indent: begins the second line and all after it.
    """
    lines = []
    for line in message.rstrip("\n").split("\n") if message else []:
        wrapped = textwrap.wrap(
            escaped(line), line_width(), initial_indent=label, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        lines += wrapped or [label]
        label = ""
    return "\n".join(lines)


def progress_bar(
    items: Iterable | None = None, *, delay: float = SECONDS_WITHOUT_BAR, leave: bool = False, **options: Any
) -> Any:
    """tqdm's bar over `items`, or with `total=`; where there can be none, `items` as they are.

    There is none without tqdm, on other ranks than the first, and where stderr is no terminal or one of unknown width.

    Args:
        delay: seconds until the bar appears.
        leave: whether the bar stays on the screen at its end.
    """
    if tqdm is None or os.environ.get("RANK", "0") != "0" or columns_of(sys.stderr) == 0:
        return items
    bar = tqdm(items, delay=delay, leave=leave, dynamic_ncols=True, **options)
    bars.add(bar)
    return bar


def open_bar() -> Any:
    """A bar that has not ended; None if there is none."""
    for bar in bars:
        if not bar.disable:  # as tqdm calls it of a bar that was closed, too
            return bar
    return None


def remove_bars() -> None:
    """Remove every bar from the screen, as before the last words of a program that fails."""
    for bar in list(bars):
        bar.close()
