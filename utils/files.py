"""Files that are whole or not there."""

import os
from pathlib import Path


def write_atomically(path: Path, write) -> None:
    """Have `write(file)` fill a temporary file, flush it to the disk and give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # half a file would take the room that the next attempt needs
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk does not tell whose
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the name, too, survives a power cut
    os.close(folder)
