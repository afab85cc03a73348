"""Indices of lazy arrays, and rows as ranges or int arrays."""

import operator

import numpy as np


def split_key(key):
    """Split an index into that of rows and that of columns."""
    key = key if isinstance(key, tuple) else (key,)
    places = [i for i, part in enumerate(key) if part is Ellipsis]
    if len(places) > 1 or len(key) - len(places) > 2:
        raise IndexError("Shards have two axes, got an index of more.")
    if places:
        fill = [slice(None)] * (3 - len(key))
        key = (*key[: places[0]], *fill, *key[places[0] + 1 :])
    rows, columns = (*key, slice(None), slice(None))[:2]
    for part in (rows, columns):
        if part is None or isinstance(part, bool | np.bool_):
            raise IndexError(f"Shards cannot be indexed by {part}.")
    if not isinstance(columns, slice):
        try:
            operator.index(columns)
        except TypeError:
            raise IndexError(
                f"Columns are chosen by an integer or a slice, got {columns!r}: read "
                f"the rows first, X.read(rows)[:, columns]."
            ) from None
    return rows, columns


def choose(rows, key):
    """Return those of `rows` that a slice, or an int or bool array, chooses."""
    if isinstance(key, slice):
        return rows[key]
    n_rows, index = len(rows), np.asarray(key)
    if index.size == 0 and index.ndim == 1 and not hasattr(key, "dtype"):
        index = index.astype(np.int64)  # an empty list
    if index.dtype.kind == "b" and index.shape == (n_rows,):
        index = np.flatnonzero(index)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise IndexError(
            f"Rows are chosen by an integer, a slice, or an array of shape (n,) of "
            f"integers or of shape ({n_rows},) of booleans, got {index.dtype} of shape "
            f"{index.shape}."
        )
    index = index.astype(np.int64)
    outside = (index < -n_rows) | (index >= n_rows)
    if outside.any():
        raise IndexError(f"Row {index[outside][0]} is out of range for {n_rows} rows.")
    index[index < 0] += n_rows
    chosen = as_slice(take(rows, index))
    return range(chosen.start, chosen.stop) if isinstance(chosen, slice) else chosen


def take(rows, index):
    """Return those of `rows` at the positions of an int array, not negative."""
    return rows.start + rows.step * index if isinstance(rows, range) else rows[index]


def as_slice(index):
    """Return a slice where an increasing int array is neighbours, else the array."""
    n = len(index)
    if n and index[-1] - index[0] == n - 1 and (index[1:] - index[:-1] == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def sorting_order(rows):
    """Return the positions that sort rows, None if they are sorted."""
    if isinstance(rows, range):
        return None if rows.step > 0 else np.arange(len(rows))[::-1]
    return None if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")


def sort(rows):
    """Return rows as `Source.split` takes them, and `sorting_order`."""
    order = sorting_order(rows)
    if isinstance(rows, range) and rows.step != 1:
        rows = np.arange(rows.start, rows.stop, rows.step)
    return rows if order is None else rows[order], order


def unsort(values, order):
    """Return values that are in sorted order in the order before `sort`."""
    if order is None:
        return values
    unsorted = np.empty_like(values)
    unsorted[order] = values
    return unsorted
