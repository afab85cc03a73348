"""What a lazy array may be indexed by."""

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
