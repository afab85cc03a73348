"""Rows of array-likes, read in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sklearn_fpe._engine._device import (
    CHUNK_BYTES,
    as_own,
    is_accelerator,
    upload,
    uploaded,
)
from sklearn_fpe._engine._lazy import LazyArray
from sklearn_fpe._engine._world import SINGLE, World

STREAM_ABOVE = 2**29
"""Bytes, as float32, above which rows in files are streamed instead of loaded."""

NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

JOBLIB_FOLDER = "joblib_memmapping_folder_"
"""Start of the names of the folders in which joblib maps arrays for its workers."""


def chunks(
    n_rows: int, n_columns: int, n_bytes: int = CHUNK_BYTES, itemsize: int = 8
) -> Iterator[slice]:
    """Yield slices that cut `n_rows` into pieces of at most `n_bytes`."""
    step = max(1, n_bytes // (itemsize * max(1, n_columns)))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def as_tensor(part: Any, dtype: torch.dtype) -> Tensor:
    """Return dense rows as a tensor on their device; a copy only if needed."""
    if isinstance(part, torch.Tensor):
        return part.to(dtype)
    part = np.asarray(part, dtype=NUMPY_DTYPES[dtype], order="C")
    # torch takes neither read-only arrays nor negative strides, even of length 1.
    if not part.flags.writeable or min(part.strides) < 0:
        part = part.copy()
    return torch.from_numpy(part)


def as_double(part: Any) -> Tensor:
    """Return a copy of dense rows as a double tensor on their device."""
    if isinstance(part, torch.Tensor):
        return part.to(torch.float64, copy=True)
    return torch.from_numpy(np.array(part, dtype=np.float64, order="C"))


def _as_torch_takes(part: Any) -> Any:
    """Return dense rows in a type in which all devices compute."""
    if isinstance(part, np.ndarray):
        if part.dtype.itemsize > 8 or part.dtype in (np.uint64, np.uint32):
            return part.astype(np.float64)
        if part.dtype == np.uint16:
            return part.astype(np.int32)
    return part


def is_users_memmap(X: Any) -> bool:
    """Tell whether an array is a memory map that the user made.

    Maps by which joblib passes arrays to its workers do not count, because `n_jobs`
    must not change a result.
    """
    while isinstance(X, np.ndarray):
        if isinstance(X, np.memmap):
            folders = os.fspath(X.filename or "").split(os.sep)[:-1]
            return not any(folder.startswith(JOBLIB_FOLDER) for folder in folders)
        X = X.base
    return False


class View:
    """Some rows of an array-like, read in pieces.

    Parameters
    ----------
    X : ndarray, memory map, LazyArray, CSR matrix or tensor of shape (n, n_features)
        The array; it is never copied whole.
    index : int ndarray of shape (n_rows,), default=None
        The rows, in increasing order, or of a lazy array in the order of its files;
        None: all of them.
    """

    def __init__(self, X: Any, index: np.ndarray | None = None) -> None:
        self.X, self.index = X, index
        self.shape = (X.shape[0] if index is None else len(index), X.shape[1])
        self._index_there: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def streamed(self) -> bool:
        """Whether training reads the rows in pieces at every use instead of once.

        So are sparse matrices, which may not fit as dense ones, and large arrays in
        files.
        """
        if sparse.issparse(self.X):
            return True
        in_files = isinstance(self.X, LazyArray) or is_users_memmap(self.X)
        return in_files and self.X.size * 4 > STREAM_ABOVE

    def read(self, rows: Any) -> Any:
        """Return the rows of a slice or an int array, dense; a tensor of a tensor."""
        if self.index is not None:
            if isinstance(self.X, Tensor) and is_accelerator(self.X.device):
                return self.X.index_select(0, self._index_on_device()[rows])
            rows = self.index[rows]
        if isinstance(self.X, LazyArray):
            return self.X.read(rows)
        part = self.X[rows]
        return part.toarray() if sparse.issparse(part) else part

    def _index_on_device(self) -> Tensor:
        """Return the index on the device of X, where it is copied once."""
        if self._index_there is None:
            self._index_there = torch.from_numpy(self.index).to(self.X.device)
        return self._index_there

    def pieces(
        self,
        selections: Iterable[Any],
        device: torch.device,
        check: Callable[[Any], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield rows of several selections as tensors on a device, in their own dtype.

        Those of an array are read ahead, see :func:`uploaded`, and then checked.
        """
        if isinstance(self.X, Tensor) and is_accelerator(self.X.device):
            return (self.read(rows).to(device) for rows in selections)

        def read(rows: Any) -> Any:
            part = self.read(rows)
            if check is not None:
                check(part)
            return _as_torch_takes(part)

        parts = map(read, selections)
        if isinstance(selections, list) and len(selections) == 1:
            # Not worth a thread.
            return (upload(as_own(part), device) for part in parts)
        return uploaded(parts, device)

    def file_order(self) -> np.ndarray | None:
        """Return the order of the rows in their files, None if X has the same order."""
        if isinstance(self.X, LazyArray) and self.index is None:
            return self.X.file_order()
        return None

    def runs(self, length: int) -> np.ndarray:
        """Return where runs begin whose rows must be read in their order.

        These are blocks of `length` rows, unless the files ask for other ones.
        """
        starts = None
        if isinstance(self.X, LazyArray):
            starts = self.X.runs(self.index)
        return np.arange(0, len(self), length) if starts is None else starts

    def place(self, row: int) -> str:
        """Return the file of a row and its place there, "" if X is not lazy."""
        if not isinstance(self.X, LazyArray):
            return ""
        return self.X.place(row if self.index is None else int(self.index[row]))

    def select(self, array: Any) -> Any:
        """Return the rows of the view from an array with the rows of X."""
        return array if self.index is None else array[self.index]


@dataclass(frozen=True)
class Sample:
    """Rows with their targets and weights."""

    view: View  # of shape (n_rows, n_features)
    y: np.ndarray  # (n_rows, ...), checked targets, not encoded
    weights: np.ndarray  # (n_rows,), of the rows
    entry_weights: np.ndarray | None = None  # (n_rows, n_outputs), without `weights`

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: np.ndarray) -> Sample:
        """Return some rows, given in increasing order, without copying X."""
        if len(rows) == len(self):
            return self
        return self._select(rows)

    def _select(self, rows: np.ndarray) -> Sample:
        index = rows if self.view.index is None else self.view.index[rows]
        entries = None if self.entry_weights is None else self.entry_weights[rows]
        view = View(self.view.X, index)
        return Sample(view, self.y[rows], self.weights[rows], entries)

    def in_file_order(self) -> Sample:
        """Return rows of a lazy array such that files are read from start to end.

        Streamed rows come in the order of their files, because training shuffles them
        anyway. Rows that are not streamed are read now, and keep their order.
        """
        order = self.view.file_order()
        if order is None:
            return self
        if self.view.streamed:
            return self._select(order)
        return replace(self, view=View(np.asarray(self.view.X)))

    def used(self) -> Sample:
        """Return the rows of positive weight."""
        return self.take(np.flatnonzero(self.weights))

    def training_weights(self, world: World = SINGLE) -> np.ndarray:
        """Return weights of mean 1, so that their scale does not change the step.

        The mean is that of the rows of all processes.
        """
        weights = self.weights
        if self.entry_weights is not None:
            weights = weights[:, None] * self.entry_weights
        own = np.array([weights.sum(), weights.size])
        total, n_weights = world.total(own, "sums of weights")
        return weights / (total / n_weights)
