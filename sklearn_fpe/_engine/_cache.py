"""A cache of dense warm-ups on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib

from sklearn_fpe._engine._lazy import LazyArray

Warm = tuple[dict, list[float]]
"""Weight arrays by name, and the losses of the epochs."""


class StoppedError(Exception):
    """A callback has stopped the warm-up, so its result must not be cached."""


class WarmUpCache:
    """Takes the result of a warm-up from disk, or runs it and stores it.

    Parameters
    ----------
    memory : joblib.Memory
        The folder of the results. They are pickles, so the folder must be trusted.
    key : dict
        Everything that the result depends on.
    """

    def __init__(self, memory: joblib.Memory, key: dict[str, Any]) -> None:
        self._call = memory.cache(_warm_up, ignore=["compute"])
        self._key = key

    def __call__(self, compute: Callable[[], Warm]) -> Warm:
        """Return the stored result, or that of ``compute()``."""
        return self._call(self._key, compute)


def data_digest(*arrays: Any) -> str:
    """Return the SHA-1 of arrays, which takes half the time of MD5, joblib's default.

    Lazy arrays are read, because their files may change.
    """
    parts = [a.digest() if isinstance(a, LazyArray) else a for a in arrays]
    return joblib.hash(tuple(parts), hash_name="sha1")


def _warm_up(key: dict[str, Any], compute: Callable[[], Warm]) -> Warm:
    """Run the warm-up that `key` describes; joblib caches the result by `key`."""
    return compute()
