"""A folder of images, one folder a class, as a compact index."""

import hashlib
import os

import numpy as np

from data.class_names import abbreviate, check_same_classes, look_alikes, name_warnings, spelled
from data.image_list import ImageList, read_image_list
from data.index import image_files
from data.listing import BESIDE, EXTENSIONS, LeftOut, Root, list_root
from data.shares import is_held_out, label_share
from utils.errors import UserError


class ImageFolder:
    """Paths and class numbers of `root/<class>/**/<image>`, sorted; `left_out` counts by kind what else lies there.

    Links are followed, hidden files and folders left out; data/listing.py says more. Two numpy buffers hold the paths:
    a million Python objects would be copied into every loader worker as soon as their reference counts are touched.

    Args:
        root: folder with one folder a class.
        classes: the class order to use (of the training set, or of a checkpoint); default: the folders', sorted.
        holdout_fraction: share of the images to set apart, by a hash of the path inside root.
        held_out: take the images set apart instead of the others.
        label_fraction: share of each class to use; data/shares.py says which images that are.
        train_list: file that names the images to use; a share is then one of these.
        labelled: False: any folder will do. The images that lie in root itself come first, then those of each folder
            in it, which may be empty. A list may name files anywhere. If all images lie in folders, order and classes
            are as with labels; else there are no classes, and all class numbers are 0.
    Raises: UserError on a missing root, a broken link, a pipe named like an image, a folder in two classes, nothing
        held out where that is asked for, or a list that cannot be used (data/image_list.py); without images; and if it
        is labelled, on no class folder, an empty class, classes that look alike, classes other than those asked for, or
        a class that is held out whole.
    """

    def __init__(
        self, root: str, classes: list[str] | None = None, holdout_fraction: float = 0.0, held_out: bool = False,
        label_fraction: float = 1.0, train_list: str | None = None, labelled: bool = True,
    ):  # fmt: skip
        self.root = root
        self.source = root  # where the images are: in root, or wherever a list of files elsewhere says
        self.left_out: dict[str, int] = {}
        self.left_out_examples: dict[str, list[str]] = {}
        self.classes: list[str] = []
        image_list = None
        if train_list is not None:
            image_list = read_image_list(train_list, root)  # before the listing, which may take a minute

        if image_list is not None and not labelled and image_list.is_of_files_elsewhere():
            self.source = train_list
            names_of_class = [image_list.files()]
            images_found = count_names(names_of_class[0])
        else:
            if labelled:
                names_of_class = self.list_labelled(classes)
            else:
                names_of_class = self.list_all()
            images_found = sum(count_names(names) for names in names_of_class)
            if image_list is not None:
                names_of_class = image_list.choose(names_of_class)
        self.images_found = images_found  # of which a list, a share or a hold-out may leave fewer
        if label_fraction < 1:
            names_of_class = [joined(label_share(apart(names), label_fraction)) for names in names_of_class]
        if holdout_fraction or held_out:
            names_of_class = holdout_split(root, names_of_class, holdout_fraction, held_out, labelled)
        if not self.classes:
            names_of_class = [joined([names for names in names_of_class if names])]

        images_of_class = [count_names(names) for names in names_of_class]
        self.part = ""  # of the images in `source`, in words; "" if no list or share was given
        if image_list is not None or label_fraction < 1:
            self.part = part_in_words(images_of_class, images_found, label_fraction, image_list)
        self.labels = np.repeat(np.arange(len(names_of_class), dtype=np.int32), images_of_class)
        self._names = np.frombuffer(joined([names for names in names_of_class if names]), dtype=np.uint8)
        self._ends = np.append(np.flatnonzero(self._names == 0), len(self._names))

    def list_labelled(self, classes: list[str] | None) -> list[bytes]:
        """The images of each class, joined by zero bytes. Sets classes and what is left out."""
        self.classes, left_out = open_root(self.root)
        if classes is not None:
            check_same_classes(self.root, self.classes, classes)
            self.classes = list(classes)
        listing = image_files(self.root, self.classes)
        raise_first(listing.problems)
        self.note_left_out(left_out, listing.left_out)
        for class_name, names in zip(self.classes, listing.names_of_class, strict=True):
            if not names:
                kinds = " ".join(EXTENSIONS)
                raise UserError(
                    f"{os.path.join(self.root, class_name)}: this class has no image ({kinds}); add some or remove it"
                )
        return listing.names_of_class

    def list_all(self) -> list[bytes]:
        """The images in root itself, if it has some, and of each folder in it. Sets what is left out, and classes."""
        found = read_root(self.root)
        raise_first(found.problems)
        listing = image_files(self.root, found.classes)
        raise_first(listing.problems)
        names_of_class = listing.names_of_class
        if found.images:
            found.left_out.remove(BESIDE)
            names_of_class = [joined(sorted(found.images)), *names_of_class]
        else:
            self.classes = found.classes
        self.note_left_out(found.left_out, listing.left_out)
        if not any(names_of_class):
            kinds = " ".join(EXTENSIONS)
            raise UserError(f"{self.root}: neither it nor a folder in it has an image ({kinds}); add some")
        return names_of_class

    def note_left_out(self, in_root: LeftOut, below: LeftOut) -> None:
        in_root.merge(below)
        self.left_out = in_root.counts
        self.left_out_examples = in_root.examples

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

    def left_out_line(self) -> str:
        """What of the folder is not used, by kind with an example, on one line; "" if all of it is used."""
        if not self.left_out:
            return ""
        kinds = []
        for kind, count in sorted(self.left_out.items()):
            kinds.append(f"{count} {kind} ({spelled(self.left_out_examples[kind][0])})")
        return f"left out of {self.root}: {', '.join(kinds)}"

    def part_line(self) -> str:
        """How many images a list or a share of labels leaves, on one line; "" if there is neither."""
        if not self.part:
            return ""
        return f"used of {self.source}: {self.part}"

    def remarks(self) -> list[str]:
        """What a training should say of the folder before it starts."""
        lines = [line for line in (self.left_out_line(), self.part_line()) if line]
        for sentence in name_warnings(self.root, self.classes):
            lines.append(f"warning: {sentence}")
        return lines


def open_root(root: str) -> tuple[list[str], LeftOut]:
    """The names of the class folders in root, sorted, and what lies beside them.

    Raises: UserError if root cannot be read, has no class folder, a broken link, or classes that look alike.
    """
    found = read_root(root)
    raise_first(found.problems)
    if not found.classes:
        held = "no class folders"
        if found.images:
            held += f", but {len(found.images)} images beside where they should be"
        remedy = f"images belong into {os.path.join(root, '<class>')}/"
        if any(name.startswith(b"ILSVRC2012_val_") for name in found.images):
            remedy = "scripts/prepare_imagenet.py sorts ImageNet's val into class folders"
        raise UserError(f"{root}: has {held}; {remedy}")
    raise_first(look_alikes(root, found.classes))
    return found.classes, found.left_out


def read_root(root: str) -> Root:
    """What a folder holds itself. Raises: UserError if it cannot be read."""
    try:
        return list_root(root)
    except OSError as error:
        remedy = "data.data_path (--data-path) must hold train/<class>/ and val/<class>/; scripts/split.py makes both"
        raise UserError(f"{root}: no such image folder ({error.strerror}); {remedy}") from error


def raise_first(problems: list[str]) -> None:
    """Raise UserError with the first of some problems, if there are any, and how many more there are."""
    if not problems:
        return
    problem = min(problems)
    if len(problems) > 1:
        problem += f" (and {len(problems) - 1} more problems, which scripts/check_data.py lists)"
    raise UserError(problem)


def check_labels(folder: ImageFolder) -> None:
    """Raise UserError if nothing can be learned from the class numbers.

    That is one class, a class without images (of a list), or no class with two images (unless a part is asked for).
    """
    if not folder.classes:
        raise UserError(f"{folder.root}: not all of its images lie in class folders, so they have no labels")
    if len(folder.classes) < 2:
        raise UserError(
            f"{folder.root}: has the one class {spelled(folder.classes[0])}, and a classifier needs two; "
            "add class folders (only pretraining can do without)"
        )
    images_of_class = np.bincount(folder.labels, minlength=len(folder.classes))
    without = [folder.classes[number] for number in np.flatnonzero(images_of_class == 0)]
    if without:
        place = " in the list" if folder.part else ""
        raise UserError(
            f"{folder.root}: {len(without)} of its {len(folder.classes)} classes have no image{place} "
            f"({abbreviate(without)}); add one of each"
        )
    if images_of_class.max() < 2 and not folder.part:
        raise UserError(
            f"{folder.root}: none of its {len(folder.classes)} classes has two images; is it sorted by class, with one "
            "folder for each class and not for each image?"
        )


def part_in_words(
    images_of_class: list[int], images_found: int, label_fraction: float, image_list: ImageList | None
) -> str:
    """Such as "94 of 9,469 images, 9 to 10 a class (data.label_fraction = 0.01)"."""
    words = f"{sum(images_of_class):,} of {images_found:,} images"
    fewest, most = min(images_of_class), max(images_of_class)
    if len(images_of_class) > 1:
        a_class = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        words += f", {a_class} a class"
    if label_fraction < 1:
        words += f" (data.label_fraction = {label_fraction:g})"
    if image_list is not None:
        words += f", data.train_list = {image_list.path}"
        if image_list.doubled:
            words += f" ({image_list.doubled:,} lines repeat a name)"
    return words


def holdout_split(
    root: str, names_of_class: list[bytes], fraction: float, held_out: bool, labelled: bool
) -> list[bytes]:
    """The images of each class that are held out, or the others, as `image_files` gives them: joined by zero bytes.

    Args:
        labelled: every class must keep an image.
    Raises: UserError if a class is held out whole, or nothing is held out where that is asked for, or all.
    """
    chosen = []
    for names in names_of_class:
        names_chosen = [name for name in apart(names) if is_held_out(name, fraction) == held_out]
        if labelled and names and not names_chosen and not held_out:
            class_name = os.fsdecode(names.partition(b"/")[0])
            raise UserError(
                f"data.holdout_fraction = {fraction}: holds out every image of {os.path.join(root, class_name)} "
                f"({count_names(names)}): lower it, or add images"
            )
        chosen.append(joined(names_chosen))
    if not any(chosen):
        which, remedy = ("no image", "raise it") if held_out else ("every image", "lower it")
        raise UserError(f"data.holdout_fraction = {fraction}: holds out {which} of {root}; {remedy}")
    return chosen


def apart(names: bytes) -> list[bytes]:
    """The names that are joined by zero bytes."""
    return names.split(b"\0") if names else []


def joined(names: list[bytes]) -> bytes:
    return b"\0".join(names)


def count_names(names: bytes) -> int:
    """How many names are joined by zero bytes."""
    if not names:
        return 0
    return names.count(b"\0") + 1
