"""Read every image of a data set as training will, and report what is wrong with it before weeks depend on it.

python scripts/check_data.py imagenet                                   # a folder with train/ and val/
python scripts/check_data.py imagenet --workers 32 --report findings.json

Exit code 0: nothing found; 1: findings; 2: the folder cannot be checked at all.
"""

import argparse
import collections
import json
import sys
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.decode import decode_image
from data.folder import ImageFolder
from utils.distributed import run_entry
from utils.errors import UserError, first_line
from utils.files import write_atomically
from utils.process import available_cores, shield_worker

SHOWN = 20  # findings on the console
MIN_SIDE = 8  # pixels; a shorter image holds next to nothing to learn from


def check_image(path: str) -> tuple[str, list[str]]:
    """What keeps an image from being used ("": nothing), and what a person may not expect of how it is used."""
    try:
        pixels = decode_image(path)
    except UserError as error:
        return str(error), []
    notes = ["shorter side below 8 pixels"] if min(pixels.shape[-2:]) < MIN_SIDE else []
    try:
        with Image.open(path) as image:
            notes += ["EXIF rotation, not applied"] if image.getexif().get(0x0112, 1) != 1 else []
            notes += ["animated, first frame used"] if getattr(image, "n_frames", 1) > 1 else []
            notes += [f"{image.mode}, used as 8-bit RGB"] if image.mode not in ("RGB", "L", "P") else []
    except Exception:  # of a format, or of metadata, that Pillow alone stumbles over: the pixels were read
        notes.append("unusual headers")
    return "", notes


def check_folders(folders: list[ImageFolder], workers: int) -> tuple[list[str], dict[str, list[str]]]:
    """All findings, a line each, and for each kind of note the images it is true of.

    Raises: UserError if a process is killed, as the kernel does for want of memory.
    """
    paths = [folder.path(index) for folder in folders for index in range(len(folder))]
    findings, notes = [], collections.defaultdict(list)
    # What a loader's worker processes collate are the paths themselves, one by one.
    results = DataLoader(paths, None, num_workers=workers, collate_fn=check_image, worker_init_fn=shield_worker)
    try:
        for path, (finding, told) in zip(tqdm(paths, unit="image", disable=None), results, strict=True):
            findings += [finding] if finding else []
            for kind in told:
                notes[kind].append(path)
    except RuntimeError as error:
        raise UserError(f"a checking process was killed ({first_line(error)}); lower --workers") from error
    return findings, notes


def index(root: Path) -> tuple[list[ImageFolder], list[str]]:
    """The folders to check, train first, and what is wrong with their classes."""
    splits = [root / name for name in ("train", "val") if (root / name).is_dir()]
    folders, findings = [], []
    for place in splits or [root]:
        try:
            folders.append(ImageFolder(str(place), folders[0].classes if folders else None))
        except UserError as error:
            findings.append(f"{error}; no image of {place} was checked")
    if not folders:
        raise UserError("; ".join(findings))
    return folders, findings


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read every image as training will, and report what is wrong.")
    parser.add_argument("root", type=Path, help="a folder with train/ and val/, or with one folder a class")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    parser.add_argument("--report", type=Path, help="a JSON file for all findings and notes")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be at least 1")
    folders, findings = index(arguments.root)
    unreadable, notes = check_folders(folders, arguments.workers)
    findings += unreadable
    for line in findings[:SHOWN]:
        print(line)
    if len(findings) > SHOWN:
        print(f"… and {len(findings) - SHOWN} more" + ("" if arguments.report else "; --report FILE writes them all"))
    for kind, paths in sorted(notes.items()):
        print(f"note: {len(paths)} images: {kind}, as {paths[0]}")
    if arguments.report:
        content = json.dumps({"findings": findings, "notes": notes}, indent=2) + "\n"
        write_atomically(arguments.report, lambda file: file.write(content.encode()))
    where = ", ".join(folder.root for folder in folders)
    print(f"{sum(map(len, folders))} images in {where}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
