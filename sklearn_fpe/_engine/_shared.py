"""What trainings on the same rows have in common, and compute once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from sklearn_fpe._engine._cache import data_digest
from sklearn_fpe._engine._views import Sample

T = TypeVar("T")

MAX_ARRANGED_BYTES = 2**28
"""Bytes, as float32, of rows of which a copy is arranged for every partition."""


class Shared:
    """Results by key, for trainings whose inputs are equal.

    Samples are made one object if they are equal, so that what is computed from rows
    is found again by the identity of the sample.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make()`` returned when `key` was first asked for."""
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def sample(self, sample: Sample) -> Sample:
        """Return the first sample that was equal to this one."""
        key = data_digest(
            sample.view.index, sample.y, sample.weights, sample.entry_weights
        )
        return self.get(("sample", id(sample.view.X), key), lambda: sample)
