"""Which part of a data set pretraining reads, and whether images lie where it does not look."""

import os

from data.class_names import abbreviate
from data.listing import EXTENSIONS, list_root
from utils.errors import UserError

PARTS = ("train", "val", "valid", "validation", "dev", "eval", "test", "testing")
FEW_FOLDERS = 20  # of a folder, which are looked into


def training_root(data_path: str) -> str:
    """Where the images to pretrain on are: in train/ if there is one, else anywhere in the folder.

    Raises: UserError if it has no train/ but a val/, which would be pretrained on.
    """
    train = os.path.join(data_path, "train")
    if os.path.lexists(train) or not os.path.exists(data_path):
        return train
    if os.path.lexists(os.path.join(data_path, "val")):
        raise UserError(f"{data_path}: has val/ and no train/; put the images to train on into {train}/")
    return data_path


def images_beside_train(data_path: str, source: str) -> str | None:
    """A warning if train/ is read, and images lie beside it that are in no other part of a data set, such as val/.

    Args:
        source: what is read.
    """
    train = os.path.join(data_path, "train")
    if source != train:
        return None
    try:
        found = list_root(data_path)
    except OSError:  # a folder that can be passed through, but not listed
        return None
    beside = []
    if found.images:
        beside.append(f"{len(found.images):,} images" if len(found.images) > 1 else "1 image")
    folders = []
    for name in found.classes:
        if name.lower() not in PARTS and has_image(os.path.join(data_path, name)):
            folders.append(name)
    if folders:
        beside.append(f"images in {abbreviate(folders)}")
    if not beside:
        return None
    return (
        f"warning: {data_path}: only {train} is read; beside it lie {' and '.join(beside)}. Move into {train} what is "
        "to be used"
    )


def has_image(folder: str) -> bool:
    """Whether a folder, or one of the first few folders in it, has an image."""
    for number, (_, _, names) in enumerate(os.walk(folder)):
        if any(name.lower().endswith(EXTENSIONS) for name in names):
            return True
        if number + 1 == FEW_FOLDERS:
            break
    return False
