"""Checkpoints that are whole or not there: written aside, flushed, renamed; read without running what they hold."""

import os
import pickle
import re
import time
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError


class Checkpoints:
    """A run's checkpoint folder: the newest `keep` step_*.pt, and `last.pt`, a relative link to the newest."""

    def __init__(self, folder: Path, keep: int, every_steps: int | None, every_minutes: float):
        self.folder, self.keep = folder, keep
        self.every_steps, self.every_seconds = every_steps, 60 * every_minutes
        self.last_saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after `step` completed steps."""
        by_count = self.every_steps is not None and step % self.every_steps == 0
        return by_count or time.monotonic() - self.last_saved >= self.every_seconds

    def save(self, step: int, content: dict) -> Path:
        """Write `content` as the checkpoint after `step` completed steps; an existing one of that step is replaced."""
        path = self.folder / f"step_{step:08d}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(content | {"step": step}, file))
        link = self.folder / "last.pt.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self.folder / "last.pt")
        for old in self.all()[: -self.keep]:
            if old != path:
                old.unlink(missing_ok=True)
        self.last_saved = time.monotonic()
        return path

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self.folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8,}\.pt", path.name))

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints of more steps, of a branch that is given up, so that nothing takes them for the newest."""
        for path in self.all():
            if int(path.stem.removeprefix("step_")) > step:
                path.rename(path.with_name(path.name + ".abandoned"))

    def newest(self) -> Path | None:
        return (self.all() or [None])[-1]


def write_atomically(path: Path, write) -> None:
    """Have `write(file)` fill a temporary file, flush it to the disk and give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the name, too, survives a power cut
    os.close(folder)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint's content on the CPU; only tensors and plain containers are read, never code.

    Raises: UserError if the file is missing, damaged (its checksums are verified), or holds anything else.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint; runs/<name>/checkpoints/last.pt is the newest one of a run")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself would take a flipped bit for a weight
        if damaged:
            raise UserError(f"{path}: damaged (checksum of {damaged}); use an earlier checkpoint beside it")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused: holds more than tensors and plain data ({first_line(error)})") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint, or cut short ({first_line(error)}); use another one") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint of pretrain.py or finetune.py")
    return content


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
