"""A program on a terminal, and what stands there in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.launch import ROOT

CONTROL = re.compile(r"\x1b\[(?P<number>\d*)(?P<name>[A-Za-z])|[\r\n]|[^\r\n\x1b]+")


@dataclass
class Screen:
    """What a terminal without a right edge shows, so that a line that is too wide can be seen."""

    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    widest: int = 0  # of every line that was ever there

    @classmethod
    def showing(cls, output: str) -> Screen:
        screen = cls()
        for match in CONTROL.finditer(output):
            screen.take(match.group(), match["name"], int(match["number"] or 1))
        return screen

    def take(self, text: str, control: str | None, number: int) -> None:
        if control == "A":
            self.row = max(0, self.row - number)
        elif control is not None:
            return  # a colour, or what tqdm does not use
        elif text == "\r":
            self.column = 0
        elif text == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            line = self.lines[self.row].ljust(self.column)
            end = self.column + len(text)
            self.lines[self.row] = line[: self.column] + text + line[end:]
            self.column = end
            self.widest = max(self.widest, end)

    def text(self) -> list[str]:
        return [line.rstrip() for line in self.lines]


def set_columns(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


def run_on_terminal(command: list[str], folder: Path, columns: int) -> tuple[int, str]:
    """Exit code of a command that is started in `folder` on a terminal of so many columns, and all that it wrote."""
    main, terminal = pty.openpty()
    set_columns(terminal, columns)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(main, 65536)
        except OSError:  # EIO: the last process with the terminal has ended
            break
    os.close(main)
    return process.wait(timeout=60), output.decode()
