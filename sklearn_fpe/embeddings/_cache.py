"""Embeddings on disk: one SQLite file, which processes and threads share."""

import hashlib
import json
import sqlite3
import threading
import zlib
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from sklearn_fpe._optional import optional_version

# Part of every key: to be raised when the pixels of an image are computed differently.
_VERSION = 1
_DTYPE = np.dtype("<f4")
_TABLE = """
CREATE TABLE IF NOT EXISTS entries
(key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL)
"""
_LOCK_TIMEOUT_S = 30


class EmbeddingCache:
    """Embeddings before normalisation, by model and by content of the image.

    The table contains the bytes of float32 vectors, and the SHA-256 of weight files. An
    entry whose checksum does not fit its key and value counts as missing, and is
    replaced. Threads may share the cache and its `database`, a connection to the file
    `path`. The model and its preprocessing are part of the keys.
    """

    def __init__(self, database, path, checkpoint, dtype):
        self._database = database
        self._path = path
        self._lock = threading.Lock()
        self._model_key = model_key(checkpoint, dtype, self._file_digest)

    def get(self, image_key):
        """Kept embedding, ndarray of shape (n_features_out,), or None."""
        value = self._read(f"{self._model_key} {image_key}")
        if value is None or len(value) % _DTYPE.itemsize:
            return None
        vector = np.frombuffer(value, dtype=_DTYPE)
        return vector if vector.size and np.isfinite(vector).all() else None

    def put(self, vectors):
        """Keep embeddings by image key, all in one transaction."""
        self._write(
            {
                f"{self._model_key} {image_key}": vector.astype(_DTYPE).tobytes()
                for image_key, vector in vectors.items()
            }
        )

    def _file_digest(self, file):
        """SHA-256 of a file, kept as well, because weights take seconds to read."""
        key = json.dumps(file)
        digest = self._read(key)
        if digest is None:
            digest = bytes.fromhex(file_digest(file))
            self._write({key: digest})
        return digest.hex()

    def _read(self, key):
        query = "SELECT value, checksum FROM entries WHERE key = ?"
        with self._lock, _explained_errors(self._path):
            rows = self._database.execute(query, (key,)).fetchall()
        for value, checksum in rows:
            if isinstance(value, bytes) and checksum == _checksum(key, value):
                return value
        return None

    def _write(self, values):
        rows = [(key, value, _checksum(key, value)) for key, value in values.items()]
        with self._lock, _explained_errors(self._path), self._database:
            # Take the lock at once: two readers that both want to write deadlock.
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("REPLACE INTO entries VALUES (?, ?, ?)", rows)


def model_key(checkpoint, dtype, file_digest):
    """Digest of a model and its preprocessing: all that embeddings depend on.

    `file_digest` takes one of the checkpoint's files and returns its digest.
    """
    parts = [
        _VERSION,
        checkpoint.identity(file_digest),
        dtype,
        # What decodes and resizes the images is part of the preprocessing.
        *(f"{p} {optional_version(p)}" for p in ("transformers", "pillow")),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(file):
    """SHA-256 of a file that is given with its size, times and inode."""
    with open(file[0], "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def open_cache(folder, checkpoint, dtype):
    """Open the cache in `folder` for one model, None if `folder` is None.

    SQLite's rollback journal is kept: its write-ahead log would need memory that
    processes share, which network file systems do not have.
    """
    if folder is None:
        yield None
        return
    path = Path(folder).expanduser() / "embeddings.sqlite"
    with _explained_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(
            path, _LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    with closing(database):
        with _explained_errors(path):
            # Several rows of 2 KiB, 512 floats, fit into a page; 4 KiB hold only one.
            database.execute("PRAGMA page_size = 16384")
            database.execute(_TABLE)
        yield EmbeddingCache(database, path, checkpoint, dtype)


def _checksum(key, value):
    return zlib.crc32(value, zlib.crc32(key.encode()))


@contextmanager
def _explained_errors(path):
    """Name the file and the way out in errors of the cache.

    A damaged file is not replaced: another process may be writing to it, and its
    journal would then be applied to the new file.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        damaged = getattr(exc, "sqlite_errorname", "").startswith(
            ("SQLITE_CORRUPT", "SQLITE_NOTADB")
        )
        hint = "It is damaged: delete it, and embeddings are computed again. "
        raise OSError(
            f"memory={str(path.parent)!r}: the cache {path.name!r} in it cannot be "
            f"used. {hint if damaged else ''}{type(exc).__name__}: {exc}"
        ) from exc
