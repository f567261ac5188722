"""Which images a folder holds: a listing that is kept in a cache.

The cache is valid while the modification time of every folder is unchanged: it changes when a file in the folder is
added, removed or renamed. To check that takes 1,000 stat calls for ImageNet, to list it anew takes 1.28 million names.
"""

import os
import time
from hashlib import sha256
from pathlib import Path

import numpy as np

from utils.console import say
from utils.files import write_atomically

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
ENDINGS = tuple(os.fsencode(extension) for extension in EXTENSIONS)
CACHED_FROM = 50_000  # images; a smaller folder is listed in no time
# File systems round modification times, some to 2 seconds (in ns here). A folder that changed so shortly before it was
# listed may change again without a trace, so it is not cached.
MTIME_RESOLUTION_NS = 2 * 10**9


def image_files(root: str, classes: list[str]) -> list[bytes]:
    """For each class its images' paths relative to root, sorted and joined by zero bytes.

    They are `<class>/**/<image>`. Links are followed, hidden files left out; the ending decides what is an image.
    """
    cache = cache_file(root)
    names_of_class = read_cache(cache, root, classes)
    if names_of_class is not None:
        return names_of_class
    began = time.time_ns()
    modified = {}
    names_of_class = [list_class(root, os.fsencode(name), modified) for name in classes]
    images = sum(names.count(b"\0") + 1 for names in names_of_class)
    if images >= CACHED_FROM and max(modified.values()) < began - MTIME_RESOLUTION_NS:
        write_cache(cache, root, classes, names_of_class, modified)
    return names_of_class


def list_class(root: str, class_name: bytes, modified: dict[bytes, int]) -> bytes:
    """A class's images, as in `image_files`.

    Args:
        modified: gets each folder's modification time in ns, taken before the folder is read.
    """
    images = []
    folders = [class_name]
    for folder in folders:  # the list grows while we go through it
        path = os.path.join(os.fsencode(root), folder)
        modified[folder] = os.stat(path).st_mtime_ns
        names = os.listdir(path)
        # A comprehension, since it goes over 1.28 million names.
        images_here = [folder + b"/" + name for name in names if name.lower().endswith(ENDINGS) and name[:1] != b"."]
        images += images_here
        if len(images_here) == len(names):
            continue
        for name in names:
            if not name.lower().endswith(ENDINGS) and os.path.isdir(os.path.join(path, name)):
                folders.append(folder + b"/" + name)
    return b"\0".join(sorted(images))


def cache_file(root: str) -> Path:
    """Never in the data folder, which may be read-only, and whose modification time it would change."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return Path(base, "masked-frequency-modelling", f"index-{name}.npz")


def read_cache(path: Path, root: str, classes: list[str]) -> list[bytes] | None:
    """What `image_files` returns. None: there is no cache, it is damaged or of other classes, or a folder changed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            folders = file["folders"].tobytes().split(b"\0")
            names_of_class = file["files"].tobytes().split(b"\0\0")
            modified = file["modified"].tolist()
    except Exception:  # a damaged file may raise anything
        return None
    try:
        modified_now = [os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns for folder in folders]
    except OSError:
        return None
    cached_classes = [os.fsdecode(names.partition(b"/")[0]) for names in names_of_class]
    if modified_now != modified or cached_classes != classes:
        return None
    return names_of_class


def write_cache(
    path: Path, root: str, classes: list[str], names_of_class: list[bytes], modified: dict[bytes, int]
) -> None:
    """Keep a listing for `read_cache`; a place that cannot be written to is a warning."""
    if not all(names_of_class):
        return  # a class without images, which is an error
    arrays = {
        "folders": np.frombuffer(b"\0".join(modified), dtype=np.uint8),
        "files": np.frombuffer(b"\0\0".join(names_of_class), dtype=np.uint8),
        "modified": np.array(list(modified.values())),
    }
    own = path.with_name(f"{path.stem}-{os.getpid()}.npz")  # jobs that start together do not share a temporary file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(own, lambda file: np.savez(file, **arrays))
        os.replace(own, path)
    except OSError as error:
        say(
            f"warning: {path}: the index of {root} cannot be kept there ({error.strerror}); each start lists the "
            "images anew; XDG_CACHE_HOME names another place",
            to_stderr=True,
        )
