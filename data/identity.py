"""What tells a set of images from another one, at the price of listing it and reading a few files."""

import hashlib

from data.folder import ImageFolder

SAMPLED = 32  # files whose bytes are looked at
SAMPLED_BYTES = 2**20  # of each at most
UNREADABLE = "unreadable"


def identity(folder: ImageFolder) -> dict:
    """The images' number, classes and names, and the bytes of a few of them: plain data, for a checkpoint.

    The fingerprint covers every name and no pixel. A copy at another resolution has the same names, so the files of
    `sampled_files` are read, too.
    """
    return {
        "images": len(folder),
        "classes": list(folder.classes),
        "fingerprint": folder.fingerprint(),
        "sampled_files": sampled_files(folder),
    }


def sampled_files(folder: ImageFolder) -> list[str]:
    """A hash of each of up to 32 files, spread evenly over the folder; a file that cannot be read is said to be so."""
    count = min(SAMPLED, len(folder))
    hashes = []
    for number in range(count):
        try:
            with open(folder.path(number * len(folder) // count), "rb") as file:
                hashes.append(hashlib.blake2b(file.read(SAMPLED_BYTES), digest_size=6).hexdigest())
        except OSError:
            hashes.append(UNREADABLE)
    return hashes
