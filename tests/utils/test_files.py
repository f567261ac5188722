"""Files that are whole or not there: what write_atomically asks of the disk, and in which order."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from utils.files import write_atomically
from utils.run.checkpoint import Checkpoints

CONTENT = b"some bytes"


class DiskRecorder:
    """Notes every fsync and rename, and does them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.events: list[tuple] = []
        self.fsync, self.replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.note_fsync)
        monkeypatch.setattr(os, "replace", self.note_replace)

    def note_fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.events.append(("sync folder", status.st_ino))
        else:
            self.events.append(("sync file", status.st_ino, status.st_size))
        self.fsync(descriptor)

    def note_replace(self, source: Path, target: Path) -> None:
        self.events.append(("rename", Path(source).name, Path(target).name))
        self.replace(source, target)


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    path = tmp_path / "file"
    recorder = DiskRecorder(monkeypatch)
    write_atomically(path, lambda file: file.write(CONTENT))
    assert recorder.events == [
        ("sync file", path.stat().st_ino, len(CONTENT)),  # all of it, nothing waits in a buffer of ours
        ("rename", "file.tmp", "file"),
        ("sync folder", tmp_path.stat().st_ino),
    ]


def test_a_checkpoint_is_written_so_too_and_the_older_ones_go_only_then(tmp_path, monkeypatch):
    saver = Checkpoints(tmp_path, 1, None, 15)
    older = saver.save(1, {"model": {"w": torch.ones(3)}})
    recorder = DiskRecorder(monkeypatch)
    unlink = Path.unlink

    def note_unlink(path: Path, missing_ok: bool = False) -> None:
        if path == older:
            recorder.events.append(("remove", path.name))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", note_unlink)
    path = saver.save(2, {"model": {"w": torch.ones(3)}})
    assert recorder.events == [
        ("sync file", path.stat().st_ino, path.stat().st_size),
        ("rename", "step_00000002.pt.tmp", "step_00000002.pt"),
        ("sync folder", tmp_path.stat().st_ino),
        ("rename", "last.pt.tmp", "last.pt"),
        ("remove", "step_00000001.pt"),
    ]


def test_what_was_there_stays_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    recorder = DiskRecorder(monkeypatch)

    def write_half(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write_half)
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["file"] and recorder.events == []
