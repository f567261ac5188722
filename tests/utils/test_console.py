"""The console: what it cannot take is lost, what it cannot show is escaped, and nothing raises."""

from __future__ import annotations

import ast
import io
import os
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT
from tests.support.terminal import Screen, set_columns
from utils import console
from utils.console import LossyStream, fitted, say


def full_disk(**options):
    return open("/dev/full", "w", **options)


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_file():
    file = io.StringIO()
    file.close()
    return file


@pytest.fixture(autouse=True)
def no_failure_yet(monkeypatch):
    monkeypatch.setattr(LossyStream, "failure", None)


@pytest.mark.parametrize(
    ("open_console", "is_failure"),
    [(full_disk, True), (closed_pipe, False), (closed_file, True), (lambda: None, False)],
)
def test_a_line_that_cannot_be_printed_is_lost(open_console, is_failure, monkeypatch):
    stream = open_console()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    for number in range(3000):  # more than any buffer holds
        say(f"step {number}")
        say(f"warning: {number}", to_stderr=True)
    assert (LossyStream.failure is not None) == is_failure


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "gbk", "utf-16"])
@pytest.mark.parametrize("name", ["图像.png", os.fsdecode("图像.png".encode("gbk")), "≥ …", "ü", "\ud800", "plain"])
def test_what_a_console_cannot_show_is_an_escape(encoding, name, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    say(f"bad: {name}")
    shown = written.getvalue().decode(encoding)
    assert shown == f"bad: {name}\n" or "\\x" in shown or "\\u" in shown
    if name == "plain" or (name == "图像.png" and encoding in ("utf-8", "gbk")):
        assert shown == f"bad: {name}\n"


def test_a_full_disk_that_has_room_again_gets_the_later_lines(monkeypatch):
    class Disk(io.StringIO):
        is_full = True

        def write(self, text):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stdout", disk)
    say("lost")
    disk.is_full = False
    say("kept")
    assert disk.getvalue() == "kept\n" and LossyStream.failure.errno == 28


def test_messages_are_broken_into_lines_and_tables_are_not(capsys):
    words = "word " * 60
    for line in (f"warning: {words}", f"| {words} |"):
        say(line)
    *message, table = capsys.readouterr().out.splitlines()
    assert len(message) == 4 and max(map(len, message)) <= 100 and table == f"| {words} |"
    assert " ".join(part.strip() for part in message) == f"warning: {words}".strip()


def test_a_path_stays_whole_and_beside_its_label():
    path = "/long" * 40
    assert fitted(f"{path}: is gone\nsecond", label="error: ") == f"error: {path}:\n  is gone\nsecond"


def test_without_a_terminal_there_is_no_bar(monkeypatch):
    items = [1, 2]
    assert console.progress_bar(items, unit="image") is items and console.progress_bar(total=3) is None
    monkeypatch.setattr(sys, "stderr", None)
    assert console.progress_bar(items) is items


def test_a_bar_on_a_terminal_that_went_away_changes_nothing(monkeypatch):
    pytest.importorskip("tqdm")
    main, terminal = os.openpty()
    set_columns(terminal, 80)
    stream = LossyStream(os.fdopen(terminal, "w"))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    bar = console.progress_bar(total=100, mininterval=0, miniters=1)
    os.close(main)
    for step in range(100):
        bar.update()
        say(f"step {step}", bar=bar)
    bar.close()
    assert LossyStream.failure is not None


def become_terminal(monkeypatch) -> int:
    """Stdout and stderr are a terminal from now on. Returns: its other end, from which to read what was written."""
    pytest.importorskip("tqdm")
    main, terminal = os.openpty()
    set_columns(terminal, 80)
    stream = LossyStream(os.fdopen(terminal, "w"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("RANK", raising=False)
    return main


def written_to(terminal: int) -> str:
    """All that was written since the last call."""
    end = b"\a"  # a bell, since the kernel passes on what was written a moment later
    os.write(sys.stdout.fileno(), end)
    written = b""
    while not written.endswith(end):
        written += os.read(terminal, 10**6)
    return written.removesuffix(end).decode()


def test_what_is_done_soon_shows_no_bar(monkeypatch):
    terminal = become_terminal(monkeypatch)
    assert list(console.progress_bar(range(1000))) == list(range(1000))
    assert written_to(terminal) == ""
    assert list(console.progress_bar(range(10), delay=0)) == list(range(10))
    shown = written_to(terminal)
    assert "0/10" in shown and Screen.showing(shown).text() == [""]  # and nothing of it stays


def test_other_ranks_show_no_bar_nor_does_a_terminal_of_unknown_width(monkeypatch):
    become_terminal(monkeypatch)
    items = [1, 2]
    monkeypatch.setenv("RANK", "1")
    assert console.progress_bar(items, delay=0) is items
    monkeypatch.setenv("RANK", "0")
    assert console.progress_bar(items, delay=0) is not items
    console.remove_bars()
    assert console.line_width() == 80
    set_columns(sys.stdout.fileno(), 0)
    assert console.progress_bar(items, delay=0) is items and console.line_width() == 100


def test_lines_stand_above_every_bar_and_nothing_of_a_removed_bar_stays(monkeypatch):
    terminal = become_terminal(monkeypatch)
    training = console.progress_bar(total=9, delay=0)
    training.update()
    for number in console.progress_bar(range(3), delay=0, desc="evaluation", mininterval=0):
        say(f"line {number}")
    say("line 3")
    shown = written_to(terminal)
    assert "evaluation: " in shown
    lines = Screen.showing(shown).text()
    assert lines[:4] == ["line 0", "line 1", "line 2", "line 3"] and "1/9" in lines[4] and not any(lines[5:])
    console.remove_bars()
    assert console.open_bar() is None
    lines = Screen.showing(shown + written_to(terminal)).text()
    assert lines[:4] == ["line 0", "line 1", "line 2", "line 3"] and not any(lines[4:])


# One place prints.


def prints_of(path: Path) -> list[str]:
    """Where a source prints, or gets hold of a console stream or of tqdm."""
    places = []
    for node in ast.walk(ast.parse(path.read_text())):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        is_stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
        is_stream = is_stream and isinstance(node.value, ast.Name) and node.value.id == "sys"
        is_bar = isinstance(node, ast.ImportFrom) and node.module == "tqdm"
        if is_print or is_stream or is_bar:
            places.append(f"{path}:{node.lineno}")
    return places


def test_one_file_alone_prints():
    places = []
    for path in ROOT.rglob("*.py"):
        first = path.relative_to(ROOT).parts[0]
        if first != "tests" and not first.startswith("."):
            places += prints_of(path)
    assert {place.rpartition(":")[0] for place in places} == {str(ROOT / "utils/console.py")}
