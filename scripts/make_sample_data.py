"""Fashion-MNIST as an image folder, to try every command without a download (`--help` says how).

Without arguments the bundled sample (ten classes of 400 + 100 images) is unpacked to `sample/` beside `scripts/`.
With `--source` the original idx files are read instead: to write the whole set, or to make the bundle anew.
"""

import argparse
import gzip
import io
import lzma
import math
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.distributed import run_entry
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLE = REPOSITORY / "scripts" / "sample_fashion_mnist.npz"
SAMPLE = REPOSITORY / "sample"
# In the order of the labels 0 to 9.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SIDE = 28  # pixels
SPLITS = {"train": "train", "val": "t10k"}  # folder: how its idx files' names begin
BUNDLED = {"train": 400, "val": 100}  # images of each class
HOW_TO_GET_IDX = "get the four files from https://github.com/zalandoresearch/fashion-mnist again"

Split = list[np.ndarray]  # for each class its images in file order, uint8 (images, 28, 28)


def main(argv: list[str]) -> None:
    """What the command line asks for; prints what was done and where. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder with the four idx files, .gz or not, or torchvision's root")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", type=Path, help=f"folder to write train/ and val/ to (default: {SAMPLE.name}/)")
    target.add_argument("--rebuild-bundle", action="store_true", help="write the bundle from --source instead")
    arguments = parser.parse_args(argv)
    if arguments.source is None:
        if arguments.rebuild_bundle:
            raise UserError("--rebuild-bundle needs --source FOLDER: the folder with the four idx files")
        print(write_folders(read_bundle(BUNDLE), arguments.output or SAMPLE))
    elif arguments.rebuild_bundle:
        print(write_bundle(read_source(arguments.source), BUNDLE))
    elif arguments.output is None:
        raise UserError("--source needs --output FOLDER (to write the whole set) or --rebuild-bundle")
    else:
        print(write_folders(read_source(arguments.source), arguments.output))


def read_source(source: Path) -> dict[str, Split]:
    """Every image of the four idx files. Raises UserError naming the file that is missing or damaged."""
    splits = {}
    for split, prefix in SPLITS.items():
        images, _ = read_idx(source, f"{prefix}-images-idx3-ubyte", (SIDE, SIDE))
        labels, path = read_idx(source, f"{prefix}-labels-idx1-ubyte", ())
        if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
            found = f"{len(labels)} labels up to {labels.max(initial=0)} for {len(images)} images"
            raise UserError(f"{path}: {found}; one from 0 to {len(CLASSES) - 1} is due for each: {HOW_TO_GET_IDX}")
        splits[split] = [images[labels == label] for label in range(len(CLASSES))]
    return splits


def read_idx(source: Path, name: str, item_shape: tuple[int, ...]) -> tuple[np.ndarray, Path]:
    """The bytes of one idx file, uint8 (items, *item_shape), and the file they were found in. Raises UserError."""
    folders = (source, source / "raw", source / "FashionMNIST" / "raw")  # the last is torchvision's
    path = next((path for folder in folders for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise UserError(f"{source}: holds no {name} or {name}.gz, nor does FashionMNIST/raw in it; {HOW_TO_GET_IDX}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {HOW_TO_GET_IDX}") from error
    # The header, in big-endian words: two zero bytes, 8 for bytes and the number of dimensions; then each one's size.
    words = 2 + len(item_shape)
    magic, *shape = (int.from_bytes(content[4 * word : 4 * word + 4], "big") for word in range(words))
    if magic != 0x800 + words - 1:
        raise UserError(f"{path}: its magic number is {magic}, not {0x800 + words - 1} as in {name}; {HOW_TO_GET_IDX}")
    if tuple(shape[1:]) != item_shape:
        raise UserError(f"{path}: its items are {shape[1:]}, not {list(item_shape)} pixels; {HOW_TO_GET_IDX}")
    due = 4 * words + math.prod(shape)
    if len(content) != due:
        raise UserError(f"{path}: {len(content)} bytes, but {due} are due for its {shape[0]} items; {HOW_TO_GET_IDX}")
    return np.frombuffer(content, np.uint8, offset=4 * words).reshape(shape), path


def write_bundle(splits: dict[str, Split], bundle: Path, bundled: dict[str, int] = BUNDLED) -> str:
    """Write the first `bundled[split]` images of each class as a .npz: the same images always give the same bytes.

    Returns: what was done, as a line to print.
    Raises: UserError if a class has too few images.
    """
    for split, count in bundled.items():
        few = [name for name, images in zip(CLASSES, splits[split], strict=True) if len(images) < count]
        if few:
            raise UserError(f"--source has fewer than {count} {split} images of {', '.join(few)}; give the whole set")
    partial = bundle.with_name(f"{bundle.name}.tmp")
    # np.savez stamps the time of writing on each member, and its deflate is a sixth larger.
    with zipfile.ZipFile(partial, "w") as file:
        for split, count in bundled.items():
            member = io.BytesIO()
            np.save(member, np.stack([images[:count] for images in splits[split]]))
            file.writestr(zipfile.ZipInfo(f"{split}.npy"), member.getvalue(), zipfile.ZIP_LZMA)
    partial.replace(bundle)
    counts = " and ".join(f"{count} {split}" for split, count in bundled.items())
    return f"wrote {bundle}: {counts} images of each of {len(CLASSES)} classes, {bundle.stat().st_size} bytes"


def read_bundle(bundle: Path) -> dict[str, Split]:
    """The images that `write_bundle` wrote. Raises UserError if the file is missing or damaged."""
    try:
        with np.load(bundle, allow_pickle=False) as file:
            return {split: list(file[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise UserError(f"{bundle}: cannot be read ({error}); restore it with `git checkout -- {bundle}`") from error


def write_folders(splits: dict[str, Split], output: Path) -> str:
    """Write `output/<split>/<class>/<number in the class>.png`, 8-bit grey, or find it all written already.

    The folder gets its name when all is written, so that an interrupted run never looks like a whole one.
    Returns: what was done, as a line to print.
    Raises: UserError if `output` holds anything but just these images.
    """
    due = {
        f"{split}/{name}/{number:05d}.png": image
        for split in splits
        for name, images in zip(CLASSES, splits[split], strict=True)
        for number, image in enumerate(images)
    }
    total = " and ".join(f"{sum(map(len, splits[split]))} {split}" for split in splits) + " images"
    if output.is_dir() and any(output.iterdir()):
        found = {path.relative_to(output).as_posix() for path in output.glob("**/*.png")}
        if found != due.keys():
            what = f"{len(due.keys() - found)} images are missing and {len(found - due.keys())} are not of this set"
            raise UserError(f"{output}: {what}; remove this folder, or name another with --output")
        return f"found {total} in {output}; nothing to do"
    partial = output.with_name(f"{output.name}.partial.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in {(partial / name).parent for name in due}:
        folder.mkdir(parents=True)
    for name, image in tqdm(due.items(), desc="writing", unit="image", disable=None, leave=False):
        Image.fromarray(image).save(partial / name)
    partial.rename(output)
    return f"wrote {total} to {output}"


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
