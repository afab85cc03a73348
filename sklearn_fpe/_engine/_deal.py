"""How the rows of all processes are dealt to the steps of an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._rows import Rows, Shares

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
    alone : bool
        Whether there is no other process.
    """

    batch_size: int
    used: np.ndarray
    sizes: np.ndarray
    alone: bool

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.sizes)

    def batches(
        self, rows: Rows, seed: tuple[int, ...], shares: Shares | None = None
    ) -> Iterable[Batch]:
        """Return the shuffled batches of this process, one for every step.

        `shares` is passed to :meth:`Rows.batches` where there is no other process.
        """
        if self.alone:
            return rows.batches(self.batch_size, seed, shares)
        return DealtBatches(rows.batches(self.batch_size, seed), self)


def deal(counts: Sequence[int], rank: int, n_together: int) -> Deal:
    """Deal rows to steps of about `n_together` rows of all processes.

    Every process contributes to a step in proportion to its rows, rounded up. One with
    fewer rows than there are steps contributes to some of them, spread over the epoch.

    Parameters
    ----------
    counts : sequence of int
        Rows of every process, at least 1.
    rank : int
        Number of this process.
    n_together : int
        Rows of a step.

    Returns
    -------
    deal : Deal
        The part of this process.
    """
    n_steps = -(-sum(counts) // n_together)
    if len(counts) == 1:
        sizes = np.full(n_steps, n_together)
        sizes[-1] -= n_steps * n_together - counts[0]
        return Deal(n_together, np.ones(n_steps, dtype=bool), sizes, True)
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
    return Deal(own_size, own_used[kept], sizes[kept], len(counts) == 1)


class DealtBatches:
    """The batches of one process, with weights such that gradients can be added.

    The loss of a batch is its sum over rows divided by the rows of all processes. In a
    step to which the process contributes nothing, the batch is a row of weight 0.

    Parameters
    ----------
    batches : iterable of Batch
        Batches of any sizes.
    deal : Deal
        How they are dealt to the steps.
    """

    def __init__(self, batches: Iterable[Batch], deal: Deal) -> None:
        self.batches, self.deal = batches, deal
        self.sizes = deal.sizes

    def __len__(self) -> int:
        return self.deal.n_steps

    def __iter__(self) -> Iterator[Batch]:
        coming = recut(self.batches, self.deal.batch_size)
        first = None
        if not self.deal.used.all():
            first = next(coming)
            x, (targets, weights) = first
            idle = (x[:1].clone(), (targets[:1].clone(), weights[:1] * 0))
        for used, size in zip(self.deal.used, self.sizes.tolist(), strict=True):
            if not used:
                yield idle
                continue
            x, (targets, weights) = next(coming) if first is None else first
            first = None
            yield x, (targets, weights * (len(x) / size))


def recut(batches: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Yield batches of exactly `batch_size` rows, and the rest as the last one.

    Rows that are streamed come in batches of which some are shorter.
    """
    rest: Batch | None = None
    for batch in batches:
        if rest is not None:
            batch = _joined(rest, batch)
        rest = None
        if len(batch[0]) < batch_size:
            rest = batch
            continue
        while len(batch[0]) >= batch_size:
            yield _part(batch, slice(0, batch_size))
            batch = _part(batch, slice(batch_size, None))
        rest = batch if len(batch[0]) else None
    if rest is not None:
        yield rest


def _part(batch: Batch, rows: slice) -> Batch:
    x, (targets, weights) = batch
    return x[rows], (targets[rows], weights[rows])


def _joined(first: Batch, second: Batch) -> Batch:
    (x, (targets, weights)), (other_x, (other_targets, other_weights)) = first, second
    return (
        torch.cat([x, other_x]),
        (torch.cat([targets, other_targets]), torch.cat([weights, other_weights])),
    )
