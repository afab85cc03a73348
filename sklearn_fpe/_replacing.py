"""Files that are replaced as a whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

NEW_MODE = 0o666
"""Mode of a new file, of which the process's umask takes away its bits."""


def sync(file: BinaryIO) -> None:
    """Write a file through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: str | os.PathLike) -> None:
    """Write the names of the files of a folder to the disk, where a system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replaced(
    path: str | os.PathLike, part: str | os.PathLike, mode: int = NEW_MODE
) -> Iterator[BinaryIO]:
    """Open a new file `part` that takes the place of `path` once it is on the disk.

    If that fails, it is removed. It must be in the same folder.
    """
    file = open(part, "w+b", opener=partial(os.open, mode=mode))  # noqa: SIM115
    try:
        with file:
            yield file
            sync(file)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    sync_folder(os.path.dirname(path))
