"""Which outputs of a classifier the class folders of a set of images stand for: all of them, or a part."""

from dataclasses import dataclass

from data.class_names import spelled
from data.folder import abbreviate, open_root
from utils.errors import UserError


@dataclass(frozen=True)
class PresentClasses:
    """The class folders of a set that has a part of a classifier's classes.

    Args:
        folders: their names, in the order of the outputs.
        outputs: for each, the number of its output.
        how: they were found, for the log.
    """

    folders: list[str]
    outputs: list[int]
    how: str

    def line(self, root: str, outputs: int) -> str:
        """For the log."""
        found = f"{len(self.folders)} of {outputs} classes ({self.how})"
        return f"{root}: {found}; the best of these outputs is the prediction"


def present_classes(root: str, path: str, classes: list[str] | None, outputs: int) -> PresentClasses:
    """Find the output of every class folder in root: by name, or by number where all are numbers and none is a name.

    Args:
        path: of the weights, for messages.
        classes: names of the outputs; None: unknown.
        outputs: their number.
    Raises: UserError for a folder that is none of the classes, or if there is only one folder.
    """
    folders, _ = open_root(root)
    if len(folders) < 2:
        raise UserError(
            f"{root}: has the one class folder {spelled(folders[0])}; a score over one class is always 100 %; "
            "give a set with two or more"
        )
    number_of = {name: number for number, name in enumerate(classes or [])}
    strange = [folder for folder in folders if folder not in number_of]
    if not strange:
        folders.sort(key=number_of.__getitem__)
        return PresentClasses(folders, [number_of[folder] for folder in folders], "by name")
    if len(strange) == len(folders) and all(is_number_below(folder, outputs) for folder in folders):
        folders.sort(key=int)
        return PresentClasses(folders, [int(folder) for folder in folders], "folders are numbers of outputs")
    if classes is None and len(folders) == outputs:
        return PresentClasses(folders, list(range(outputs)), "in sorted order")
    if classes is None:
        raise UserError(
            f"{path}: names no classes, so nothing says which outputs the folders of {root} stand for.\n"
            "Give data.class_names: a file with a name a line, or a folder such as imagenet/train."
        )
    raise UserError(
        f"{root}: {len(strange)} of its {len(folders)} class folders are no classes of {path}: "
        f"{abbreviate(strange)}; remove them, or rename them"
    )


def is_number_below(name: str, limit: int) -> bool:
    return name.isdecimal() and name.isascii() and str(int(name)) == name and int(name) < limit


def sorted_as_text(root: str, outputs: int) -> bool:
    """Whether the class folders are numbers of outputs, and their sorted order is another one than that of numbers."""
    folders, _ = open_root(root)
    return all(is_number_below(folder, outputs) for folder in folders) and folders != sorted(folders, key=int)
