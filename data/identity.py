"""What tells a set of images from another one, at the price of listing it and reading a few files.

The same few files show whether all images are alike, and whether val is a copy of train.
"""

import contextlib
import filecmp
import hashlib
import os

import torch

from data.decode import decode_image
from data.folder import ImageFolder
from utils.errors import UserError, listed

DECODED = 8  # images whose pixels are looked at
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
    hashes = []
    for path in spread(folder, SAMPLED):
        try:
            with open(path, "rb") as file:
                hashes.append(hashlib.blake2b(file.read(SAMPLED_BYTES), digest_size=6).hexdigest())
        except OSError:
            hashes.append(UNREADABLE)
    return hashes


def spread(folder: ImageFolder, most: int) -> list[str]:
    """The paths of at most so many images, spread evenly over the folder."""
    count = min(most, len(folder))
    return [folder.path(number * len(folder) // count) for number in range(count)]


def check_pixels(folder: ImageFolder, *, needs_detail: bool) -> None:
    """Raise UserError if a few images are all the same, or (where detail is needed) all of a single colour.

    If some of them cannot be read, that is left to the training, which says so. If none can, it is an error here.
    """
    images = []
    unreadable = []
    for path in spread(folder, DECODED):
        try:
            images.append(decode_image(path))
        except UserError:
            unreadable.append(os.path.relpath(path, folder.root))
    if not images:
        raise UserError(
            f"{folder.source}: {len(unreadable)} of its images were looked at, and none can be read "
            f"({listed(unreadable)}); run scripts/check_data.py, which says why"
        )
    if needs_detail and all(is_single_color(image) for image in images):
        raise UserError(
            f"{folder.root}: {len(images)} of its images were looked at, and each is of a single colour, without any "
            "frequency to predict; run scripts/check_data.py and mend the data"
        )
    if len(images) > 1 and all(torch.equal(image, images[0]) for image in images):
        raise UserError(
            f"{folder.root}: {len(images)} of its images were looked at, and all have the same pixels; run "
            "scripts/check_data.py and mend the data"
        )


def is_single_color(image: torch.Tensor) -> bool:
    """Whether all pixels of (3, H, W) are alike."""
    return bool((image == image[:, :1, :1]).all())


def shared_images_warning(train: ImageFolder, val: ImageFolder) -> str | None:
    """A warning if images of val are in train under the same name, as where one is a link to the other."""
    paths = spread(val, SAMPLED)
    shared = 0
    for path in paths:
        twin = os.path.join(train.root, os.path.relpath(path, val.root))
        with contextlib.suppress(OSError):
            shared += filecmp.cmp(path, twin, shallow=False)
    if not shared:
        return None
    return (
        f"warning: {shared} of {len(paths)} images of {val.root} that were looked at are in {train.root}, too: a score "
        "on them is none on unseen images"
    )
