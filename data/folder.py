"""A folder of images, one folder a class, as a compact index."""

import hashlib
import os
import unicodedata

import numpy as np

from data.image_list import read_image_list
from data.index import image_files
from data.listing import BESIDE, EXTENSIONS, LeftOut, list_root
from data.shares import is_held_out, label_share
from utils.errors import UserError, printable


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
    Raises: UserError on a missing root, no class folder, an empty class, classes that look alike, classes other than
        those asked for, a broken link, a pipe named like an image, a folder in two classes, a class that is held out
        whole, nothing held out where that is asked for, or a list that cannot be used (data/image_list.py).
    """

    def __init__(
        self, root: str, classes: list[str] | None = None, holdout_fraction: float = 0.0, held_out: bool = False,
        label_fraction: float = 1.0, train_list: str | None = None,
    ):  # fmt: skip
        self.root = root
        image_list = None
        if train_list is not None:
            image_list = read_image_list(train_list)  # before the listing, which may take a minute
        self.classes, left_out = open_root(root)
        if classes is not None:
            check_same_classes(root, self.classes, classes)
            self.classes = list(classes)

        listing = image_files(root, self.classes)
        raise_first(listing.problems)
        left_out.merge(listing.left_out)
        self.left_out: dict[str, int] = left_out.counts
        self.left_out_examples: dict[str, list[str]] = left_out.examples
        names_of_class = listing.names_of_class
        for class_name, names in zip(self.classes, names_of_class, strict=True):
            if not names:
                kinds = " ".join(EXTENSIONS)
                raise UserError(
                    f"{os.path.join(root, class_name)}: this class has no image ({kinds}); add some or remove it"
                )
        images_found = sum(map(count_names, names_of_class))
        if image_list is not None:
            names_of_class = image_list.choose(root, names_of_class)
        if label_fraction < 1:
            names_of_class = [joined(label_share(apart(names), label_fraction)) for names in names_of_class]
        if holdout_fraction or held_out:
            names_of_class = holdout_split(root, self.classes, names_of_class, holdout_fraction, held_out)

        images_of_class = [count_names(names) for names in names_of_class]
        self.part = ""  # of the images in root, in words; "" if no list or share was given
        if image_list is not None or label_fraction < 1:
            self.part = part_in_words(images_of_class, images_found, label_fraction)
            if image_list is not None:
                self.part += f", data.train_list = {train_list}"
                if image_list.doubled:
                    self.part += f" ({image_list.doubled:,} lines repeat a name)"
        self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), images_of_class)
        names = b"\0".join(names for names in names_of_class if names)
        self._names = np.frombuffer(names, dtype=np.uint8)
        self._ends = np.append(np.flatnonzero(self._names == 0), len(self._names))

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
        return f"used of {self.root}: {self.part}"

    def remarks(self) -> list[str]:
        """What a training should say of the folder before it starts."""
        lines = [line for line in (self.left_out_line(), self.part_line()) if line]
        twin = case_twins(self.classes)
        if twin:
            lines.append(f"warning: {self.root}: the class folders {twin} differ by case alone; are they two classes?")
        return lines


def case_twins(classes: list[str]) -> str:
    """The first two class names that differ by case alone, as "Ant and ant"; "" if there are none."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            return f"{spelled(other)} and {spelled(name)}"
    return ""


def open_root(root: str) -> tuple[list[str], LeftOut]:
    """The names of the class folders in root, sorted, and what lies beside them.

    Raises: UserError if root cannot be read, has no class folder, a broken link, or classes that look alike.
    """
    try:
        found = list_root(root)
    except OSError as error:
        remedy = "data.data_path (--data-path) must hold train/ and val/ with one folder a class in each"
        raise UserError(f"{root}: no such image folder ({error.strerror}); {remedy}") from error
    raise_first(found.problems)
    if not found.classes:
        held = "no class folders"
        if BESIDE in found.left_out.counts:
            held += f", but {found.left_out.counts[BESIDE]} images beside where they should be"
        raise UserError(f"{root}: has {held}; images belong into {os.path.join(root, '<class>')}/")
    raise_first(look_alikes(root, found.classes))
    return found.classes, found.left_out


def raise_first(problems: list[str]) -> None:
    """Raise UserError with the first of some problems, if there are any, and how many more there are."""
    if not problems:
        return
    problem = min(problems)
    if len(problems) > 1:
        problem += f" (and {len(problems) - 1} more problems, which scripts/check_data.py lists)"
    raise UserError(problem)


def look_alikes(root: str, classes: list[str]) -> list[str]:
    """A line for each class name that looks like another one, with the code points that differ."""
    lines = []
    seen: dict[str, str] = {}
    for name in classes:
        look = appearance(name)
        if look in seen:
            lines.append(
                f"{root}: the class folders {spelled(seen[look])} and {spelled(name)} look alike but are two names; "
                "merge them, or rename one"
            )
        seen[look] = name
    return lines


def appearance(name: str) -> str:
    """What names have in common that look alike: without invisible characters, and every accent in one spelling."""
    composed = unicodedata.normalize("NFC", name)
    visible = [character for character in composed if unicodedata.category(character) not in ("Cf", "Cc")]
    return "".join(visible).strip()


def spelled(name: str) -> str:
    """A name with the code points of what is not plain ASCII, so that names that look alike can be told apart."""
    special = [character for character in name if not "!" <= character <= "~"]
    if not special or (set(special) == {" "} and name == name.strip()):
        return name
    code_points = " ".join(f"U+{ord(character):04X}" for character in special)
    return f"{printable(name)} [{code_points}]"


def check_labels(folder: ImageFolder) -> None:
    """Raise UserError if nothing can be learned from the class numbers.

    That is one class, a class without images (of a list), or no class with two images (unless a part is asked for).
    """
    if len(folder.classes) < 2:
        raise UserError(
            f"{folder.root}: has the one class {spelled(folder.classes[0])}, and a classifier needs two; "
            "add class folders (only pretraining can do without)"
        )
    images_of_class = np.bincount(folder.labels, minlength=len(folder.classes))
    without = [folder.classes[number] for number in np.flatnonzero(images_of_class == 0)]
    if without:
        raise UserError(
            f"{folder.root}: {len(without)} of its {len(folder.classes)} classes have no image in the list "
            f"({abbreviate(without)}); add one of each to data.train_list"
        )
    if images_of_class.max() < 2 and not folder.part:
        raise UserError(
            f"{folder.root}: none of its {len(folder.classes)} classes has two images; is it sorted by class, with one "
            "folder for each class and not for each image?"
        )


def check_same_classes(root: str, folders: list[str], classes: list[str]) -> None:
    """Raise UserError unless the class folders in root are the classes of the training set or checkpoint."""
    missing = sorted(set(classes) - set(folders))
    unexpected = sorted(set(folders) - set(classes))
    if missing or unexpected:
        raise UserError(
            f"{root}: its class folders are not those of the training set or checkpoint: "
            f"missing {abbreviate(missing)}; unexpected {abbreviate(unexpected)}; make the folders agree"
        )


def part_in_words(images_of_class: list[int], images_found: int, label_fraction: float) -> str:
    """Such as "94 of 9,469 images, 9 to 10 a class (data.label_fraction = 0.01)"."""
    fewest, most = min(images_of_class), max(images_of_class)
    a_class = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    words = f"{sum(images_of_class):,} of {images_found:,} images, {a_class} a class"
    if label_fraction < 1:
        words += f" (data.label_fraction = {label_fraction:g})"
    return words


def holdout_split(
    root: str, classes: list[str], names_of_class: list[bytes], fraction: float, held_out: bool
) -> list[bytes]:
    """The images of each class that are held out, or the others, as `image_files` gives them: joined by zero bytes.

    Raises: UserError if a class is held out whole, or nothing is held out where that is asked for.
    """
    chosen = []
    for class_name, names in zip(classes, names_of_class, strict=True):
        names_chosen = [name for name in apart(names) if is_held_out(name, fraction) == held_out]
        if names and not names_chosen and not held_out:
            raise UserError(
                f"data.holdout_fraction = {fraction}: holds out every image of {os.path.join(root, class_name)} "
                f"({count_names(names)}): lower it, or add images"
            )
        chosen.append(joined(names_chosen))
    if not any(chosen):
        raise UserError(f"data.holdout_fraction = {fraction}: holds out no image of {root}; raise it")
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


def abbreviate(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    if not names:
        return "none"
    listed = ", ".join(spelled(name) for name in names[:3])
    if len(names) > 3:
        return f"{listed} and {len(names) - 3} more"
    return listed
