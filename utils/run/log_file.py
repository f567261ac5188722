"""log.jsonl: one JSON object a line, each with the `step` that it belongs to.

Lines about training have a loss. Lines about an evaluation during training, one for each weights and resize size, alone
name the `split` that was evaluated; those of a probe name its `method`, too. Lines about replaced images have
`replaced_images`.
"""

import contextlib
import json
import math
import os
from pathlib import Path

from utils.files import write_atomically


def is_training_line(line: dict) -> bool:
    return "loss" in line and not is_evaluation_line(line)


def is_evaluation_line(line: dict) -> bool:
    return "split" in line


def read_lines(path: Path) -> list[dict]:
    """The lines of a log.jsonl; none without the file. A line that was cut short, as by a kill, is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def as_text(lines: list[dict]) -> str:
    """NaN is no JSON: the gradient norm of a float16 overflow becomes null."""
    text = ""
    for line in lines:
        finite = {}
        for name, value in line.items():
            is_bad = isinstance(value, float) and not math.isfinite(value)
            finite[name] = None if is_bad else value
        text += json.dumps(finite) + "\n"
    return text


class LogFile:
    """log.jsonl of a run that is going on; only rank 0 may write.

    Args:
        path: of the file, which may not be there yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.unwritten = ""  # lines that a full disk refused

    def write(self, lines: list[dict]) -> None:
        """Append. Raises: OSError, as on a full disk; the lines are kept in memory, and written with later ones."""
        self.unwritten += as_text(lines)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.unwritten)
        except OSError:
            with contextlib.suppress(OSError):  # there may be no file yet
                os.truncate(self.path, size)  # no half line
            raise
        self.unwritten = ""

    def rewrite(self, lines: list[dict]) -> None:
        write_atomically(self.path, lambda file: file.write(as_text(lines).encode()))

    def drop_lines_after(self, steps: int) -> dict:
        """Drop the lines after `steps` completed steps, and one cut short. Returns: the last one about training."""
        if not self.path.exists():
            return {}
        remaining, last = [], {}
        for line in read_lines(self.path):
            if line["step"] <= steps:
                remaining.append(line)
                if is_training_line(line):
                    last = line
        self.rewrite(remaining)
        return last

    def drop_evaluation_of(self, step: int) -> list[tuple[str, int]]:
        """Drop the lines about the evaluation after `step` steps. Returns: weights and resize size of each."""
        remaining, dropped = [], []
        for line in read_lines(self.path):
            if is_evaluation_line(line) and line["step"] == step:
                dropped.append((line["weights"], line["val_resize_size"]))
            else:
                remaining.append(line)
        if dropped:
            self.rewrite(remaining)
        return dropped
