"""The files behind lazy arrays, read by the numbers of rows."""

import numpy as np

from sklearn_fpe.datasets._files import OpenFiles


class Source:
    """The files behind lazy arrays, and those that are open."""

    def __init__(self, shards, metadata):
        self.shards, self.metadata = shards, metadata
        sizes = [shard.n_rows for shard in shards]
        self.starts = np.cumsum([0, *sizes])
        known = [shard for shard in shards if shard.n_columns is not None]
        first = known[0] if known else shards[0]
        self.n_columns, self.dtype = first.n_columns or 0, first.dtype
        self.files = OpenFiles()

    def read_into(self, out, rows):
        """Read rows that are given as a range of step 1 or increasing int array."""
        for i, part, local in self.split(rows):
            self.files.get(self.shards[i]).read_into(out[part], local)

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
        runs = [
            np.array(shard.run_starts, dtype=np.int64) + start
            for shard, start in zip(self.shards, self.starts, strict=False)
        ]
        return np.concatenate(runs)


def as_slice(index):
    """Return a slice where an increasing int array is neighbours, else the array."""
    n = len(index)
    if n and index[-1] - index[0] == n - 1 and (index[1:] - index[:-1] == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
