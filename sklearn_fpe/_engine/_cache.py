"""A cache of dense warm-ups on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib

from sklearn_fpe._engine._lazy import LazyArray

Warm = tuple[dict, list[float]]
"""Weights by name, as arrays, and the losses of the epochs."""


class StoppedError(Exception):
    """A callback stopped the warm-up, so its result must not be cached."""


class WarmUpCache:
    """Takes the result of a warm-up from disk, or runs it and stores it.

    Parameters
    ----------
    memory : joblib.Memory
        Where results are stored, as pickles: only for folders that you trust.
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
    """Return a digest of arrays.

    By SHA-1, because it takes less than half the time of joblib's default, MD5. Lazy
    arrays are read, because their files may change.
    """
    parts = [a.digest() if isinstance(a, LazyArray) else a for a in arrays]
    return joblib.hash(tuple(parts), hash_name="sha1")


def _warm_up(key: dict[str, Any], compute: Callable[[], Warm]) -> Warm:
    """Run the warm-up that `key` describes; joblib caches what comes back."""
    return compute()
