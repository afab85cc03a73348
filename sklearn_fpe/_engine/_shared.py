"""Results that several trainings on the same rows compute once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from sklearn_fpe._engine._cache import data_digest
from sklearn_fpe._engine._views import Sample

T = TypeVar("T")

MAX_ARRANGED_BYTES = 2**28
"""Most bytes, as float32, of rows that are copied for every partition of columns."""


class Shared:
    """Results by key, for trainings with equal inputs.

    Equal samples are replaced by one object, so that its identity can be a key.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result for `key`; the first call computes it by ``make()``."""
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def sample(self, sample: Sample) -> Sample:
        """Return the first sample that was equal to this one."""
        key = data_digest(
            sample.view.index, sample.y, sample.weights, sample.entry_weights
        )
        return self.get(("sample", id(sample.view.X), key), lambda: sample)
