"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # so that the new name survives a power cut, too
    os.close(folder)
