"""Listing a folder of ImageNet's size, and what loader workers grow by when they ask for its entries."""

import argparse
import os
import re
import time
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder as TorchvisionFolder

from data.folder import ImageFolder
from scripts.benchmark.ours import CachedListing, OurListing
from scripts.benchmark.side_by_side import Conditions, Side, compare
from scripts.benchmark.theirs import TorchvisionListing

WORKERS = 2


def measure_startup(options: argparse.Namespace, folder: Path) -> dict:
    """Listing anew and from the cache beside torchvision's listing, and the memory of loader workers.

    It notes the folder as options.data_path.
    """
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the sides' processes inherit it
    conditions = Conditions(pairs=options.pairs, threads=options.threads, device=options.device)
    root = options.data_path = str(folder / "tree")
    make_empty_images(Path(root), options.files, options.classes)
    arguments = {"data_path": root, "files": options.files}
    ours = Side("our_listing", OurListing, arguments, keeps_freed_memory=True)
    cached = Side("cached_listing", CachedListing, arguments, keeps_freed_memory=True)
    theirs = Side("torchvision_listing", TorchvisionListing, arguments, keeps_freed_memory=False)
    listing = compare(ours, theirs, conditions)
    our_folder, their_folder = ImageFolder(root), TorchvisionFolder(root)  # the first fills the cache
    from_cache = compare(cached, theirs, conditions)
    for figures in (listing, from_cache):
        for side in ("ours", "theirs"):
            milliseconds = figures[f"{side}_ms"]["median"]
            figures[f"{side}_seconds_in_all"] = round(milliseconds * options.files / 1000, 3)
    return {
        "listing": listing,
        "from_cache": from_cache,
        "worker_growth_mb_ours": worker_growth(our_folder),
        "worker_growth_mb_theirs": worker_growth(their_folder),
    }


def make_empty_images(root: Path, files: int, classes: int) -> None:
    """Write root/<class>/<image>.JPEG, empty, evenly over the classes."""
    long_ago = time.time() - 3600  # a folder that changed just now is not cached
    for number in range(classes):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        for image in range(number, files, classes):
            (folder / f"{folder.name}_{image}.JPEG").touch()
        os.utime(folder, (long_ago, long_ago))


def worker_growth(folder: ImageFolder | TorchvisionFolder) -> list[float]:
    """MB that each of two loader workers gains by asking for every entry of a folder."""
    return list(DataLoader(Growth(folder), batch_size=None, num_workers=WORKERS, multiprocessing_context="fork"))


class Growth(Dataset):
    """Each item is the MB of private memory that its process gains by asking for every entry of a folder."""

    def __init__(self, folder: ImageFolder | TorchvisionFolder):
        self.folder = folder

    def __len__(self) -> int:
        return WORKERS  # an item for each worker

    def __getitem__(self, _worker: int) -> float:
        before = private_mb()
        for entry in range(len(self.folder)):
            if isinstance(self.folder, ImageFolder):
                self.folder.path(entry)
            else:
                self.folder.samples[entry]
        return round(private_mb() - before, 1)


def private_mb() -> float:
    """MB of this process that no other shares: what the kernel had to copy for it, or gave it."""
    listing = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    kilobytes = re.findall(r"Private_\w+: +(\d+) kB", listing)
    return sum(map(int, kilobytes)) / 1000
