"""Training rows in memory: standardised once, on the device, in shuffled batches."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._context import readable_memory_errors
from sklearn_fpe._engine._device import (
    chunk_bytes,
    host_buffer,
    is_accelerator,
    upload,
)
from sklearn_fpe._engine._views import STREAM_ABOVE, View, as_double, chunks
from sklearn_fpe.nn import MLP, Affine

NO_ROOM = (
    f"The rows do not fit. Pass X as a memory map of more than "
    f"{STREAM_ABOVE // 2**20} MB, np.load(path, mmap_mode='r'), or as a sparse matrix, "
    f"which are read in pieces, call partial_fit with pieces of X"
)
"""Advice if the rows do not fit into the memory of the device."""

Shares = Callable[[Tensor, int], tuple[Tensor, ...]]
"""A function like :meth:`Loss.shares`, of weights and the size of a batch."""


@dataclass(frozen=True)
class ShuffledRows:
    """Rows on the device, and the order in which an epoch takes them."""

    x: Tensor  # (n_rows, n_features), standardised, not shuffled
    order: Tensor  # (n_rows,), int64: numbers of rows
    targets: Tensor  # (n_rows, ...), in the order of the epoch
    weights: Tensor  # (n_rows, ...), in the order of the epoch


class Rows:
    """Training rows, standardised; on the device from their first use on.

    Parameters
    ----------
    view : View of shape (n_rows, n_features)
        Input rows.
    targets : tensor of shape (n_rows, ...)
        Encoded targets.
    weights : ndarray of shape (n_rows,) or (n_rows, n_outputs)
        Weights of rows or entries, of mean 1.
    affine, device : Affine, torch.device
        Standardisation of the columns, and where to keep the rows.
    """

    resident = True
    """Whether all rows are kept on the device."""

    def __init__(
        self,
        view: View,
        targets: Tensor,
        weights: np.ndarray,
        affine: Affine,
        device: torch.device,
    ) -> None:
        self.view, self.affine = view, affine
        self.targets = upload(targets, device)
        self.weights = upload(torch.from_numpy(weights.astype(np.float32)), device)
        self.device = device
        self.x: Tensor | None = None
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._arrange: Callable[[Tensor], Tensor] | None = None
        self._drawing: _Draw | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, rows: Any) -> Tensor:
        """Return some rows standardised, as a new float32 tensor on their device."""
        return self._standardise(self.view.read(rows))

    def _standardise(self, part: Any) -> Tensor:
        part = as_double(part)
        if part.device not in self._tensors:
            mean, scale = self.affine.tensors("cpu")
            there = upload(mean, part.device), upload(scale, part.device)
            self._tensors[part.device] = there
        mean, scale = self._tensors[part.device]
        part -= mean
        part /= scale
        return part.float()

    def arrange(self, network: MLP) -> bool:
        """Arrange the columns for ``network.arranged()`` where that saves time.

        Returns whether batches have arranged columns from now on. Rows that are
        arranged already stay as they are.
        """
        if network.reorders_columns and self._arrange is None:
            self._arrange = network.arrange
            if self.x is not None:
                self.x = _replace(self.x, network.arrange)
        return network.reorders_columns

    def _load(self) -> Tensor:
        if self.x is None:
            with readable_memory_errors(self.device, NO_ROOM):
                self.x = self._loaded()
        return self.x

    def _loaded(self) -> Tensor:
        x = None
        slices = list(chunks(*self.view.shape, chunk_bytes(self.device)))
        parts: Iterator[Tensor]
        if is_accelerator(self.device):
            parts = map(self._standardise, self.view.pieces(slices, self.device))
        else:
            parts = (self.read(rows).to(self.device) for rows in slices)
        for rows, part in zip(slices, parts, strict=True):
            if self._arrange is not None:
                part = self._arrange(part)
            if x is None:
                x = part.new_empty(len(self), part.shape[1])
            x[rows] = part
        assert x is not None
        return x

    def batches(
        self,
        batch_size: int,
        seed: tuple[int, ...] | None = None,
        shares: Shares | None = None,
    ) -> Batches:
        """Return an iterable of (x, (targets, weights, *shares)), shuffled if seeded.

        `shares` is called once for all batches of one size.
        """
        return Batches(self, batch_size, seed, shares)

    def epoch(self, seed: tuple[int, ...]) -> ShuffledRows:
        """Return all rows, and a random order of them."""
        x, order = self._load(), self._take_order(seed)
        # Targets and weights are shuffled whole, which saves two selections a batch.
        return ShuffledRows(x, order, self.targets[order], self.weights[order])

    def _take_order(self, seed: tuple[int, ...]) -> Tensor:
        """Return the order of an epoch, whose number is the last entry of its seed.

        All devices get the order that the CPU draws. For another device, a thread draws
        the next epoch's order during this epoch, so that the device does not wait.
        """
        if not is_accelerator(self.device):
            return permutation(len(self), seed)
        draw = self._drawing
        if draw is None or draw.seed != seed:
            draw = _Draw(len(self), seed, self.device)
        order = draw.result()
        self._drawing = _Draw(len(self), (*seed[:-1], seed[-1] + 1), self.device)
        return order.to(self.device, non_blocking=True)

    def iterate(
        self,
        batch_size: int,
        seed: tuple[int, ...] | None,
        shares: Shares | None = None,
    ) -> Iterator:
        """Yield batches, see :meth:`batches`."""
        n = len(self)
        if seed is None:
            x = self._load()
            for start in range(0, n, batch_size):
                rows = slice(start, start + batch_size)
                yield x[rows], (self.targets[rows], self.weights[rows])
            return
        epoch = self.epoch(seed)
        n_full = n - n % batch_size
        for first, last in ((0, n_full), (n_full, n)):
            size = min(batch_size, last - first)
            if not size:
                continue
            weights = epoch.weights[first:last]
            parts = [epoch.order[first:last], epoch.targets[first:last], weights]
            if shares is not None:
                parts += shares(weights, size)
            # Split at once, because slicing batch by batch takes longer.
            batches = zip(*(part.split(size) for part in parts), strict=True)
            for order, *target in batches:
                yield epoch.x.index_select(0, order), tuple(target)


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable of batches that knows its length, as skorch requires."""

    rows: Rows
    batch_size: int
    seed: tuple[int, ...] | None
    shares: Shares | None

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator:
        return self.rows.iterate(self.batch_size, self.seed, self.shares)


def _replace(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Map rows piece by piece, in their memory if the result is not wider."""
    n_rows, width = x.shape
    out = None
    for rows in chunks(n_rows, width, chunk_bytes(x.device)):
        part = function(x[rows])
        if out is None:
            shape = (n_rows, part.shape[1])
            # Narrower rows end before the first of those that are yet to be read.
            has_room = shape[1] <= width
            out = x.view(-1)[: math.prod(shape)] if has_room else x.new_empty(shape)
            out = out.view(shape)
        out[rows] = part
    assert out is not None
    return out


class _Draw:
    """An order that a thread draws into pinned memory."""

    def __init__(
        self, n_rows: int, seed: tuple[int, ...], device: torch.device
    ) -> None:
        self.seed = seed
        self._thread = threading.Thread(target=self._run, args=(n_rows, device))
        self._thread.start()

    def _run(self, n_rows: int, device: torch.device) -> None:
        out = host_buffer((n_rows,), torch.int64, device)
        self.order = permutation(n_rows, self.seed, out)

    def result(self) -> Tensor:
        """Wait for the order, which is drawn before it is needed as a rule."""
        self._thread.join()
        return self.order


def permutation(n: int, seed: tuple[int, ...], out: Tensor | None = None) -> Tensor:
    """Return a random order of 0 ... n - 1 on the CPU, by a seed of several ints."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device="cpu").manual_seed(state)
    return torch.randperm(n, generator=generator, device="cpu", out=out)
