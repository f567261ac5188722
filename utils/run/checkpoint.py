"""Checkpoints that are whole or not there: written aside, flushed, renamed; read without running what they hold."""

import argparse
import contextlib
import os
import pickle
import re
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from utils.console import say
from utils.errors import UserError, first_line, printable
from utils.files import free_space, write_atomically
from utils.process import must_finish
from utils.run.untrusted import refuse_bombs

# Besides tensors, two classes may be unpickled, because the public codes' checkpoints contain them: argparse.Namespace
# (CoinCheung/MFM), and yacs CfgNode (the authors' code), which is read as an OrderedDict, so that no code of yacs runs.
HARMLESS = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]

ABANDONED = ".abandoned"  # ends the name of a checkpoint of a branch that was given up
LAST = "last.pt"  # names the newest checkpoint of a run


class Checkpoints:
    """A run's checkpoint folder: the newest `keep` step_*.pt, and `last.pt`, a relative link to the newest.

    Where the file system has no symbolic links, last.pt is a hard link; where it has neither, there is none.
    """

    def __init__(
        self, folder: Path, keep: int, every_steps: int | None, every_minutes: float, on_save_error: str = "stop"
    ):
        self.folder, self.keep, self.on_save_error = folder, keep, on_save_error
        self.every_steps, self.every_seconds = every_steps, 60 * every_minutes
        self.last_saved = time.monotonic()
        self.saved_step: int | None = None  # by this process
        self.lacks_links = False

    def due(self, step: int) -> bool:
        """Whether to save after `step` completed steps."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return time.monotonic() - self.last_saved >= self.every_seconds

    def save(self, step: int, content: dict) -> Path:
        """Write `content` as the checkpoint after `step` completed steps; an existing one of that step is replaced.

        Raises: UserError with the space needed and free if it cannot be written; the earlier ones are left as they are.
        """
        path, self.last_saved = self.folder / f"step_{step:08d}.pt", time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with must_finish():
                write_atomically(path, lambda file: torch.save(content | {"step": step}, file))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError about positions
            reason = "no more can be written: disk, quota or ulimit -f"
            if isinstance(error, OSError):
                reason = error.strerror or first_line(error)[:60]
            raise UserError(f"{path}: cannot be saved ({reason}): {self.space_for(content)}") from error
        self.saved_step = step
        self.point_last_at(path)
        for old in self.all()[: -self.keep]:
            if old != path:
                remove(old)
        return path

    def attempt(self, step: int, content: dict, required: bool) -> str:
        """Save and return a line for the log.

        If saving fails: raise when `required`, or when on_save_error is "stop"; otherwise return a warning.
        """
        try:
            path = self.save(step, content)
        except UserError as error:
            if required or self.on_save_error == "stop":
                raise
            return f"warning: {error}\nTraining goes on without it (checkpoint.on_save_error = continue)."
        return f"saved {path} in {time.monotonic() - self.last_saved:.1f} s"

    def space_for(self, content: dict) -> str:
        newest = self.newest()
        good = "the start" if newest is None else newest.name
        return (
            f"{size_of(content):,} bytes needed, {free_space(self.folder.parent)}; make room (checkpoint.keep = "
            f"{self.keep} stay) or make the folder writable, and go on with --resume auto (from {good})"
        )

    def all(self) -> list[Path]:
        """Oldest first."""
        return all_checkpoints(self.folder)

    def point_last_at(self, path: Path) -> None:
        """Make last.pt a link to `path`. Without it a warning is printed, once: no checkpoint depends on the link."""
        link, last = self.folder / f"{LAST}.tmp", self.folder / LAST
        try:
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(path.name)
            except OSError:  # no symbolic links: SMB, exFAT, several FUSE mounts
                link.hardlink_to(path)
            os.replace(link, last)
            link.unlink(missing_ok=True)  # it stays where last.pt was a hard link to the same file already
        except OSError as error:
            with contextlib.suppress(OSError):
                last.unlink(missing_ok=True)  # it would name an older checkpoint
            if not self.lacks_links:
                say(
                    f"warning: {last}: no link can be made there ({error.strerror}), so there is no last.pt; "
                    f"--resume auto works without it, and the newest checkpoint is {path}"
                )
            self.lacks_links = True

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints of more steps, of a branch that is given up, so that nothing takes them for the newest."""
        for cut_short in self.folder.glob("*.tmp"):
            cut_short.unlink()
        for path in self.all():
            if int(path.stem.removeprefix("step_")) > step:
                self.set_aside(path)

    def set_aside_others(self, kept: Path) -> None:
        """Rename every checkpoint but one: their names count steps of another batch size."""
        for path in self.all():
            if path != kept:
                self.set_aside(path)

    def set_aside(self, path: Path) -> None:
        path = path.rename(path.with_name(path.name + ABANDONED))
        self.point_last_at(self.newest() or path)

    def newest(self) -> Path | None:
        checkpoints = self.all()
        return checkpoints[-1] if checkpoints else None


def remove(path: Path) -> None:
    """A checkpoint that cannot be removed, as one that somebody has open over SMB, is tried again at the next save."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(f"warning: {path}: cannot be removed ({error.strerror})")


def size_of(content: object) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return sum(size_of(item) for item in content)
    return 0


def read_checkpoint(path: str | Path, foreign: bool = False) -> dict:
    """A checkpoint's content on the CPU; only tensors and plain containers are read, never code.

    Args:
        foreign: read other projects' files as well: torch's older format, which has no checksums, and safetensors.
    Raises: UserError if the file is missing, damaged (checksums are verified), a bomb, or holds anything else.
    """
    path = newest_for_last(path)
    reject_non_checkpoints(path)
    damaged = None
    try:
        if foreign and str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        refuse_bombs(path)
        if not foreign or zipfile.is_zipfile(path):
            damaged = damaged_entry(path)
        if damaged is None:
            with torch.serialization.safe_globals(HARMLESS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{path}: needs a library to be read; pip install safetensors") from error
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL [\w.]+|operand \d+|$", str(error))[0]  # torch's own words advise to run it
        raise UserError(f"{path}: refused: holds more than tensors and plain data ({what})") from error
    except Exception as error:  # a damaged file fails in any way that a pickle can
        raise UserError(
            f"{path}: not a checkpoint, or cut short ({printable(first_line(error), 200)}); use another one"
        ) from error
    if damaged:
        raise UserError(
            f"{path}: damaged (checksum of {printable(damaged)}); use an earlier checkpoint, or copy it again"
        )
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint or state dict")
    return content


def newest_for_last(path: str | Path) -> str | Path:
    """The newest checkpoint in place of a last.pt that is not there, as on a file system without links."""
    folder, name = os.path.split(path)
    if name != LAST or os.path.lexists(path):
        return path
    checkpoints = all_checkpoints(Path(folder))
    return checkpoints[-1] if checkpoints else path


def all_checkpoints(folder: Path) -> list[Path]:
    """Those of a run, the oldest first."""
    return sorted(folder.glob("step_????????.pt"))


def damaged_entry(path: str | Path) -> str | None:
    """The name of an entry of the zip file that fails its checksum, or that torch.load would silently leave unset.

    torch.load checks no checksum: it would take a flipped bit for a weight. And where a bit marks an entry as a folder,
    it would leave the tensor's memory as it was.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.external_attr & 16:
                return entry.filename
        return archive.testzip()


def reject_non_checkpoints(path: str | Path) -> None:
    """Raises: UserError if the path is a folder, a missing file, an empty one, or a web page."""
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, not a checkpoint; give a file, as runs/<name>/checkpoints/last.pt")
    if os.path.isfile(f"{path}{ABANDONED}") and not os.path.lexists(path):
        raise UserError(f"{path}: set aside, since its run went on in another way; continue with --resume auto")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint; runs/<name>/checkpoints/last.pt is the newest one of a run")
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise UserError(f"{path}: empty; copy or download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: you downloaded the web page about the file instead of the file itself")
