"""A copy of an image folder with smaller files, since decoding full photographs is most of the time at small sizes.

python scripts/resize_images.py imagenet imagenet160 --short-side 160
python scripts/resize_images.py imagenet imagenet160 --short-side 160 --workers 32     # the same; goes on if it ended

Tree and names stay as they are, so that lists of names, shares of labels and the held-out images stay the same, too.
The content decides the format: a JPEG becomes a JPEG of --quality (95) with whole colours (4:4:4), everything else
becomes a PNG under its old name, without loss. (ImageNet has a PNG under the name of a JPEG itself.) An image whose
short side is no longer than asked for is copied as it is, byte for byte. Pixels are read and resized as for evaluation:
bicubic, antialiased, 8-bit RGB, EXIF rotation not applied.

What can be read is copied, the rest is named and counted. Each file is written under another name first, so that none
is ever half there: killed and started again, the same command makes what is missing, and nothing twice.

Exit code 0: every image is in the copy; 1: some could not be read; 2: nothing can be copied, or the disk is full.
"""

import argparse
import errno
import fcntl
import io
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.decode import decode, read_file
from data.folder import spelled
from data.headers import JPEG_SIGNATURE, BadImageError
from data.listing import BESIDE, ENDINGS, LeftOut, list_images, list_root
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError, first_line, printable
from utils.files import free_space, write_atomically
from utils.limits import available_cores
from utils.process import shield_worker

RECORD = ".resize_images.json"  # in the copy: what it is a copy of; a hidden name, which training leaves out
QUALITY = 95  # of a JPEG; that of copies whose record was written before there was a choice, too
HALF_FILES = b".tmp"  # how utils/files.py ends the name of a file that it has not written to its end
SHOWN = 20  # unreadable images that are printed
LONGEST_LINE = 1000  # characters; paths are whole

RESIZED, COPIED, UNREADABLE, NOT_WRITTEN = "resized", "copied as it is", "unreadable", "not written"


@dataclass(frozen=True)
class Outcome:
    """What became of one image."""

    kind: str  # RESIZED, COPIED, UNREADABLE or NOT_WRITTEN
    reason: str = ""  # of an image that is not in the copy: a sentence that begins with its path
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True)
class Resizing:
    """`resize(name)` makes the copy of one image, in a worker process."""

    source: Path
    target: Path
    short_side: int  # pixels
    quality: int  # of a JPEG

    def resize(self, name: bytes) -> Outcome:
        """The copy of `source/name`, at `target/name`."""
        path = self.source / os.fsdecode(name)
        try:
            content = read_file(str(path))
            copy = smaller_file(content, self.short_side, self.quality)
        except UserError as error:
            return Outcome(UNREADABLE, str(error))
        except BadImageError as error:
            return Outcome(UNREADABLE, f"{path}: {error}")
        kind = RESIZED
        if copy is None:
            kind = COPIED
            copy = bytes(content)
        output = self.target / os.fsdecode(name)
        try:
            write_atomically(output, lambda file: file.write(copy))
        except OSError as error:
            return Outcome(NOT_WRITTEN, f"{output}: cannot be written ({error.strerror}; {free_space(self.target)})")
        return Outcome(kind, bytes_before=len(content), bytes_after=len(copy))


@dataclass
class Task:
    """What there is to copy."""

    names: list[bytes] = field(default_factory=list)  # of images, relative to the source
    folders: list[bytes] = field(default_factory=list)  # that hold them, relative to the source
    left_out: LeftOut = field(default_factory=LeftOut)
    problems: list[str] = field(default_factory=list)  # broken links and the like, by path


def smaller_file(content: bytearray, short_side: int, quality: int) -> bytes | None:
    """An image file with its short side resized to `short_side` pixels; None: it is no longer than that already.

    A JPEG gives a JPEG of that quality, anything else a PNG. Raises: BadImageError.
    """
    image = decode(content)
    if min(image.shape[-2:]) <= short_side:
        return None
    resized = v2.functional.resize(image, [short_side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    picture = Image.fromarray(resized.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    if content.startswith(JPEG_SIGNATURE):
        picture.save(file, "JPEG", quality=quality, subsampling="4:4:4")
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def list_source(source: Path) -> Task:
    """Every image in a folder and below it, as training lists them (data/listing.py).

    Raises: UserError if the folder cannot be read or holds no image.
    """
    try:
        root = list_root(str(source))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); give a folder of images") from error
    listing = list_images(str(source), root.classes)
    task = Task(folders=list(listing.folders), problems=sorted(root.problems + listing.problems))
    if root.left_out.counts.pop(BESIDE, 0):  # images that lie in the folder itself
        root.left_out.examples.pop(BESIDE)
        for name in sorted(os.listdir(os.fsencode(source))):
            path = os.path.join(os.fsencode(source), name)
            if name.lower().endswith(ENDINGS) and not name.startswith(b".") and os.path.isfile(path):
                task.names.append(name)
    for names in listing.names_of_class:
        if names:
            task.names += names.split(b"\0")
    task.left_out.merge(root.left_out)
    task.left_out.merge(listing.left_out)
    if not task.names:
        raise UserError(f"{source}: holds no image ({' '.join(os.fsdecode(ending) for ending in ENDINGS)})")
    return task


def refuse_nested(source: Path, target: Path) -> None:
    """Raise UserError if one folder is the other one or lies inside it."""
    real_source, real_target = source.resolve(), target.resolve()
    if real_target.is_relative_to(real_source):
        raise UserError(f"{target}: lies inside {source}, which it would become a part of; give a TARGET outside of it")
    if real_source.is_relative_to(real_target):
        raise UserError(f"{target}: holds {source} itself; give a TARGET that is a folder of its own")


def claim_target(source: Path, target: Path, short_side: int, quality: int) -> IO:
    """Lock the folder of the copy for as long as this process lives, and note what it is a copy of.

    Raises: UserError if it holds something else, a copy of another folder, size or quality, or if another process
        writes it.
    """
    claim = {"source": str(source.resolve()), "short_side": short_side, "quality": quality}
    try:
        target.mkdir(parents=True, exist_ok=True)
        others = sorted(set(os.listdir(target)) - {RECORD})
        record = open(target / RECORD, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); give another TARGET") from error
    lock(record, target)
    record.seek(0)
    try:
        claimed = json.loads(record.read() or "null")
    except ValueError:  # we were killed while we wrote it
        claimed = None
    if claimed is None and others:
        os.unlink(target / RECORD)
        raise UserError(
            f"{target}: is not empty ({spelled(others[0])}) and no copy made by this script; give a TARGET that is"
        )
    if claimed is None:
        record.truncate(0)
        record.write(json.dumps(claim))
        record.flush()
        return record
    claimed = {"quality": QUALITY} | claimed
    if claimed != claim:
        raise UserError(
            f"{target}: is a copy of {printable(claimed['source'], LONGEST_LINE)}\n"
            f"with a short side of {claimed['short_side']} and quality {claimed['quality']}, "
            f"not of {source} with {short_side} and {quality}; give another TARGET"
        )
    return record


def lock(record: IO, target: Path) -> None:
    """Raises: UserError if another process holds it; a file system without locks does without."""
    try:
        fcntl.lockf(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{target}: another process is writing this copy; end it, or wait for it") from error
        say(f"warning: {target}: no locks there ({error.strerror}); start no second process on this folder")


def missing_in(target: Path, task: Task) -> list[bytes]:
    """The images that the copy does not have yet. Makes its folders, and removes half files of a killed process."""
    finished = set()
    for folder in task.folders:
        path = os.path.join(os.fsencode(target), folder)
        os.makedirs(path, exist_ok=True)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith(HALF_FILES):
                    os.unlink(entry.path)
                elif entry.name.lower().endswith(ENDINGS) and entry.is_file() and entry.stat().st_size > 0:
                    finished.add(os.path.normpath(os.path.join(folder, entry.name)))
    return [name for name in task.names if name not in finished]


class Report:
    """Counts what became of the images, and prints it."""

    def __init__(self, task: Task):
        self.task = task
        self.counts = dict.fromkeys((RESIZED, COPIED, UNREADABLE), 0)
        self.bytes_before = self.bytes_after = 0
        self.unreadable: list[str] = list(task.problems)

    def add(self, outcome: Outcome) -> None:
        """Raises: UserError if the copy could not be written."""
        if outcome.kind == NOT_WRITTEN:
            raise UserError(f"{outcome.reason}; the same command goes on when that is mended")
        self.counts[outcome.kind] += 1
        self.bytes_before += outcome.bytes_before
        self.bytes_after += outcome.bytes_after
        if outcome.kind == UNREADABLE:
            self.unreadable.append(outcome.reason)

    def print(self, target: Path, already_there: int) -> None:
        for line in self.unreadable[:SHOWN]:
            say(printable(f"not copied: {line}", most=LONGEST_LINE))
        if len(self.unreadable) > SHOWN:
            say(f"… and {len(self.unreadable) - SHOWN} more; scripts/check_data.py lists the images of a data set")
        for kind, count in sorted(self.task.left_out.counts.items()):
            example = spelled(self.task.left_out.examples[kind][0])
            say(f"left out: {count} {kind}, as {printable(example, most=LONGEST_LINE)}")
        say(
            f"{target}: {self.counts[RESIZED]} images resized, {self.counts[COPIED]} copied as they are, "
            f"{already_there} there already, {len(self.unreadable)} not copied"
        )
        if self.bytes_before:
            say(f"{self.bytes_before / 1e6:,.1f} MB became {self.bytes_after / 1e6:,.1f} MB")


def resize_images(source: Path, target: Path, short_side: int, quality: int, workers: int) -> int:
    """Make the copy, or what is missing of it. Returns: how many images could not be read. Raises: UserError."""
    refuse_nested(source, target)
    task = list_source(source)
    with claim_target(source, target, short_side, quality):
        try:
            missing = missing_in(target, task)
        except OSError as error:
            raise UserError(f"{error.filename or target}: cannot be written ({error.strerror})") from error
        report = Report(task)
        resizing = Resizing(source, target, short_side, quality)
        # What a loader's worker processes collate are the names themselves, one by one.
        results = DataLoader(
            missing, batch_size=None, num_workers=workers, collate_fn=resizing.resize, worker_init_fn=shield_worker
        )
        try:
            for outcome in progress_bar(results, desc="resizing", unit="image"):
                report.add(outcome)
        except RuntimeError as error:
            raise UserError(f"a worker process was killed ({first_line(error)}); lower --workers") from error
    report.print(target, already_there=len(task.names) - len(missing))
    return len(report.unreadable)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of images, as one with train/ and val/")
    parser.add_argument("target", type=Path, help="the folder for the copy: a new one, or one of an earlier start")
    parser.add_argument("--short-side", type=int, required=True, help="of the copies, in pixels; none is enlarged")
    parser.add_argument(
        "--quality", type=int, default=QUALITY, metavar="Q",
        help="of JPEG copies, 1 to 100 (default: 95). Files that are compressed more strongly already can grow at 95: "
        "then give less, such as 85",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    arguments = parser.parse_args(argv)
    for option, value in (("--short-side", arguments.short_side), ("--workers", arguments.workers)):
        if value < 1:
            raise UserError(f"{option} {value}: must be at least 1")
    if not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality {arguments.quality}: must be from 1 to 100")
    torch.set_num_threads(1)
    unreadable = resize_images(
        arguments.source, arguments.target, arguments.short_side, arguments.quality, arguments.workers
    )
    return 1 if unreadable else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
