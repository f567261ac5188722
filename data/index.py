"""Which images a folder holds: listed fast, and kept in a cache that any change of the folder makes void.

A folder's time of modification changes when a file in it is added, removed or renamed. So the cache is as good as new
listing where every folder still has the time it had: a thousand questions instead of 1.28 million names.
"""

import os
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np

from utils.files import write_atomically

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
ENDINGS = tuple(os.fsencode(extension) for extension in EXTENSIONS)
CACHED_FROM = 50_000  # images; fewer are listed in a blink
UNSETTLED = 2 * 10**9  # ns; a folder changed so shortly before may change again within the resolution of its time


def image_files(root: str, classes: list[str]) -> list[bytes]:
    """For each class its images' paths relative to root, sorted and joined by zero bytes.

    They are `<class>/**/<image>`: links followed, hidden files left out, the ending decides what is an image.
    """
    cache = cache_file(root)
    known = read_cache(cache, root, classes)
    if known is not None:
        return known
    began, modified = time.time_ns(), {}
    listed = [list_class(root, os.fsencode(name), modified) for name in classes]
    large = sum(blob.count(b"\0") + 1 for blob in listed) >= CACHED_FROM
    if large and max(modified.values()) < began - UNSETTLED:
        write_cache(cache, root, classes, listed, modified)
    return listed


def list_class(root: str, name: bytes, modified: dict[bytes, int]) -> bytes:
    """A class's images. `modified` is told each folder's time, in ns, as it was before the folder was read."""
    found, folders = [], [name]
    for folder in folders:  # grows meanwhile
        path = os.path.join(os.fsencode(root), folder)
        modified[folder] = os.stat(path).st_mtime_ns
        names = os.listdir(path)
        images = [folder + b"/" + name for name in names if name.lower().endswith(ENDINGS) and name[:1] != b"."]
        found += images
        if len(images) < len(names):
            others = (name for name in names if not name.lower().endswith(ENDINGS))
            folders += [folder + b"/" + name for name in others if os.path.isdir(os.path.join(path, name))]
    return b"\0".join(sorted(found))


def cache_file(root: str) -> Path:
    """Never in the data folder, which may be read-only, and whose time it would change."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return Path(base, "masked-frequency-modelling", f"index-{name}.npz")


def read_cache(path: Path, root: str, classes: list[str]) -> list[bytes] | None:
    """What `image_files` returns, or None: there is none, it is damaged, of other classes, or the folder changed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            folders, files, modified = (file[name] for name in ("folders", "files", "modified"))
    except Exception:  # whatever a damaged file leads to
        return None
    names = folders.tobytes().split(b"\0")
    try:
        now = [os.stat(os.path.join(os.fsencode(root), name)).st_mtime_ns for name in names]
    except OSError:
        return None
    blobs = files.tobytes().split(b"\0\0")
    found = [os.fsdecode(blob.partition(b"/")[0]) for blob in blobs]
    return blobs if now == modified.tolist() and found == classes else None


def write_cache(path: Path, root: str, classes: list[str], listed: list[bytes], modified: dict[bytes, int]) -> None:
    if not all(listed):
        return  # a class without images, which is an error
    content = {"folders": b"\0".join(modified), "files": b"\0\0".join(listed)}
    arrays = {name: np.frombuffer(text, dtype=np.uint8) for name, text in content.items()}
    own = path.with_name(f"{path.stem}-{os.getpid()}.npz")  # jobs that start together do not share a temporary file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(own, lambda file: np.savez(file, modified=np.array([*modified.values()]), **arrays))
        os.replace(own, path)
    except OSError as error:
        told = f"warning: {path}: the index of {root} cannot be kept there ({error.strerror})"
        print(f"{told}; each start lists the images anew; XDG_CACHE_HOME names another place", file=sys.stderr)
