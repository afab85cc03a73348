"""The files behind lazy arrays, read by the numbers of rows."""

from functools import lru_cache

import numpy as np

from sklearn_fpe.datasets._index import as_slice


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
