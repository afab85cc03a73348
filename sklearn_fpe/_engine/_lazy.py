"""Arrays whose rows stay in files until they are read."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class LazyArray(ABC):
    """A matrix of real numbers that is read by rows.

    Indexing by rows returns another lazy array and reads nothing; :meth:`read` returns
    numbers. Training and prediction recognise lazy arrays by this class.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    dtype : numpy.dtype
        Type of the numbers, in native byte order.
    """

    ndim = 2
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def __getitem__(self, key: Any) -> Any:
        """Return a lazy array of the rows of a slice, an int or a bool array."""

    @abstractmethod
    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the rows of a slice or an int array as a new array."""

    @abstractmethod
    def file_order(self) -> np.ndarray | None:
        """Return the row numbers in the order of the files; None: 0, 1, 2, …."""

    @abstractmethod
    def runs(self, index: np.ndarray | None) -> np.ndarray | None:
        """Return the start positions of runs of rows that must be read in order.

        `index` holds the row numbers in the order of the files; None: all rows. The
        positions in `index` increase from 0. None: every order costs the same.
        """

    @abstractmethod
    def place(self, row: int) -> str:
        """Return the file and its row number for a row, for messages."""

    def digest(self) -> str:
        """Read all rows for a digest of shape, type and numbers.

        Returns
        -------
        digest : str
            Hexadecimal SHA-1.
        """
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(repr((self.shape, self.dtype.str)).encode())
        step = max(1, 2**22 // max(1, self.shape[1] * self.dtype.itemsize))
        for start in range(0, len(self), step):
            digest.update(self.read(slice(start, start + step)).tobytes())
        return digest.hexdigest()
