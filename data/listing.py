"""Which images the class folders of a data set hold, and what else lies there.

The kernel gives the type of an entry with its name, so no file is opened or asked for its state: a folder of ImageNet's
size has 1.28 million.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from utils.console import progress_bar

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
ENDINGS = tuple(os.fsencode(extension) for extension in EXTENSIONS)
DOT = ord(".")  # begins a hidden name
EXAMPLES = 20  # of what was left out, by kind

HIDDEN = "hidden"
OTHER_ENDING = "other endings"
IMAGE_FOLDER = "folders named like images"
REACHED_BEFORE = "links to folders that hold or are in the list"
BESIDE = "images beside the class folders"


@dataclass
class LeftOut:
    """What a data set's folder holds besides the images in the list. Each kind is counted, with the first examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)  # paths relative to the data set's folder

    def add(self, kind: str, path: bytes) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(os.fsdecode(path))

    def remove(self, kind: str) -> None:
        del self.counts[kind], self.examples[kind]

    def merge(self, other: "LeftOut") -> None:
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.examples[kind] = (self.examples.get(kind, []) + other.examples[kind])[:EXAMPLES]


# Device, inode, modification time and change time in ns, and size of a folder. The change time is the kernel's own:
# programs that set the modification time, as cp -p and rsync -t do, cannot set it.
FolderState = tuple[int, int, int, int, int]


def state_of(path: bytes) -> FolderState:
    """Raises: OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


@dataclass
class Root:
    """What the folder of a data set holds itself."""

    classes: list[str] = field(default_factory=list)  # names of its folders, sorted
    images: list[bytes] = field(default_factory=list)  # names of those beside the folders, which are left out too
    left_out: LeftOut = field(default_factory=LeftOut)
    problems: list[str] = field(default_factory=list)


@dataclass
class Listing:
    """What the class folders hold."""

    names_of_class: list[bytes] = field(default_factory=list)  # image paths relative to root, sorted, joined by zeros
    left_out: LeftOut = field(default_factory=LeftOut)
    problems: list[str] = field(default_factory=list)  # what must be mended before the data set can be used
    # Every folder that was read, relative to root, and its state before that.
    folders: dict[bytes, FolderState] = field(default_factory=dict)


def list_root(root: str) -> Root:
    """The class folders, which may be links, and what lies beside them. Raises: OSError if root cannot be read."""
    found = Root()
    with os.scandir(os.fsencode(root)) as entries:
        for entry in entries:
            kind = kind_of(entry)
            if entry.name.startswith(b"."):
                found.left_out.add(HIDDEN, entry.name)
            elif kind == FOLDER:
                found.classes.append(os.fsdecode(entry.name))
            elif kind == BROKEN:
                found.problems.append(f"{os.fsdecode(entry.path)}: {broken_link(entry)}")
            elif not entry.name.lower().endswith(ENDINGS):
                found.left_out.add(OTHER_ENDING, entry.name)
            elif kind == SPECIAL:
                found.problems.append(f"{os.fsdecode(entry.path)}: {NO_FILE}")
            else:
                found.left_out.add(BESIDE, entry.name)
                found.images.append(entry.name)
    found.classes.sort()
    return found


def list_images(root: str, classes: Iterable[str]) -> Listing:
    """The images `<class>/**/<image>` of each class.

    Links are followed. Hidden files and folders are left out at any depth, and so is a folder named like an image,
    which holds thumbnails. Each folder is read once, by device and inode: a link to one that was read already, or to
    one above the data set, would list images again, under other labels too. Problems are broken links, pipes,
    sockets and devices named like images, folders that cannot be read, and a folder that belongs to two classes.
    """
    walk = Walk(os.fsencode(root))
    for name in progress_bar(classes, desc=f"listing {root}", unit="class"):
        walk.list_class(os.fsencode(name))
    return walk.listing


class Walk:
    """One pass through the class folders."""

    def __init__(self, root: bytes):
        self.root = root
        self.listing = Listing()
        self.class_of_folder: dict[object, bytes] = {}  # identity -> class, "" for the root and the folders above it
        self.listing.folders[b"."] = state_of(root)
        above = os.path.realpath(root)
        while True:
            self.class_of_folder[identity(above, state_of(above))] = b""
            if os.path.dirname(above) == above:
                break
            above = os.path.dirname(above)

    def list_class(self, class_name: bytes) -> None:
        images: list[bytes] = []
        folders = [class_name]
        links: list[bytes] = []
        while folders or links:
            # Links come last and in order, so that the path by which a folder is listed does not depend on the disk.
            if folders:
                folder = folders.pop()
            else:
                links.sort(reverse=True)
                folder = links.pop()
            if self.is_new(folder, class_name):
                self.read_folder(folder, images, folders, links)
        self.listing.names_of_class.append(b"\0".join(sorted(images)))

    def is_new(self, folder: bytes, class_name: bytes) -> bool:
        """Whether no class has the folder yet; notes its state."""
        path = os.path.join(self.root, folder)
        try:
            state = state_of(path)
        except OSError as error:
            self.problem(folder, f"cannot be read ({error.strerror}); restore or remove it")
            return False
        before = self.class_of_folder.get(identity(path, state))
        if before is None:
            self.class_of_folder[identity(path, state)] = class_name
            self.listing.folders[folder] = state
            return True
        if folder == class_name or before not in (b"", class_name):
            place = "the data set's folder or one above it"
            if before:
                place = f"a folder of class {os.fsdecode(before)}"
            self.problem(folder, f"is {place} too, and an image has one class; remove one of the two")
        else:
            self.listing.left_out.add(REACHED_BEFORE, folder)
        return False

    def read_folder(self, folder: bytes, images: list[bytes], folders: list[bytes], links: list[bytes]) -> None:
        """Add what a folder holds: to images, folders and links to folders, to what is left out, or to the problems."""
        others = []
        prefix = folder + b"/"
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_file(follow_symlinks=False) and name[0] != DOT and name.lower().endswith(ENDINGS):
                        images.append(prefix + name)
                    else:
                        others.append(entry)
        except OSError as error:
            self.problem(folder, f"cannot be read ({error.strerror}); restore or remove it")
        for entry in others:
            path = prefix + entry.name
            is_image_name = entry.name.lower().endswith(ENDINGS)
            kind = kind_of(entry)
            if entry.name.startswith(b"."):
                self.listing.left_out.add(HIDDEN, path)
            elif kind == BROKEN:
                self.problem(path, broken_link(entry))
            elif kind == FOLDER and is_image_name:
                self.listing.left_out.add(IMAGE_FOLDER, path)
            elif kind == FOLDER and entry.is_symlink():
                links.append(path)
            elif kind == FOLDER:
                folders.append(path)
            elif not is_image_name:
                self.listing.left_out.add(OTHER_ENDING, path)
            elif kind == FILE:
                images.append(path)
            else:
                self.problem(path, NO_FILE)

    def problem(self, path: bytes, text: str) -> None:
        self.listing.problems.append(f"{os.fsdecode(os.path.join(self.root, path))}: {text}")


NO_FILE = "named like an image, but a pipe, socket or device; remove it"
FOLDER, FILE, BROKEN, SPECIAL = "folder", "file", "a link to nothing or in a circle", "a pipe, socket or device"


def kind_of(entry: os.DirEntry) -> str:
    """What an entry is, or leads to if it is a link: FOLDER, FILE, BROKEN or SPECIAL. It is not opened."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
        os.stat(entry.path)
    except OSError:
        return BROKEN
    return SPECIAL


def broken_link(entry: os.DirEntry) -> str:
    """What is wrong with an entry of kind BROKEN, and the remedy."""
    if not entry.is_symlink():
        return "cannot be reached; restore or remove it"
    target = os.fsdecode(os.readlink(entry.path))
    return f"a link to {target}, which cannot be reached; restore that or remove the link"


def identity(path: bytes, state: FolderState) -> object:
    """What two paths have in common that lead to the same folder."""
    device, inode = state[:2]
    if inode == 0:  # some network file systems have none
        return os.path.realpath(path)
    return device, inode
