"""A text file that names the images to use, one a line, as SimCLR's lists of 1 % and 10 % of ImageNet."""

import os
from dataclasses import dataclass

from data.listing import ENDINGS, FILE, kind_of
from utils.errors import UserError, printable

SHOWN = 3  # names in an error message


@dataclass
class ImageList:
    """The names of a list, each once.

    A name with a slash is a path inside the data set's folder, as `ant/1.jpg`. A name without one is that of a file in
    whichever folder has it, as `n04235860_14959.JPEG`.
    """

    path: str
    root: str  # folder of the data set
    names: set[bytes]
    doubled: int  # lines that repeat a name

    def choose(self, names_of_class: list[bytes]) -> list[bytes]:
        """Those images of each class that the list names. Both as `data.index.image_files` gives them.

        Raises: UserError if the list has a name that no image has, or that several have, or names an image twice.
        """
        chosen = []
        found: set[bytes] = set()
        for names in names_of_class:
            chosen_here = []
            for path in names.split(b"\0"):
                file_name = path[path.rfind(b"/") + 1 :]
                for name in {path, file_name} & self.names:
                    if name in found:
                        raise UserError(
                            f"data.train_list = {self.path}: {shown([name])} is the name of several images in "
                            f"{self.root}; write it with its folder, as ant/1.jpg"
                        )
                    found.add(name)
                    chosen_here.append(path)
            if len(set(chosen_here)) < len(chosen_here):
                raise UserError(
                    f"data.train_list = {self.path}: names an image with and without its folder; keep one of the two"
                )
            chosen.append(b"\0".join(chosen_here))
        self.check_found(found)
        return chosen

    def is_of_files_elsewhere(self) -> bool:
        """Whether a file of the list lies outside of the data set's folder; then all names are paths."""
        return any(name.startswith((b"/", b"../")) for name in self.names)

    def files(self) -> bytes:
        """The paths of the list, sorted, joined by zero bytes. Raises: UserError if some are no image files.

        What counts is the ending of the name. Each folder is read once, which takes less time than to ask for each
        file.
        """
        names_in: dict[bytes, set[bytes]] = {}
        for name in self.names:
            folder, _, file_name = os.path.join(os.fsencode(self.root), name).rpartition(b"/")
            names_in.setdefault(folder, set()).add(file_name)
        missing_from = {}
        for folder, names in names_in.items():
            missing_from[folder] = names - images_among(names, folder or b"/")
        found = set()
        for name in self.names:
            folder, _, file_name = os.path.join(os.fsencode(self.root), name).rpartition(b"/")
            if file_name not in missing_from[folder]:
                found.add(name)
        self.check_found(found)
        return b"\0".join(sorted(found))

    def check_found(self, found: set[bytes]) -> None:
        missing = sorted(self.names - found)
        if missing:
            raise UserError(
                f"data.train_list = {self.path}: {len(missing):,} of its {len(self.names):,} names are no image in "
                f"{self.root}: {shown(missing[:SHOWN])}; is it the list of another data set?"
            )


def read_image_list(path: str, root: str) -> ImageList:
    """Read a list in UTF-8. Blank lines, blanks around a name, and line ends of Windows do not count.

    Args:
        root: folder of the data set.
    Raises: UserError if the file cannot be read, is not text, or names nothing.
    """
    given = f"data.train_list = {path}"
    remedy = "give a text file with the name of one image a line"
    try:
        with open(path, "rb") as file:
            content = file.read().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{given}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{given}: is not text in UTF-8 (byte {error.start}); {remedy}") from error
    above = os.path.abspath(root) + "/"
    lines = 0
    names = set()
    for line in content.split("\n"):
        name = line.strip()
        if not name:
            continue
        lines += 1
        if "/" in name:
            name = os.path.normpath(name).removeprefix(above)  # ./ant//1.jpg is ant/1.jpg
        names.add(os.fsencode(name))
    if not names:
        raise UserError(f"{given}: names no image; {remedy}")
    return ImageList(path, root, names, doubled=lines - len(names))


def images_among(names: set[bytes], folder: bytes) -> set[bytes]:
    """Those of the names that are files in a folder and end as an image does; none of a folder that cannot be read."""
    images = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in names and entry.name.lower().endswith(ENDINGS) and kind_of(entry) == FILE:
                    images.add(entry.name)
    except OSError:
        return set()
    return images


def shown(names: list[bytes]) -> str:
    """Some names for a message."""
    return ", ".join(printable(os.fsdecode(name)) for name in names)
