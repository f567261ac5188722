"""A folder of images, one folder a class, as a compact index."""

import hashlib
import os

import numpy as np

from data.index import EXTENSIONS, image_files
from utils.errors import UserError, printable


class ImageFolder:
    """Paths and class numbers of `root/<class>/**/<image>`, sorted. Links are followed, hidden files left out.

    Two numpy buffers hold it all: a million Python objects would be copied into every loader worker as soon as their
    reference counts are touched.

    Args:
        root: folder with one folder a class.
        classes: the class order to use (of the training set, or of a checkpoint); default: the folders', sorted.
        holdout_fraction: share of the images to set apart, by a hash of the path inside root.
        held_out: take the images set apart instead of the others.
    Raises: UserError on a missing root, no class folder, an empty class, classes other than those asked for, a class
        that is held out whole, or nothing held out where that is asked for.
    """

    def __init__(
        self, root: str, classes: list[str] | None = None, holdout_fraction: float = 0.0, held_out: bool = False
    ):
        self.root = root
        self.classes = class_folders(root)
        if classes is not None:
            check_same_classes(root, self.classes, classes)
            self.classes = list(classes)

        names_of_class = image_files(root, self.classes)
        for class_name, names in zip(self.classes, names_of_class, strict=True):
            if not names:
                kinds = " ".join(EXTENSIONS)
                raise UserError(
                    f"{os.path.join(root, class_name)}: this class has no image ({kinds}); add some or remove it"
                )
        if holdout_fraction or held_out:
            names_of_class = holdout_split(root, self.classes, names_of_class, holdout_fraction, held_out)

        images_of_class = [count_names(names) for names in names_of_class]
        self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), images_of_class)
        names = b"\0".join(names for names in names_of_class if names)
        self._names = np.frombuffer(names, dtype=np.uint8)
        self._ends = np.append(np.flatnonzero(self._names == 0), len(self._names))

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hash of class order and relative paths, not of pixels: another one means another data set or split."""
        classes = "\0".join(self.classes).encode(errors="surrogateescape")
        ends = self._ends - np.arange(len(self))  # as if nothing separated the names
        names = self._names[self._names != 0]
        return hashlib.sha256(classes + ends.tobytes() + names.tobytes()).hexdigest()[:12]

    def path(self, index: int) -> str:
        start = 0 if index == 0 else self._ends[index - 1] + 1
        name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        return os.path.join(self.root, name)


def class_folders(root: str) -> list[str]:
    """The names of the class folders in root, sorted. Raises: UserError if root cannot be read or has none."""
    try:
        with os.scandir(root) as entries:
            folders = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        remedy = "data.data_path (--data-path) must hold train/ and val/ with one folder a class in each"
        raise UserError(f"{root}: no such image folder ({error.strerror}); {remedy}") from error
    classes = sorted(name for name in folders if not name.startswith("."))
    if not classes:
        raise UserError(f"{root}: has no class folders; images belong into {os.path.join(root, '<class>')}/")
    return classes


def check_same_classes(root: str, folders: list[str], classes: list[str]) -> None:
    """Raise UserError unless the class folders in root are the classes of the training set or checkpoint."""
    missing = sorted(set(classes) - set(folders))
    unexpected = sorted(set(folders) - set(classes))
    if missing or unexpected:
        raise UserError(
            f"{root}: its class folders are not those of the training set or checkpoint: "
            f"missing {abbreviate(missing)}; unexpected {abbreviate(unexpected)}; make the folders agree"
        )


def holdout_split(
    root: str, classes: list[str], names_of_class: list[bytes], fraction: float, held_out: bool
) -> list[bytes]:
    """The images of each class that are held out, or the others, as `image_files` gives them: joined by zero bytes.

    Raises: UserError if a class is held out whole, or nothing is held out where that is asked for.
    """
    chosen = []
    for class_name, names in zip(classes, names_of_class, strict=True):
        names_chosen = [name for name in names.split(b"\0") if is_held_out(name, fraction) == held_out]
        if not names_chosen and not held_out:
            raise UserError(
                f"data.holdout_fraction = {fraction}: holds out every image of {os.path.join(root, class_name)} "
                f"({count_names(names)}): lower it, or add images"
            )
        chosen.append(b"\0".join(names_chosen))
    if not any(chosen):
        raise UserError(f"data.holdout_fraction = {fraction}: holds out no image of {root}; raise it")
    return chosen


def is_held_out(path: str | bytes, fraction: float) -> bool:
    """By a hash of the relative path alone: other files change nothing, and a larger fraction adds to a smaller."""
    if not fraction:
        return False
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def count_names(names: bytes) -> int:
    """How many names are joined by zero bytes."""
    if not names:
        return 0
    return names.count(b"\0") + 1


def abbreviate(names: list[str]) -> str:
    """The first five of some names, and how many more there are."""
    if not names:
        return "none"
    listed = ", ".join(map(printable, names[:5]))  # names of a checkpoint may hold anything
    if len(names) > 5:
        return f"{listed} and {len(names) - 5} more"
    return listed
