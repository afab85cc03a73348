"""Errors of shard files, which name the file."""

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


def check_size(file, n_bytes):
    """Check that a file still has the size that it had when it was inspected."""
    if n_bytes != file.n_bytes:
        raise ShardError(
            f"{file.path!r} has changed since it was opened: it must have "
            f"{file.n_bytes} bytes, it has {n_bytes}."
        )
