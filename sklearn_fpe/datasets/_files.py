"""Errors that name the file they are about."""

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
