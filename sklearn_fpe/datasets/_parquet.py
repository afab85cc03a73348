"""Rows in a column of Parquet files, and other columns as arrays."""

import os
import threading
from dataclasses import dataclass

import numpy as np

from sklearn_fpe._optional import import_optional
from sklearn_fpe.datasets._files import ShardError, check_size, naming

BATCH_BYTES = 2**23
"""Bytes of the rows that are decoded at a time."""

BUFFER_BYTES = 2**20
"""Bytes of a column that are read at a time, instead of a whole row group."""


@dataclass(frozen=True)
class ParquetFile:
    """A column of lists of numbers, all of one length, in a Parquet file.

    `n_columns` is the length of the lists, None if there is no row and the type does
    not tell. `run_starts` are the first rows of the row groups, because a row group is
    decoded from its first row on.
    """

    path: str
    n_rows: int
    n_columns: int | None
    dtype: np.dtype
    column: str
    run_starts: tuple
    n_bytes: int

    most_open = 4  # few, because readers hold decoded rows

    def open(self):
        """Return a reader of the file."""
        return ParquetReader(self)


class ParquetReader:
    """Decodes rows of a :class:`ParquetFile`, in pieces.

    It remembers the piece that was decoded last, so that rows that are read in their
    order are decoded once.
    """

    def __init__(self, file):
        self._file = file
        with naming(file.path):
            self._opened = open_parquet(file.path)
            check_size(file, os.stat(file.path).st_size)
        self._lock = threading.Lock()
        self._group = self._pieces = self._start = self._piece = None

    def read_into(self, out, rows):
        """Copy the rows of a slice, or of an increasing int array, into an array."""
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        first = 0
        with self._lock, naming(self._file.path):
            try:
                while first < len(rows):
                    self._seek(int(rows[first]))
                    stop = int(np.searchsorted(rows, self._start + len(self._piece)))
                    out[first:stop] = self._piece[rows[first:stop] - self._start]
                    first = stop
            except BaseException:
                self._group = None  # the next piece is unknown: begin anew
                raise

    def _seek(self, row):
        """Decode pieces until one has the row."""
        group = int(np.searchsorted(self._file.run_starts, row, side="right")) - 1
        if group != self._group or row < self._start:
            self._group, self._pieces = group, _pieces(self._opened, self._file, group)
            self._start, self._piece = next(self._pieces)
        while row >= self._start + len(self._piece):
            self._start, self._piece = next(self._pieces)


def _pieces(opened, file, group):
    """Yield the pieces of a row group, each with the number of its first row.

    This is no method, because a reader and a generator that refer to each other would
    keep their memory until the garbage collector runs.
    """
    start = file.run_starts[group]
    for batch in opened.iter_batches(
        max(1, BATCH_BYTES // (8 * file.n_columns)),
        row_groups=[group],
        columns=[file.column],
        use_threads=False,
    ):
        yield start, decode(file, batch.column(0), start)
        start += len(batch)
    raise ShardError(
        f"{file.path!r} is damaged: its row group {group} has fewer rows than its "
        f"header says."
    )


def open_parquet(path):
    """Open a Parquet file with little memory; check the checksums that it has."""
    return import_optional("pyarrow.parquet").ParquetFile(
        path, buffer_size=BUFFER_BYTES, page_checksum_verification=True
    )


def decode(file, lists, start):
    """Turn Arrow's lists into a matrix; `start` is the row of the first of them."""
    lists = getattr(lists, "storage", lists)
    if lists.null_count:
        row = start + int(np.argmax(lists.is_null().to_numpy(zero_copy_only=False)))
        raise ShardError(
            f"{file.path!r} must have an embedding in every row, row {row} has none."
        )
    values = lists.flatten()
    if hasattr(lists, "offsets"):
        lengths = np.diff(lists.offsets.to_numpy())
        if (lengths != file.n_columns).any():
            i = int((lengths != file.n_columns).argmax())
            raise ShardError(
                f"{file.path!r} must have embeddings of length {file.n_columns} in "
                f"column {file.column!r}, row {start + i} has {lengths[i]}."
            )
    if values.null_count:
        raise ShardError(
            f"{file.path!r} must have no missing number in column {file.column!r}: "
            f"an embedding of the {len(lists)} rows from {start} on has one."
        )
    return values.to_numpy().reshape(len(lists), file.n_columns)


def inspect_parquet(path, column=None):
    """Read the footer of a Parquet file, and find its column of embeddings."""
    with naming(path):
        opened = open_parquet(path)
        n_bytes = os.stat(path).st_size
        column, lists, dtype = _find_column(path, opened.schema_arrow, column)
        n_columns = getattr(lists, "list_size", None)
        meta = opened.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        starts = tuple(np.cumsum([0, *sizes])[:-1].tolist())
        if n_columns is None and meta.num_rows:
            batch = next(opened.iter_batches(1, columns=[column], use_threads=False))
            first = batch.column(0)
            n_columns = 0 if first.null_count else len(first[0])
        if n_columns == 0:
            raise ShardError(
                f"{path!r} must have numbers in the first row of {column!r}."
            )
    return ParquetFile(path, meta.num_rows, n_columns, dtype, column, starts, n_bytes)


def _find_column(path, schema, wanted):
    """Return name, list type and NumPy type of the column of embeddings."""
    arrow, found = import_optional("pyarrow"), {}
    types = arrow.types
    for field in schema:
        lists = getattr(field.type, "storage_type", field.type)
        if isinstance(
            lists, arrow.ListType | arrow.LargeListType | arrow.FixedSizeListType
        ):
            numbers = lists.value_type
            if types.is_integer(numbers) or types.is_floating(numbers):
                found[field.name] = lists, np.dtype(numbers.to_pandas_dtype())
    if wanted is None and len(found) == 1:
        wanted = next(iter(found))
    if wanted in found:
        return wanted, *found[wanted]
    has = f"its columns of lists of numbers are {sorted(found)}"
    if wanted is not None:
        raise ShardError(f"{path!r} must have embeddings in column {wanted!r}; {has}.")
    raise ShardError(f"{path!r} must have one column of embeddings; {has}: name it.")


def column_names(path, without=None):
    """Return the names of the columns of a Parquet file, but for one."""
    with naming(path):
        return [n for n in open_parquet(path).schema_arrow.names if n != without]


def read_column(path, name, n_rows):
    """Return a column of a Parquet file as an array of `n_rows` entries.

    Strings are objects, of which equal ones are the same, to save memory.
    """
    kinds = import_optional("pyarrow").types
    with naming(path):
        opened = open_parquet(path)
        if opened.metadata.num_rows != n_rows:
            raise ShardError(
                f"{path!r} must have as many rows as its shard, {n_rows}, it has "
                f"{opened.metadata.num_rows}."
            )
        if name not in opened.schema_arrow.names:
            raise ShardError(
                f"{path!r} has no column {name!r}; its columns are "
                f"{opened.schema_arrow.names}."
            )
        values = opened.read(columns=[name], use_threads=False).column(name)
        values = values.combine_chunks()
        if kinds.is_string(values.type) or kinds.is_large_string(values.type):
            values = values.dictionary_encode()
        if kinds.is_dictionary(values.type) and not values.null_count:
            labels = values.dictionary.to_numpy(zero_copy_only=False)
            return labels[values.indices.to_numpy(zero_copy_only=False)]
        return np.array(values.to_numpy(zero_copy_only=False))
