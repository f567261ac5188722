"""Which images of a class are used: those that are not held out, and a share of the labels.

A hash of the path inside the data set's folder decides, so other classes, the order of the files and the place of the
folder change nothing. The hold-out takes the smallest hashes, a share of the labels the largest ones.
"""

import hashlib
import heapq
import os


def hash_of(path: str | bytes) -> int:
    """64 bits of a path relative to the data set's folder."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def is_held_out(path: str | bytes, fraction: float) -> bool:
    """By a hash of the relative path alone: other files change nothing, and a larger fraction adds to a smaller."""
    if not fraction:
        return False
    return hash_of(path) < fraction * 2**64


def label_share(paths: list[bytes], fraction: float) -> list[bytes]:
    """The share of the images of one class that keep their labels, in the order of `paths`.

    It is the nearest whole number of images, at least one: those with the largest hashes. So every class has the same
    share, and a smaller share is a part of a larger one. An image that is added can take the place of one image of its
    own class, or be one more; all others stay.

    Args:
        paths: all images of the class, those that are held out among them, relative to the data set's folder. So a
            share stays the same whatever is held out, unless the two meet.
        fraction: in (0, 1].
    """
    if not paths or fraction == 1:
        return paths
    size = max(1, round(fraction * len(paths)))
    chosen = set(heapq.nlargest(size, paths, key=lambda path: (hash_of(path), path)))
    return [path for path in paths if path in chosen]
