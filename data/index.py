"""The listing of a large data set, kept in a cache.

The cache is valid while the state of every folder is unchanged: device, inode, size, and the times that change when a
file in the folder is added, removed or renamed. To check that takes 1,000 stat calls for ImageNet, to list it anew
takes 1.28 million names. Where times cannot be trusted nothing is kept.
"""

import json
import os
import time
from hashlib import sha256
from pathlib import Path

import numpy as np

from data.listing import FolderState, LeftOut, Listing, list_images, state_of
from utils.console import say
from utils.files import write_atomically

CACHED_FROM = 50_000  # images; a smaller folder is listed in no time
# File systems round modification times, some to 2 seconds (in ns here). A folder that changed so shortly before it was
# listed may change again without a trace, so it is not cached.
TIME_RESOLUTION_NS = 2 * 10**9


def image_files(root: str, classes: list[str]) -> Listing:
    """As `list_images` of data/listing.py, from the cache if it is valid."""
    cache = cache_file(root)
    listing = read_cache(cache, root, classes)
    if listing is not None:
        return listing
    began = time.time_ns()
    listing = list_images(root, classes)
    images = sum(names.count(b"\0") + 1 for names in listing.names_of_class)
    is_sound = all(listing.names_of_class) and not listing.problems
    if images >= CACHED_FROM and is_sound and times_can_be_trusted(list(listing.folders.values()), began):
        write_cache(cache, root, listing)
    return listing


def times_can_be_trusted(states: list[FolderState], began: int) -> bool:
    """Whether a later change of a folder will show in its times.

    Object stores and container images give every folder the same time, or 0. A time that is newer than the clock, or
    just as old, may stay the same through another change.

    Args:
        states: of the data set's folder and all folders in it, two at least.
        began: when they were read, in ns.
    """
    modified = [state[2] for state in states]
    changed = [state[3] for state in states]
    for times in (modified, changed):
        if min(times) <= 0 or min(times) == max(times) or max(times) >= began - TIME_RESOLUTION_NS:
            return False
    return True


def cache_file(root: str) -> Path:
    """Never in the data folder, which may be read-only, and whose modification time it would change."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return Path(base, "masked-frequency-modelling", f"index-{name}.npz")


def read_cache(path: Path, root: str, classes: list[str]) -> Listing | None:
    """What `image_files` returns. None: there is no cache, it is damaged or of other classes, or a folder changed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            folders = file["folders"].tobytes().split(b"\0")
            states = [tuple(state) for state in file["states"].tolist()]
            names_of_class = file["files"].tobytes().split(b"\0\0")
            left_out = LeftOut(**json.loads(file["left_out"].tobytes()))
    except Exception:  # a damaged file may raise anything
        return None
    try:
        states_now = [state_of(os.path.join(os.fsencode(root), folder)) for folder in folders]
    except OSError:
        return None
    cached_classes = [os.fsdecode(names.partition(b"/")[0]) for names in names_of_class]
    if states_now != states or cached_classes != classes:
        return None
    return Listing(names_of_class, left_out, folders=dict(zip(folders, states, strict=True)))


def write_cache(path: Path, root: str, listing: Listing) -> None:
    """Keep a listing for `read_cache`; a place that cannot be written to is a warning."""
    left_out = json.dumps({"counts": listing.left_out.counts, "examples": listing.left_out.examples})
    arrays = {
        "folders": np.frombuffer(b"\0".join(listing.folders), dtype=np.uint8),
        "states": np.array(list(listing.folders.values()), dtype=np.uint64),  # no time is negative
        "files": np.frombuffer(b"\0\0".join(listing.names_of_class), dtype=np.uint8),
        "left_out": np.frombuffer(left_out.encode(), dtype=np.uint8),
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
