"""Sort ImageNet's validation images, which come in one flat folder, into class folders: links, no copies.

python scripts/prepare_imagenet.py FLAT imagenet/val --devkit ILSVRC2012_devkit_t12     # the unpacked development kit
python scripts/prepare_imagenet.py FLAT imagenet/val --meta meta.bin                    # torchvision's file

FLAT holds ILSVRC2012_val_00000001.JPEG and so on. The kit is a folder with data/meta.mat and
data/ILSVRC2012_validation_ground_truth.txt. FLAT must hold each image that has a label, and no further one.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError, first_line
from utils.files import make_link

IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
CLASS = re.compile(r"n\d{8}")
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flat", type=Path, help="the folder of validation images")
    parser.add_argument("target", type=Path, help="a new or empty folder for the class folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--devkit", type=Path, help="the unpacked ILSVRC2012_devkit_t12")
    source.add_argument("--meta", type=Path, help="torchvision's meta.bin")
    arguments = parser.parse_args(argv)
    if arguments.target.exists() and (not arguments.target.is_dir() or any(arguments.target.iterdir())):
        raise UserError(f"{arguments.target}: is not empty; give a new folder")
    classes = classes_of_devkit(arguments.devkit) if arguments.devkit else classes_of_meta(arguments.meta)
    check_images(arguments.flat, len(classes))
    write_links(arguments.flat, arguments.target, classes)
    say(f"{arguments.target}: {len(classes):,} images in {len(set(classes)):,} classes, as links to {arguments.flat}")
    return 0


def classes_of_devkit(devkit: Path) -> list[str]:
    """The class of each image, in the order of their numbers. Raises: UserError on a missing or damaged file."""
    from scipy.io import loadmat  # only here, as --meta can do without scipy

    try:
        numbers = [int(line) for line in (devkit / GROUND_TRUTH).read_text().split()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{devkit / GROUND_TRUTH}: cannot be read ({first_line(error)}); unpack ILSVRC2012_devkit_t12.tar.gz"
        ) from error
    try:
        synsets = loadmat(devkit / META, squeeze_me=True)["synsets"]
        class_of_number = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        classes = [class_of_number[number] for number in numbers]
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise UserError(f"{devkit / META}: is not the kit's ({first_line(error)}); unpack it again") from error
    check_classes(classes, devkit)
    return classes


def classes_of_meta(meta: Path) -> list[str]:
    """As `classes_of_devkit`, from what torchvision made of the kit: (names of each class, class of each image)."""
    try:
        _, classes = torch.load(meta, weights_only=True)
        classes = list(classes)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise UserError(f"{meta}: is not torchvision's meta.bin ({first_line(error)}); or give --devkit") from error
    check_classes(classes, meta)
    return classes


def check_classes(classes: list, source: Path) -> None:
    """Raises: UserError unless these are names such as n01440764, which become folders."""
    for name in classes:
        if not isinstance(name, str) or not CLASS.fullmatch(name):
            raise UserError(f"{source}: has a class {name!r}, which is no name such as n01440764")
    if not classes:
        raise UserError(f"{source}: has the class of no image")


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def check_images(flat: Path, count: int) -> None:
    """Raises: UserError unless the folder has the images 1 to count, and no other validation image."""
    try:
        names = {name for name in os.listdir(flat) if IMAGE.fullmatch(name)}
    except OSError as error:
        raise UserError(f"{flat}: cannot be read ({error.strerror}); give the folder of validation images") from error
    expected = {image_name(number) for number in range(1, count + 1)}
    for found, which in ((expected - names, "missing"), (names - expected, "unknown to the labels")):
        if found:
            raise UserError(
                f"{flat}: {len(found):,} of {count:,} images are {which}, the first is {min(found)}; unpack "
                "ILSVRC2012_img_val.tar there again"
            )


def write_links(flat: Path, target: Path, classes: list[str]) -> None:
    """In a folder that takes its name when it is whole."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)  # of a start that was ended early
    for name in sorted(set(classes)):
        (unfinished / name).mkdir(parents=True)
    for number, name in enumerate(progress_bar(classes, desc="linking", unit="image"), start=1):
        image = image_name(number)
        remedy = "give a target on a file system that has them"
        make_link(unfinished / name / image, os.path.abspath(flat / image), remedy)
    if target.is_dir():
        target.rmdir()
    unfinished.rename(target)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
