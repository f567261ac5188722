"""A folder of images, one folder a class, as a compact index."""

import os

import numpy as np

from utils.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class ImageFolder:
    """Paths and class numbers of `root/<class>/**/<image>`, sorted, links followed, hidden files left out.

    Two numpy buffers hold it all: a million Python objects would be copied into every loader worker as soon as their
    reference counts are touched.

    Args:
        root: folder with one folder a class.
        classes: the class order to use (of the training set, or of a checkpoint); default: the folders', sorted.
    Raises: UserError on a missing root, no class folder, an empty class, or classes other than those asked for.
    """

    def __init__(self, root: str, classes: list[str] | None = None):
        self.root = root
        found = class_folders(root)
        self.classes = found if classes is None else list(classes)
        missing, extra = sorted(set(self.classes) - set(found)), sorted(set(found) - set(self.classes))
        if missing or extra:
            raise UserError(
                f"{root}: its class folders are not those of the training set or checkpoint: "
                f"missing {some(missing)}; unexpected {some(extra)}; make the folders agree"
            )
        names, numbers = [], []
        for name in self.classes:
            files = image_files(root, name)
            if not files:
                kinds = " ".join(EXTENSIONS)
                raise UserError(f"{os.path.join(root, name)}: this class has no image ({kinds}); add some or remove it")
            names += files
            numbers.append(len(files))
        self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), numbers)
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self._names[start : self._ends[index]].tobytes()))


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


def image_files(root: str, name: str) -> list[str]:
    """Paths of a class's images relative to root, sorted."""
    found = []
    for folder, _, files in os.walk(os.path.join(root, name), followlinks=True):
        inside = os.path.relpath(folder, root)
        # Hidden files: `._x.JPEG`, which some archives carry, is no image.
        found += [os.path.join(inside, f) for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
    return sorted(found)


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
