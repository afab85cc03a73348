"""Files of rows: errors that name them, and a bounded number that is open."""

import threading
from collections import OrderedDict
from contextlib import contextmanager


class ShardError(ValueError):
    """A shard file cannot be used; the message names the file."""


@contextmanager
def naming(path):
    """Turn errors of a reader into errors that name the file."""
    try:
        yield
    except (ShardError, FileNotFoundError, PermissionError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise ShardError(f"{path!r} cannot be read: {error}") from error


class OpenFiles:
    """Readers of files, of which the least recently used ones are closed.

    Threads may share them. A pickle holds none, because another process opens its own.
    """

    def __init__(self):
        self._readers = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return OpenFiles, ()

    def __len__(self):
        return len(self._readers)

    def get(self, file):
        """Return the reader of a file.

        A file is a key with a method ``open``, and ``most_open``, the number of readers
        of its kind that are kept.
        """
        with self._lock:
            if file in self._readers:
                self._readers.move_to_end(file)
                return self._readers[file]
        reader = file.open()
        with self._lock:
            reader = self._readers.setdefault(file, reader)
            while len(self._readers) > file.most_open:
                self._readers.popitem(last=False)
        return reader
