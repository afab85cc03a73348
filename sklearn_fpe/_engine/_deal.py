"""How the rows of several processes are dealt to the steps of an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sklearn_fpe._engine._rows import Rows

Batch = tuple[Tensor, tuple[Tensor, Tensor]]
"""Inputs, and their targets and weights."""


@dataclass(frozen=True)
class Deal:
    """The part of one process in the steps of an epoch.

    All processes do the same number of steps, because every step adds their gradients.

    Parameters
    ----------
    batch_size : int
        Rows of this process in a step; the last one may have fewer.
    used : bool ndarray of shape (n_steps,)
        The steps to which this process contributes rows.
    sizes : int ndarray of shape (n_steps,)
        Rows of all processes together in every step, at least 1.
    """

    batch_size: int
    used: np.ndarray
    sizes: np.ndarray

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.sizes)

    def batches(self, rows: Rows, seed: tuple[int, ...]) -> DealtBatches:
        """Return the shuffled batches of this process, one for every step."""
        return DealtBatches(rows.batches(self.batch_size, seed), self)


def deal(counts: Sequence[int], rank: int, n_together: int) -> Deal:
    """Deal rows to steps of about `n_together` rows of all processes.

    Every process contributes to a step in proportion to its rows, rounded up. One with
    fewer rows than there are steps contributes to some of them, spread over the epoch.
    `counts` are the rows of every process, at least 1; `rank` is this process.
    """
    n_steps = -(-sum(counts) // n_together)
    steps = np.arange(n_steps + 1)
    sizes = np.zeros(n_steps, dtype=np.int64)
    for process, n_rows in enumerate(counts):
        size = -(-n_rows // n_steps)
        n_used = -(-n_rows // size)
        # Processes of equal size contribute to different steps.
        shift = process * n_steps // len(counts)
        used = np.diff((steps * n_used + shift) // n_steps) > 0
        sizes[used] += size
        sizes[np.flatnonzero(used)[-1]] -= n_used * size - n_rows
        if process == rank:
            own_size, own_used = size, used
    kept = sizes > 0
    return Deal(own_size, own_used[kept], sizes[kept])


class DealtBatches:
    """The batches of one process, with weights such that gradients can be added.

    The loss of a batch is its sum over rows divided by the rows of all processes. In a
    step to which the process contributes nothing, the batch is a row of weight 0. The
    given batches have ``deal.batch_size`` rows, the last one may have fewer.
    """

    def __init__(self, batches: Iterable[Batch], deal: Deal) -> None:
        self.batches, self.deal = batches, deal
        self.sizes = deal.sizes

    def __len__(self) -> int:
        return self.deal.n_steps

    def __iter__(self) -> Iterator[Batch]:
        coming = iter(self.batches)
        first = next(coming)
        x, (targets, weights) = first
        idle = x[:1].clone(), (targets[:1].clone(), weights[:1] * 0)
        coming = itertools.chain([first], coming)
        for used, size in zip(self.deal.used, self.sizes.tolist(), strict=True):
            if used:
                x, (targets, weights) = next(coming)
                yield x, (targets, weights * (len(x) / size))
            else:
                yield idle
