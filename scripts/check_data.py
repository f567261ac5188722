"""Read every image of a data set as training will, and report what is wrong with it before weeks depend on it.

python scripts/check_data.py imagenet                                   # a folder with train/ and val/
python scripts/check_data.py imagenet --workers 32 --report findings.json

Exit code 0: nothing found; 1: findings; 2: the folder cannot be checked at all.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import ExifTags, Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.decode import decode_image
from data.folder import ImageFolder
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError, first_line
from utils.files import write_atomically
from utils.limits import available_cores
from utils.process import shield_worker

SHOWN = 20  # findings that are printed
MIN_SIDE = 8  # pixels; a shorter image holds next to nothing to learn from


def check_image(path: str) -> tuple[str, list[str]]:
    """What keeps an image from being used ("": nothing), and notes on what may surprise in how it is used."""
    try:
        pixels = decode_image(path)
    except UserError as error:
        return str(error), []
    notes = []
    if min(pixels.shape[-2:]) < MIN_SIDE:
        notes.append(f"shorter side below {MIN_SIDE} pixels")
    try:
        with Image.open(path) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                notes.append("EXIF rotation, not applied")
            if getattr(image, "n_frames", 1) > 1:
                notes.append("animated, first frame used")
            if image.mode not in ("RGB", "L", "P"):
                notes.append(f"{image.mode}, used as 8-bit RGB")
    except Exception:  # of a format, or of metadata, that Pillow alone stumbles over: the pixels were read
        notes.append("unusual headers")
    return "", notes


def check_folders(folders: list[ImageFolder], workers: int) -> tuple[list[str], dict[str, list[str]]]:
    """All findings, a line each, and for each kind of note the images it is true of.

    Raises: UserError if a process is killed, as the kernel does for want of memory.
    """
    paths = []
    for folder in folders:
        paths += [folder.path(index) for index in range(len(folder))]
    findings: list[str] = []
    images_of_note: dict[str, list[str]] = {}
    # What a loader's worker processes collate are the paths themselves, one by one.
    results = DataLoader(
        paths, batch_size=None, num_workers=workers, collate_fn=check_image, worker_init_fn=shield_worker
    )
    try:
        for path, (finding, notes) in zip(progress_bar(paths, unit="image"), results, strict=True):
            if finding:
                findings.append(finding)
            for note in notes:
                images_of_note.setdefault(note, []).append(path)
    except RuntimeError as error:
        raise UserError(f"a checking process was killed ({first_line(error)}); lower --workers") from error
    return findings, images_of_note


def open_folders(root: Path) -> tuple[list[ImageFolder], list[str]]:
    """The folders to check, train first, and what is wrong with their classes.

    Raises: UserError if no folder can be checked.
    """
    splits = [root / name for name in ("train", "val") if (root / name).is_dir()]
    folders: list[ImageFolder] = []
    findings = []
    classes = None  # of train, which val must have too
    for split in splits or [root]:
        try:
            folders.append(ImageFolder(str(split), classes))
            classes = folders[0].classes
        except UserError as error:
            findings.append(f"{error}; no image of {split} was checked")
    if not folders:
        raise UserError("; ".join(findings))
    return folders, findings


def print_findings(findings: list[str], images_of_note: dict[str, list[str]], has_report: bool) -> None:
    """The first findings, and an example for each kind of note."""
    for line in findings[:SHOWN]:
        say(line)
    if len(findings) > SHOWN:
        more = f"… and {len(findings) - SHOWN} more"
        if not has_report:
            more += "; --report FILE writes them all"
        say(more)
    for note, paths in sorted(images_of_note.items()):
        say(f"note: {len(paths)} images: {note}, as {paths[0]}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read every image as training will, and report what is wrong.")
    parser.add_argument("root", type=Path, help="a folder with train/ and val/, or with one folder a class")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    parser.add_argument("--report", type=Path, help="a JSON file for all findings and notes")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be at least 1")
    folders, findings = open_folders(arguments.root)
    unreadable, images_of_note = check_folders(folders, arguments.workers)
    findings += unreadable
    print_findings(findings, images_of_note, has_report=arguments.report is not None)
    if arguments.report:
        content = json.dumps({"findings": findings, "notes": images_of_note}, indent=2) + "\n"
        write_atomically(arguments.report, lambda file: file.write(content.encode()))
    roots = ", ".join(folder.root for folder in folders)
    say(f"{sum(map(len, folders))} images in {roots}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
