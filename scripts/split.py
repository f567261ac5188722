"""Make train/ and val/ of one folder with classes: links to its images, whose files stay where they are.

python scripts/split.py photos mine --val-share 0.2      # photos/<class>/ -> mine/train/<class>/ and mine/val/<class>/
python scripts/split.py photos mine --copy               # copies in place of links

A hash of each path inside SOURCE decides. So each class gives the same share to val, a smaller val is part of a larger
one, and the same images fall into val on another machine. A class with one image gives it to train.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.class_names import abbreviate
from data.folder import ImageFolder
from data.listing import list_root
from data.shares import label_share
from utils.console import fitted, progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.files import make_link

PARTS = ("train", "val")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder with one folder per class")
    parser.add_argument("target", type=Path, help="a new or empty folder for train/ and val/")
    parser.add_argument("--val-share", type=float, default=0.2, help="share of each class for val (default: 0.2)")
    parser.add_argument("--copy", action="store_true", help="copy the files in place of linking them")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.val_share < 1:
        raise UserError(f"--val-share {arguments.val_share:g}: must be above 0 and below 1")
    check_target(arguments.source, arguments.target)
    folder = ImageFolder(str(arguments.source))
    refuse_parts(arguments.source, folder.classes)
    if folder.left_out:
        say(fitted(folder.left_out_line()))
    names = [os.path.relpath(folder.path(index), folder.root) for index in range(len(folder))]
    names_in_val = chosen_for_val(folder, names, arguments.val_share)
    write_parts(arguments.source, arguments.target, names, names_in_val, arguments.copy)
    for line in summary(folder, names, names_in_val, arguments.target):
        say(fitted(line))
    return 0


def check_target(source: Path, target: Path) -> None:
    """Raises: UserError if the target holds something already, or lies in the source, whose classes it would join."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; give a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: is not empty; give a new folder, or remove what is in it")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies in {source}, where it would be taken for a class; give a folder beside it")


def refuse_parts(source: Path, classes: list[str]) -> None:
    """Raises: UserError if the source is a data set that was split before, whose parts would be taken for classes."""
    parts = [name for name in classes if name.lower() in PARTS]
    if not parts:
        return
    if set(classes) <= set(PARTS):
        raise UserError(
            f"{source}: has {' and '.join(classes)} in it already; give the folder that holds the classes, such as "
            f"{source / classes[0]}"
        )
    for name in parts:
        classes_inside = list_root(str(source / name)).classes
        if classes_inside:
            raise UserError(
                f"{source}: its folder {name} holds class folders itself ({abbreviate(classes_inside)}); give that "
                f"one, {source / name}, or rename it if it is a class"
            )


def chosen_for_val(folder: ImageFolder, names: list[str], share: float) -> set[str]:
    """The images of val: the share of each class, at least one, but never all."""
    names_of_class: dict[int, list[bytes]] = {}
    for name, label in zip(names, folder.labels.tolist(), strict=True):
        names_of_class.setdefault(label, []).append(os.fsencode(name))
    chosen = set()
    for of_class in names_of_class.values():
        most = len(of_class) - 1
        if most > 0:
            chosen |= set(label_share(of_class, min(share, most / len(of_class))))
    return {os.fsdecode(name) for name in chosen}


def write_parts(source: Path, target: Path, names: list[str], names_in_val: set[str], copy: bool) -> None:
    """Links or copies of all images, in a folder that takes its name when it is whole."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)  # of a start that was ended early
    for part in PARTS:
        (unfinished / part).mkdir(parents=True)
    for name in progress_bar(names, desc="copying" if copy else "linking", unit="image"):
        path = unfinished / ("val" if name in names_in_val else "train") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copy2(source / name, path)
        else:
            make_link(path, os.path.abspath(source / name), "copy the images with --copy")
    if target.is_dir():
        target.rmdir()
    unfinished.rename(target)


def summary(folder: ImageFolder, names: list[str], names_in_val: set[str], target: Path) -> list[str]:
    """What was made, and the classes that have nothing in val."""
    in_val = [0] * len(folder.classes)
    for name, label in zip(names, folder.labels.tolist(), strict=True):
        in_val[label] += name in names_in_val
    a_class = f"{min(in_val):,}"
    if min(in_val) < max(in_val):
        a_class += f" to {max(in_val):,}"
    lines = [
        f"{target}: {len(names) - len(names_in_val):,} images in train, {len(names_in_val):,} in val; "
        f"{len(folder.classes):,} classes with {a_class} in val"
    ]
    without = [name for name, count in zip(folder.classes, in_val, strict=True) if count == 0]
    if without:
        lines.append(
            f"warning: {len(without)} classes have one image, which is in train ({abbreviate(without)}); finetuning "
            "needs one of each class in val: add images, or remove these folders"
        )
    return lines


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
