"""A folder of images, one folder a class, as a compact index."""

import hashlib
import os

import numpy as np

from data.index import EXTENSIONS, image_files
from utils.errors import UserError


class ImageFolder:
    """Paths and class numbers of `root/<class>/**/<image>`, sorted, links followed, hidden files left out.

    Two numpy buffers hold it all: a million Python objects would be copied into every loader worker as soon as their
    reference counts are touched.

    Args:
        root: folder with one folder a class.
        classes: the class order to use (of the training set, or of a checkpoint); default: the folders', sorted.
        holdout_fraction: share of the images to set apart, by a hash of the path inside root.
        held_out: hold those set apart instead of the others.
    Raises: UserError on a missing root, no class folder, an empty class, classes other than those asked for, a class
        that is held out whole, or nothing held out where that is asked for.
    """

    def __init__(
        self, root: str, classes: list[str] | None = None, holdout_fraction: float = 0.0, held_out: bool = False
    ):
        self.root = root
        found = class_folders(root)
        self.classes = found if classes is None else list(classes)
        missing, extra = sorted(set(self.classes) - set(found)), sorted(set(found) - set(self.classes))
        if missing or extra:
            raise UserError(
                f"{root}: its class folders are not those of the training set or checkpoint: "
                f"missing {some(missing)}; unexpected {some(extra)}; make the folders agree"
            )
        kept, numbers = [], []
        for name, listed in zip(self.classes, image_files(root, self.classes), strict=True):
            if not listed:
                kinds = " ".join(EXTENSIONS)
                raise UserError(f"{os.path.join(root, name)}: this class has no image ({kinds}); add some or remove it")
            if holdout_fraction or held_out:
                files = listed.split(b"\0")
                listed = b"\0".join(file for file in files if is_held_out(file, holdout_fraction) == held_out)
            if not listed and not held_out:
                raise UserError(
                    f"data.holdout_fraction = {holdout_fraction}: holds out every image of "
                    f"{os.path.join(root, name)} ({len(files)}): lower it, or add images"
                )
            numbers.append(listed.count(b"\0") + 1 if listed else 0)
            kept += [listed] if listed else []
        if not kept:
            raise UserError(f"data.holdout_fraction = {holdout_fraction}: holds out no image of {root}; raise it")
        self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), numbers)
        self._names = np.frombuffer(b"\0".join(kept), dtype=np.uint8)
        self._ends = np.append(np.flatnonzero(self._names == 0), len(self._names))

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hash of class order and relative paths, not of pixels: another one means another data set or split."""
        text = "\0".join(self.classes).encode(errors="surrogateescape")
        ends = self._ends - np.arange(len(self))  # of the names without what separates them
        return hashlib.sha256(text + ends.tobytes() + self._names[self._names != 0].tobytes()).hexdigest()[:12]

    def path(self, index: int) -> str:
        start = self._ends[index - 1] + 1 if index else 0
        return os.path.join(self.root, os.fsdecode(self._names[start : self._ends[index]].tobytes()))


def is_held_out(path: str | bytes, fraction: float) -> bool:
    """By a hash of the relative path alone: other files change nothing, and a larger fraction adds to a smaller."""
    if not fraction:
        return False
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big") < fraction * 2**64


def class_folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        remedy = "data.data_path (--data-path) must hold train/ and val/ with one folder a class in each"
        raise UserError(f"{root}: no such image folder ({error.strerror}); {remedy}") from error
    if not found:
        raise UserError(f"{root}: has no class folders; images belong into {os.path.join(root, '<class>')}/")
    return found


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
