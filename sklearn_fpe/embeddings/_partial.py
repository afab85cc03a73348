"""A shard that is being written: stored batch by batch, continued after a stop."""

import fcntl
import json
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sklearn_fpe import _replacing
from sklearn_fpe._replacing import sync, sync_folder

EMBEDDINGS, METADATA, SKIPPED = "img_emb", "metadata", "skipped"
"""Folders of the files of finished shards."""


class PartialShard:
    """Embeddings of a range of images on their way into a shard.

    Every batch is appended to a file of rows, then one line to a journal, which says
    which images the batch covers and has a checksum of its rows. What has no valid line
    counts as not stored. The finished shard is put into place by renaming files, that
    of the embeddings last, so that it is there as a whole or not at all.

    Parameters
    ----------
    folder : Path
        Folder of the shards.
    number : int
        Number of the shard.
    positions : range
        Positions of its images.
    dtype : numpy.dtype
        Type in which embeddings are stored.

    Attributes
    ----------
    next : int
        Position of the first image that is not stored yet.
    kept : list of int
        Positions of the images whose embeddings are stored.
    skipped : dict of str
        Why images are left out, by position.
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
        """Lock the shard for this process and thread.

        The lock ends with the process, however it ends.

        Parameters
        ----------
        wait : bool, default=False
            Whether to wait for another writer of the shard.

        Yields
        ------
        claimed : bool
            Whether the shard is to be written here; not if it is finished, or if
            another writer has it.
        """
        descriptor = os.open(self.journal_path, os.O_RDWR | os.O_CREAT, 0o666)
        self._journal = os.fdopen(descriptor, "r+b")
        with self._journal:
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
            # Not appending: a batch that is not whole is cut off first.
            with open(self.rows_path, "r+b" if self.rows_path.exists() else "w+b") as f:
                self._rows = f
                sync_folder(self.rows_path.parent)
                self._resume()
                yield True

    def _resume(self):
        """Take over the batches that an earlier writer has stored; drop the rest."""
        good, n_bytes = 0, 0
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
        skipped = {int(i): reason for i, reason in entry["skipped"].items()}
        images = range(entry["start"], entry["stop"])
        self.kept += [i for i in images if i not in skipped]
        self.skipped |= skipped
        self.next, self._n_columns = entry["stop"], entry["n_columns"]

    def append(self, embeddings, skipped):
        """Store the embeddings of the next images.

        Parameters
        ----------
        embeddings : ndarray of shape (n_images, n_columns)
            Their embeddings; rows of images that are left out are not stored.
        skipped : dict of str
            Why images are left out, by position.
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

        Parameters
        ----------
        table : pyarrow.Table
            Metadata, one row for every stored embedding.
        """
        from pyarrow import parquet

        shape = (len(self.kept), self._n_columns)
        self._rows.seek(0)
        rows = np.fromfile(self._rows, self.dtype).reshape(shape)
        if self.skipped:
            text = json.dumps(
                {str(i): why for i, why in self.skipped.items()}, indent=1
            )
            with replaced(self.skipped_path) as file:
                file.write(text.encode())
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
        found = json.loads(self.skipped_path.read_text())
        return {int(i): reason for i, reason in found.items()}


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
