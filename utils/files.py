"""Files that are whole or not there, on file systems as they are: some cannot flush a folder, some lack inodes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

# What file systems answer that cannot flush a folder, or let nobody open one (SMB, exFAT, several FUSE mounts).
CANNOT_FLUSH_FOLDERS = frozenset(
    (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)
)


# What file systems answer that have no symbolic links.
NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))


def make_link(link: Path, target: str, remedy: str) -> None:
    """Make a symbolic link to `target`.

    Args:
        remedy: what to do where the file system has no such links.
    Raises: UserError there, with the remedy; OSError if something else is wrong.
    """
    try:
        link.symlink_to(target)
    except OSError as error:
        if error.errno in NO_LINKS:
            raise UserError(f"{link}: no symbolic link can be made there ({error.strerror}); {remedy}") from error
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write(file)` fill a temporary file, flush that to the disk, and give it its name.

    Raises: OSError naming the path, on a full disk for example. What was at `path` before is then still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # half a file would take the room that the next attempt needs
        if isinstance(error, OSError) and error.errno and not error.filename:  # as on a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a new one survives a power cut, too.

    Where the file system cannot do that, nothing happens: each file in it is whole all the same.
    Raises: OSError naming the folder if the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH_FOLDERS:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def free_space(folder: str | Path) -> str:
    """What is free on a folder's disk, in words: bytes, and inodes where none is left."""
    try:
        free = shutil.disk_usage(folder).free
        status = os.statvfs(folder)
    except OSError:
        return "how much is free is unknown"
    # A file system without a fixed number of inodes, such as btrfs, says that it has 0 of them.
    if status.f_files > 0 and status.f_favail == 0:
        return f"{free:,} bytes free, but no inodes: all {status.f_files:,} are in use; remove some files"
    return f"{free:,} free"
