"""The lazy array of rows in many files, and these files."""

import operator
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from sklearn_fpe._engine._lazy import LazyArray
from sklearn_fpe.datasets._files import ShardError
from sklearn_fpe.datasets._index import (
    as_slice,
    choose,
    sort,
    sorting_order,
    split_key,
    take,
    unsort,
)
from sklearn_fpe.datasets._layout import find_shards, inspect_shards, pair_metadata
from sklearn_fpe.datasets._parquet import column_names, read_column

COPY_BYTES = 2**24
"""Bytes that are read at a time where a whole array is made."""


def open_shards(path, *, column=None, metadata=None):
    """Open a folder of embeddings as one array whose rows stay in their files.

    Parameters
    ----------
    path : str, path-like or list of them
        A folder of ``.npy`` or of Parquet files, such as the ``img_emb`` of
        clip-retrieval, a single file, or a list of folders and files. The files of a
        folder are in numeric order, ``x_2.npy`` before ``x_10.npy``; names that begin
        with a dot or an underscore are left out.
    column : str, default=None
        Column of Parquet files with the embeddings, lists of numbers of one length.
        None: the only column of lists of numbers.
    metadata : str, path-like or list of them, default=None
        Folder or Parquet files with other columns, such as labels: one file per shard,
        with the same rows and the same last number in its name. None: the Parquet files
        themselves, or for ``.npy`` files the folder ``metadata`` beside theirs.

    Returns
    -------
    shards : Shards of shape (n_rows, n_features)
        The rows of all files, none of which has been read.

    Raises
    ------
    ShardError
        If a file is damaged, is no matrix of real numbers, or does not fit the others
        in width or type; the message names the file.
    FileNotFoundError
        If a path does not exist.
    ImportError
        If Parquet files are to be read and pyarrow is not installed.

    See Also
    --------
    sklearn_fpe.embeddings.write_shards : Embeds images and writes such a folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn_fpe.datasets import open_shards
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(11):
    ...         np.save(Path(folder, f"img_emb_{i}.npy"), np.full((5, 3), i))
    ...     X = open_shards(folder)
    ...     print(X[12:52:13], np.asarray(X[12:52:13])[:, 0])
    <Shards of shape (4, 3), int64, 11 files> [ 2  5  7 10]
    """
    shards = inspect_shards(find_shards(path), column)
    return Shards(Source(shards, pair_metadata(shards, metadata)))


class Shards(LazyArray):
    """Rows in many files: a lazy array of shape (n_rows, n_features).

    Made by :func:`open_shards`. ``X[rows]`` with a slice, integers or booleans is
    another lazy array, which has read nothing, so that ``train_test_split`` and
    ``GridSearchCV`` copy no rows. ``X[3]`` is a row, and ``np.asarray(X)`` reads all
    rows. A pickle contains the paths and no rows.

    The estimators read the rows in pieces. If they take more than half a gigabyte as
    float32, they are read anew in every epoch, each row once, shuffled by blocks;
    otherwise they are loaded once.

    Parameters
    ----------
    source : object
        The files, as :func:`open_shards` has found them.
    rows : range or int ndarray, default=None
        Numbers of the rows; None: all of them.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    dtype : numpy.dtype
        Type of the numbers.
    ndim : int
        2.

    See Also
    --------
    open_shards : Opens a folder of embeddings.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn_fpe.datasets import Shards, open_shards
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(3):
    ...         np.save(Path(folder, f"{i}.npy"), np.full((20, 4), i, np.float16))
    ...     train, test = train_test_split(open_shards(folder), random_state=0)
    ...     print(isinstance(train, Shards), train.shape, test[:2, 0])
    True (45, 4) [1. 1.]
    """

    def __init__(self, source, rows=None):
        self._source = source
        self._rows = range(int(source.starts[-1])) if rows is None else rows
        self.shape = (len(self._rows), source.n_columns)
        self.dtype = source.dtype

    def __repr__(self):
        n_files = len(self._source.shards)
        return f"<Shards of shape {self.shape}, {self.dtype}, {n_files} files>"

    @property
    def nbytes(self):
        """Bytes of the rows, if they were read."""
        return self.size * self.dtype.itemsize

    @property
    def files(self):
        """Paths of the files, a list of str."""
        return [shard.path for shard in self._source.shards]

    def __getitem__(self, key):
        rows, columns = split_key(key)
        try:
            i = operator.index(rows)
        except TypeError:
            chosen = Shards(self._source, choose(self._rows, rows))
            if isinstance(columns, slice) and columns == slice(None):
                return chosen
            return chosen._read_columns(columns)
        if not -len(self) <= i < len(self):
            raise IndexError(f"Row {i} is out of range for {len(self)} rows.")
        return self.read(np.array([i % len(self)]))[0][columns]

    def _read_columns(self, columns):
        """Read some columns of all rows, without having all columns in memory."""
        if not isinstance(columns, slice):
            columns = operator.index(columns)
        parts = [self.read(rows)[:, columns].copy() for rows in self._pieces()]
        return np.concatenate(parts or [np.empty((0, self.shape[1]))[:, columns]])

    def _pieces(self):
        step = max(1, COPY_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def __iter__(self):
        for rows in self._pieces():
            yield from self.read(rows)

    def read(self, rows):
        """Read some rows.

        Parameters
        ----------
        rows : slice or int ndarray of shape (n,)
            The rows, not negative.

        Returns
        -------
        X : ndarray of shape (n, n_features)
            Their values, a new array.

        Raises
        ------
        ShardError
            If a file has become unreadable; the message names it.
        """
        rows, order = sort(choose(self._rows, rows))
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        self._source.read_into(out, rows)
        return unsort(out, order)

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("Shards cannot become an array without being copied.")
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        self._check_memory(self.size * dtype.itemsize)
        out = np.empty(self.shape, dtype)
        order = self.file_order()
        for rows in self._pieces():
            place = rows if order is None else order[rows]
            out[place] = self.read(place)
        return out

    def _check_memory(self, n_bytes):
        """Refuse what cannot fit, because Linux would kill the process instead."""
        if not hasattr(os, "sysconf"):
            return
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if n_bytes > memory:
            raise MemoryError(
                f"An array of shape {self.shape} takes {n_bytes / 1e9:.1f} GB, but "
                f"this machine has {memory / 1e9:.1f} GB: read some rows at a time, "
                f"np.asarray(X[:100_000])."
            )

    def file_order(self):
        """Return the order in which rows lie in the files.

        Returns
        -------
        order : int ndarray of shape (n_rows,) or None
            Positions of the rows; None if they are in the order of the files.
        """
        return sorting_order(self._rows)

    def runs(self, index=None):
        """Return where row groups of Parquet files begin, which are read in order.

        Parameters
        ----------
        index : int ndarray, default=None
            Some rows, in the order of the files; None: all of them.

        Returns
        -------
        starts : int ndarray or None
            Positions in `index`, increasing from 0; None for ``.npy`` files, of which
            any rows may be read.
        """
        bounds = self._source.run_starts()
        if bounds is None:
            return None
        rows = self._rows if index is None else take(self._rows, index)
        if isinstance(rows, range):
            starts = np.clip(-((rows.start - bounds) // rows.step), 0, len(rows))
        else:
            starts = np.searchsorted(rows, bounds)
        starts = np.unique(np.append(0, starts))
        return starts[starts < len(rows)]

    def place(self, row):
        """Return which row of which file a row is.

        Parameters
        ----------
        row : int
            Number of the row.

        Returns
        -------
        place : str
            Such as ``row 5 of '/data/img_emb/img_emb_3.npy'``.
        """
        row = int(self._rows[row])
        i = int(np.searchsorted(self._source.starts, row, side="right")) - 1
        return f"row {row - self._source.starts[i]} of {self._source.shards[i].path!r}"

    @property
    def columns(self):
        """Names of the columns of the metadata, a list of str."""
        shard, path = self._source.shards[0], self._source.metadata[0]
        if path is None:
            return []
        return column_names(path, getattr(shard, "column", None))

    def column(self, name):
        """Read a column of the metadata, such as the labels of the rows.

        Parameters
        ----------
        name : str
            Name of the column.

        Returns
        -------
        values : ndarray of shape (n_rows,)
            The entries of these rows, in their order; strings as objects.

        Raises
        ------
        ShardError
            If metadata are missing or do not fit; the message names the file.
        """
        rows, order = sort(self._rows)
        parts = []
        for i, _, local in self._source.split(rows):
            values = self._read_metadata(i, name)
            if parts and (values.dtype.kind == "O") != (parts[0].dtype.kind == "O"):
                raise ShardError(
                    f"Column {name!r} must have one type, it has {values.dtype} in "
                    f"{self._source.metadata[i]!r} and {parts[0].dtype} elsewhere."
                )
            parts.append(values[local])
        values = np.concatenate(parts or [np.empty(0, dtype=object)])
        return unsort(values, order)

    def _read_metadata(self, i, name):
        shard, path = self._source.shards[i], self._source.metadata[i]
        if path is None:
            folder = Path(shard.path).parent.parent / "metadata"
            raise ShardError(
                f"{shard.path!r} has no metadata: there must be a Parquet file of the "
                f"same number in {str(folder)!r}, or name it by open_shards(..., "
                f"metadata=)."
            )
        return read_column(path, name, shard.n_rows)


class Source:
    """The files behind lazy arrays. Threads may share it.

    A file is hashable, and its method ``open`` returns a reader. The ``most_open``
    readers that were used last stay open. A pickle contains none, because another
    process has to open its own.
    """

    def __init__(self, shards, metadata):
        self.shards, self.metadata = shards, metadata
        self.starts = np.cumsum([0, *(shard.n_rows for shard in shards)])
        known = [shard for shard in shards if shard.n_columns is not None]
        first = known[0] if known else shards[0]
        self.n_columns, self.dtype = first.n_columns or 0, first.dtype
        self._reader = lru_cache(first.most_open)(type(first).open)

    def __reduce__(self):
        return Source, (self.shards, self.metadata)

    def read_into(self, out, rows):
        """Read rows that are given as a range of step 1 or increasing int array."""
        for i, part, local in self.split(rows):
            self._reader(self.shards[i]).read_into(out[part], local)

    def split(self, rows):
        """Yield for every file its number, where its rows are in `rows`, and the rows.

        The rows of a file are a slice if they are neighbours, else an int array.
        """
        if not len(rows):
            return
        first, last = np.searchsorted(self.starts, [rows[0], rows[-1]], side="right")
        for i in range(int(first) - 1, int(last)):
            begin, end = int(self.starts[i]), int(self.starts[i + 1])
            if isinstance(rows, range):
                low, high = max(begin, rows.start), min(end, rows.stop)
                part = slice(low - rows.start, high - rows.start)
                local = slice(low - begin, high - begin)
            else:
                part = slice(*np.searchsorted(rows, [begin, end]).tolist())
                local = as_slice(rows[part] - begin)
            if part.stop > part.start:
                yield i, part, local

    def run_starts(self):
        """Return first rows of what must be read in order, None if nothing must."""
        if self.shards[0].run_starts is None:
            return None
        pairs = zip(self.shards, self.starts[:-1], strict=True)
        return np.concatenate(
            [np.array(s.run_starts, dtype=np.int64) + start for s, start in pairs]
        )
