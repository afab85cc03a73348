"""Rows in ``.npy`` files."""

import mmap
import os
from dataclasses import dataclass

import numpy as np

from sklearn_fpe.datasets._files import ShardError, check_size, naming

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""Versions of the format. Version 3 differs for named fields only."""


@dataclass(frozen=True)
class NpyFile:
    """A matrix in a ``.npy`` file, as its header describes it.

    `stored` is the type of the numbers with their byte order, `offset` the number of
    bytes before them; `column_major` matrices have the values of a column side by side.
    """

    path: str
    n_rows: int
    n_columns: int
    stored: np.dtype
    offset: int
    column_major: bool

    run_starts = None  # rows may be read in any order
    most_open = 64  # files that are mapped at a time

    @property
    def dtype(self):
        """Type of the numbers, in the byte order of the machine."""
        return self.stored.newbyteorder("=")

    @property
    def n_bytes(self):
        """Size of the file."""
        return self.offset + self.n_rows * self.n_columns * self.stored.itemsize

    def open(self):
        """Return a reader of the file."""
        return NpyReader(self)


class NpyReader:
    """Reads rows of a :class:`NpyFile` from a memory map."""

    def __init__(self, file):
        self._file = file
        with naming(file.path), open(file.path, "rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            check_size(file, self._map.size())
            self._rows = np.ndarray(
                (file.n_rows, file.n_columns),
                file.stored,
                self._map,
                file.offset,
                order="F" if file.column_major else "C",
            )

    def read_into(self, out, rows):
        """Copy the rows of a slice, or of an increasing int array, into an array."""
        # A page that is gone would be a crash.
        check_size(self._file, self._map.size())
        out[...] = self._rows[rows]


def inspect_npy(path):
    """Read the header of a ``.npy`` file and check it against the size of the file."""
    with naming(path), open(path, "rb") as opened:
        version = np.lib.format.read_magic(opened)
        if version not in HEADERS:
            raise ShardError(
                f"{path!r} must have format version 1 or 2, has {version}."
            )
        shape, column_major, dtype = HEADERS[version](opened)
        offset, n_bytes = opened.tell(), os.fstat(opened.fileno()).st_size
    if dtype.hasobject:
        raise ShardError(
            f"{path!r} holds Python objects as a pickle, which could run code: it is "
            f"refused. Store an array of numbers."
        )
    if len(shape) != 2 or shape[1] == 0:
        raise ShardError(
            f"{path!r} must hold an array of shape (n_rows, n_columns), got shape "
            f"{shape}."
        )
    if dtype.kind not in "biuf":
        raise ShardError(f"{path!r} must hold real numbers, got dtype {dtype}.")
    file = NpyFile(path, *map(int, shape), dtype, offset, column_major)
    if n_bytes != file.n_bytes:
        state = "truncated" if n_bytes < file.n_bytes else "damaged"
        raise ShardError(
            f"{path!r} is {state}: an array of shape {shape} and dtype {dtype} takes "
            f"{file.n_bytes} bytes, the file has {n_bytes}."
        )
    return file
