"""A shard that is being written: stored batch by batch, continued after a stop."""

import fcntl
import json
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sklearn_fpe import _replacing
from sklearn_fpe._replacing import sync, sync_folder

EMBEDDINGS, METADATA, SKIPPED = "img_emb", "metadata", "skipped"
"""Folders of the files of finished shards."""


class PartialShard:
    """Embeddings of the images at `positions`, a range, on their way into a shard.

    Every batch is appended to a file of rows, then one line to a journal, which says
    which images the batch covers and has a checksum of its rows. What has no valid line
    counts as not stored. The finished shard is put into place by renaming files, that
    of the embeddings last, so that it is there as a whole or not at all.

    `next` is the first position that is not stored yet, `kept` lists the positions
    whose embeddings are stored, and `skipped` says by position why others are not.
    """

    def __init__(self, folder, number, positions, dtype):
        self.positions, self.dtype = positions, np.dtype(dtype)
        self.path = folder / EMBEDDINGS / f"{EMBEDDINGS}_{number}.npy"
        self.metadata_path = folder / METADATA / f"{METADATA}_{number}.parquet"
        self.skipped_path = folder / SKIPPED / f"{SKIPPED}_{number}.json"
        self.journal_path = folder / EMBEDDINGS / f".{EMBEDDINGS}_{number}.journal"
        self.rows_path = folder / EMBEDDINGS / f".{EMBEDDINGS}_{number}.rows"
        self.next, self.kept, self.skipped = positions.start, [], {}
        self._n_columns = None

    @property
    def finished(self):
        """Whether the shard is in place."""
        return self.path.exists()

    @contextmanager
    def claim(self, wait=False):
        """Lock the shard for this process and thread; tell whether to write it here.

        It is not to be written here if it is finished or another writer has it; that
        writer is waited for if `wait` is true. The lock ends with the process, however
        it ends.
        """
        with open(self.journal_path, "a+b") as self._journal:
            try:
                no_wait = 0 if wait else fcntl.LOCK_NB
                fcntl.flock(self._journal, fcntl.LOCK_EX | no_wait)
            except BlockingIOError:
                yield False
                return
            # Another writer may have finished it before the lock was taken.
            if self.finished:
                self.clean()
                yield False
                return
            with open(self.rows_path, "a+b") as self._rows:
                sync_folder(self.rows_path.parent)
                self._resume()
                yield True

    def _resume(self):
        """Take over the batches that an earlier writer has stored; drop the rest."""
        good, n_bytes = 0, 0
        self._journal.seek(0)
        self._rows.seek(0)
        for line in self._journal:
            entry = _parse(line)
            if entry is None or entry["start"] != self.next:
                break
            rows = self._rows.read(entry["n_bytes"])
            if len(rows) != entry["n_bytes"] or zlib.crc32(rows) != entry["crc32"]:
                break
            self._take(entry)
            good, n_bytes = good + len(line), n_bytes + len(rows)
        for file, size in ((self._journal, good), (self._rows, n_bytes)):
            file.seek(size)
            file.truncate()

    def _take(self, entry):
        skipped = _by_position(entry["skipped"])
        images = range(entry["start"], entry["stop"])
        self.kept += [i for i in images if i not in skipped]
        self.skipped |= skipped
        self.next, self._n_columns = entry["stop"], entry["n_columns"]

    def append(self, embeddings, skipped):
        """Store the embeddings of the next images, (n_images, n_columns).

        `skipped` says why images are left out, by position; their rows are not stored.
        """
        start, stop = self.next, self.next + len(embeddings)
        keep = [i not in skipped for i in range(start, stop)]
        with np.errstate(over="ignore"):
            rows = embeddings[keep].astype(self.dtype)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            position = np.arange(start, stop)[keep][~finite][0]
            raise ValueError(
                f"Embeddings must be finite as {self.dtype}, that of image {position} "
                f"is not: use dtype='float32', or normalize embeddings."
            )
        data = rows.tobytes()
        entry = {
            "start": start,
            "stop": stop,
            "n_columns": embeddings.shape[1],
            "skipped": {str(i): reason for i, reason in skipped.items()},
            "n_bytes": len(data),
            "crc32": zlib.crc32(data),
        }
        self._rows.write(data)
        sync(self._rows)
        # The line comes after its rows, so that a line without rows does not happen.
        self._journal.write(json.dumps(entry).encode() + b"\n")
        sync(self._journal)
        self._take(entry)

    def finish(self, table):
        """Put the files of the shard into place, and forget what they hold.

        `table` has the metadata, one row for every stored embedding.
        """
        from pyarrow import parquet

        shape = (len(self.kept), self._n_columns)
        self._rows.seek(0)
        rows = np.fromfile(self._rows, self.dtype).reshape(shape)
        if self.skipped:
            with replaced(self.skipped_path) as file:
                file.write(json.dumps(self.skipped, indent=1).encode())
        with replaced(self.metadata_path) as file:
            parquet.write_table(table, file, write_page_checksum=True)
        with replaced(self.path) as file:
            np.lib.format.write_array(file, rows, allow_pickle=False)
        self.clean()
        self.kept, self.skipped = [], {}

    def clean(self):
        """Remove the files that a finished shard does not need."""
        for path in (self.rows_path, self.journal_path):
            path.unlink(missing_ok=True)

    def read_skipped(self):
        """Return why images of a finished shard were left out, by position."""
        if not self.skipped_path.exists():
            return {}
        return _by_position(json.loads(self.skipped_path.read_text()))


def _by_position(reasons):
    """Return reasons by position, an int again: keys of JSON are strings."""
    return {int(i): reason for i, reason in reasons.items()}


def _parse(line):
    """Return the entry of a line of the journal, None if the line is not whole."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


@contextmanager
def replaced(path):
    """Open a new file that takes the place of `path` once it is on the disk."""
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    with _replacing.replaced(path, path.with_name(f".{path.name}.new")) as file:
        yield file


@contextmanager
def locked(path):
    """Hold a lock that other processes and threads wait for."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
