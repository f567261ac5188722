"""Fashion-MNIST as an image folder, to try every command without a download (`--help` says how).

Without arguments the bundled sample (ten classes of 400 + 100 images) is unpacked to `sample/` beside `scripts/`.
With `--source` the whole set is written, from where torchvision keeps it. The bundle was made from that: the first 400
images of train and 100 of test of each class, in file order, as an LZMA zip of two .npy files, uint8 (10, n, 28, 28).
"""

import argparse
import lzma
import shutil
import sys
import zipfile
from collections.abc import Set
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLE = REPOSITORY / "scripts" / "sample" / "fashion_mnist.npz"
SAMPLE = REPOSITORY / "sample"
# In the order of the labels 0 to 9.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SPLITS = ("train", "val")

Split = list[np.ndarray]  # for each class its images in file order, uint8 (images, 28, 28)


def main(argv: list[str]) -> int:
    """Do what the command line asks for, and print what was done and where. Raises: UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="torchvision's root, which holds FashionMNIST/raw/: the whole set")
    parser.add_argument("--output", type=Path, help=f"folder to write train/ and val/ to (default: {SAMPLE.name}/)")
    arguments = parser.parse_args(argv)
    if arguments.source and not arguments.output:
        raise UserError("--source needs --output FOLDER, to write the whole set to")
    if arguments.source:
        splits = read_source(arguments.source)
    else:
        splits = read_bundle(BUNDLE)
    say(write_folders(splits, arguments.output or SAMPLE))
    return 0


def read_source(source: Path) -> dict[str, Split]:
    """Every image that torchvision finds there. Raises: UserError if a file is missing or damaged."""
    splits = {}
    try:
        for split in SPLITS:
            data = FashionMNIST(source, train=split == "train")
            images, labels = data.data.numpy(), data.targets.numpy()
            if labels.max() >= len(CLASSES):
                raise ValueError(f"a label of {labels.max()}; {len(CLASSES) - 1} is the highest")
            splits[split] = [images[labels == label] for label in range(len(CLASSES))]
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        get = f'python -c "from torchvision.datasets import FashionMNIST; FashionMNIST({str(source)!r}, download=True)"'
        remedy = f"remove {source / 'FashionMNIST'} if it is there, and get it (again): {get}"
        raise UserError(f"{source}: torchvision cannot read Fashion-MNIST there ({error!r}); {remedy}") from error
    return splits


def read_bundle(bundle: Path) -> dict[str, Split]:
    """The images of the bundle. Raises: UserError if the file is missing or damaged."""
    try:
        with np.load(bundle, allow_pickle=False) as file:
            return {split: list(file[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise UserError(f"{bundle}: cannot be read ({error}); restore it with `git checkout -- {bundle}`") from error


def files_of(splits: dict[str, Split]) -> dict[str, np.ndarray]:
    """`<split>/<class>/<number in the class>.png` -> image (28, 28) uint8."""
    files = {}
    for split, classes in splits.items():
        for name, images in zip(CLASSES, classes, strict=True):
            for number, image in enumerate(images):
                files[f"{split}/{name}/{number:05d}.png"] = image
    return files


def write_folders(splits: dict[str, Split], output: Path) -> str:
    """Write every image as 8-bit grey PNG, `output/<split>/<class>/<number>.png`, or find it all written already.

    The folder gets its name when all is written, so that an interrupted run never looks like a whole one.
    Returns: what was done, as a line to print.
    Raises: UserError if `output` holds anything but just these images.
    """
    files = files_of(splits)
    counts = [f"{sum(map(len, classes))} {split}" for split, classes in splits.items()]
    total = f"{' and '.join(counts)} images"
    if output.is_dir() and any(output.iterdir()):
        check_folder(output, files.keys())
        return f"found {total} in {output}; nothing to do"
    partial = output.with_name(f"{output.name}.partial.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for name, image in progress_bar(files.items(), desc="writing", unit="image"):
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    partial.rename(output)
    return f"wrote {total} to {output}"


def check_folder(output: Path, names: Set[str]) -> None:
    """Raises: UserError if the folder holds other images than these."""
    existing = {path.relative_to(output).as_posix() for path in output.glob("**/*.png")}
    missing, foreign = len(names - existing), len(existing - names)
    if missing or foreign:
        raise UserError(
            f"{output}: {missing} images are missing and {foreign} are not of this set; "
            "remove this folder, or name another with --output"
        )


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
