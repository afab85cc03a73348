"""Training rows: standardised, on the device, in batches.

Arrays in memory are standardised once, into a float32 tensor on the device, from which
whole batches are selected. Large arrays in files and sparse matrices are never copied
whole: their batches are made when they are asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sklearn_fpe._engine._context import readable_memory_errors
from sklearn_fpe._engine._device import (
    chunk_bytes,
    is_accelerator,
    upload,
)
from sklearn_fpe._engine._orders import Orders, permutation
from sklearn_fpe._engine._views import STREAM_ABOVE, View, as_double, chunks
from sklearn_fpe.nn import MLP, Affine

SHUFFLE_BLOCK = 1024
"""Neighbouring rows of a streamed file that are read together."""

SHUFFLE_BYTES = 2**26
"""Bytes, as float32, of the blocks whose rows are shuffled among one another."""


NO_ROOM = (
    f"The rows do not fit. Pass X as a memory map of more than "
    f"{STREAM_ABOVE // 2**20} MB, np.load(path, mmap_mode='r'), or as a sparse matrix, "
    f"which are read in pieces, call partial_fit with pieces of X"
)
"""What to do if the rows do not fit into the memory of the device."""

Shares = Callable[[Tensor, int], tuple[Tensor, ...]]
"""Maps weights of rows and the size of their batches to what a loss needs of them."""


@dataclass(frozen=True)
class Epoch:
    """Rows that are on the device, and the order in which an epoch takes them.

    Parameters
    ----------
    x : tensor of shape (n_rows, n_features)
        Standardised rows, not shuffled.
    order : int64 tensor of shape (n_rows,)
        Numbers of rows in the order of the epoch.
    targets, weights : tensors of shape (n_rows, ...)
        Targets and weights in the order of the epoch.
    """

    x: Tensor
    order: Tensor
    targets: Tensor
    weights: Tensor


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
    affine : Affine
        The standardisation of the columns.
    device : torch.device
        Where the rows are kept.
    """

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
        self._orders = Orders(len(targets), device)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def resident(self) -> bool:
        """Whether all rows are kept on the device."""
        return True

    def read(self, rows: Any) -> Tensor:
        """Return some rows standardised, as a new float32 tensor on their device."""
        return self._standardise(self.view.read(rows))

    def _standardise(self, part: Any) -> Tensor:
        """Return standardised rows as a new float32 tensor on their device."""
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

        Rows that are arranged stay as they are.

        Returns
        -------
        arranged : bool
            Whether batches have arranged columns from now on.
        """
        if not network.reorders_columns:
            return False
        if self._arrange is not None:
            return True
        self._arrange = network.arrange
        if self.x is not None:
            self.x = _replace(self.x, network.arrange)
        return True

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
            raw = self.view.pieces(slices, self.device)
            parts = map(self._standardise, raw)
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
        """Return an iterable of (x, (targets, weights)), shuffled if seeded.

        With `shares`, what it returns follows the weights. It is called once for all
        batches of one size.
        """
        return Batches(self, batch_size, seed, shares)

    def epoch(self, seed: tuple[int, ...]) -> Epoch:
        """Return all rows, and a random order of them."""
        x, order = self._load(), self._orders.take(seed)
        # Targets and weights are shuffled whole, which saves two selections a batch.
        return Epoch(x, order, self.targets[order], self.weights[order])

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


class StreamedRows(Rows):
    """Training rows that stay where they are; batches are made on demand.

    Rows of a sparse matrix are shuffled like rows in memory. Rows in files are shuffled
    by blocks: blocks of :data:`SHUFFLE_BLOCK` neighbouring rows are read in random
    order, and :data:`SHUFFLE_BYTES` worth of them are shuffled among one another at a
    time, so that the files are read in runs and not row by row.

    Other devices than the CPU get such a group of rows at a time, as it is stored, and
    standardise and shuffle it; the next group is read meanwhile.
    """

    @property
    def resident(self) -> bool:
        """Whether all rows are kept on the device."""
        return False

    def iterate(
        self,
        batch_size: int,
        seed: tuple[int, ...] | None,
        shares: Shares | None = None,
    ) -> Iterator:
        """Yield batches, see :meth:`Rows.batches`."""
        if is_accelerator(self.device):
            yield from self._iterate_ahead(batch_size, seed)
            return
        for order, x in self._pieces(batch_size, seed):
            for start in range(0, len(order), batch_size):
                part = slice(start, start + batch_size)
                rows = order[part]
                of_x = x(part, rows)
                if self._arrange is not None:
                    of_x = self._arrange(of_x)
                yield of_x, (self.targets[rows], self.weights[rows])

    def _pieces(
        self, batch_size: int, seed: tuple[int, ...] | None
    ) -> Iterator[tuple[Tensor, Callable[[slice, Tensor], Tensor]]]:
        """Yield row numbers and a function that reads a part of them."""
        n = len(self)
        if seed is None:
            yield torch.arange(n, device="cpu"), lambda part, rows: self.read(part)
        elif sparse.issparse(self.view.X):
            order = permutation(n, seed)
            yield order, lambda part, rows: self.read(rows.numpy())
        else:
            yield from self._shuffled_blocks(batch_size, seed)

    def _shuffled_blocks(
        self, batch_size: int, seed: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Callable[[slice, Tensor], Tensor]]]:
        """Yield :meth:`_pieces` of rows in files, each row once."""
        width = self.view.shape[1]
        # Used again and again: the losses of the steps between two pieces would land in
        # the memory of blocks that were freed, so that it could not be used for others.
        space = torch.empty(
            SHUFFLE_BLOCK, width, dtype=torch.float64, device="cpu"
        ).numpy()
        kept = torch.empty(0, width, device="cpu")
        for group in self._groups_of_blocks(batch_size, seed):
            stops = np.cumsum([len(kept), *(b.stop - b.start for b in group.reads)])
            x = torch.empty(int(stops[-1]), width, device="cpu")
            x[: len(kept)] = kept
            parts = x[len(kept) :].split(np.diff(stops).tolist())
            for block, part in zip(group.reads, parts, strict=True):
                self._read_into(part, block, space)
            assert group.shuffle is not None
            yield group.order, partial(_select_rows, x, group.shuffle)
            kept = x[group.shuffle[len(group.order) :]]

    def _read_into(self, x: Tensor, block: slice, space: np.ndarray) -> None:
        """Read a block standardised, like :meth:`Rows.read`, by way of `space`."""
        space = space[: len(x)]
        space[...] = self.view.read(block)
        mean, scale = self.affine.tensors(x.device)
        x.copy_(torch.from_numpy(space).sub_(mean).div_(scale))

    def _groups_of_blocks(
        self, batch_size: int, seed: tuple[int, ...]
    ) -> Iterator[_Group]:
        """Yield groups of blocks of rows in files that are shuffled together.

        Rows that do not fill a batch are kept for the next group, so that every batch
        but the last is full.
        """
        order = torch.empty(0, dtype=torch.int64, device="cpu")
        n_left = len(self)
        for g, blocks in enumerate(self._blocks(batch_size, seed)):
            new = [torch.arange(b.start, b.stop, device="cpu") for b in blocks]
            order = torch.cat([order, *new])
            shuffle = permutation(len(order), (*seed, g))
            n_left -= sum(map(len, new))
            n_ready = len(order) - (len(order) % batch_size if n_left else 0)
            yield _Group(blocks, order[shuffle[:n_ready]], shuffle)
            order = order[shuffle[n_ready:]]

    def _blocks(self, batch_size: int, seed: tuple[int, ...]) -> Iterator[list[slice]]:
        """Yield blocks of rows that are shuffled among one another.

        Runs are in random order. Each is cut into blocks, in the order of its rows.
        """
        together = SHUFFLE_BYTES // (4 * SHUFFLE_BLOCK * self.view.shape[1])
        most = SHUFFLE_BLOCK * max(1, together, -(-batch_size // SHUFFLE_BLOCK))
        starts = self.view.runs(SHUFFLE_BLOCK)
        ends = np.append(starts[1:], len(self))
        blocks: list[slice] = []
        n_rows = 0
        for run in permutation(len(starts), seed).tolist():
            end = int(ends[run])
            for start in range(int(starts[run]), end, SHUFFLE_BLOCK):
                block = slice(start, min(start + SHUFFLE_BLOCK, end))
                if n_rows + block.stop - block.start > most:
                    yield blocks
                    blocks, n_rows = [], 0
                blocks.append(block)
                n_rows += block.stop - block.start
        yield blocks

    def _groups(
        self, batch_size: int, seed: tuple[int, ...] | None
    ) -> Iterator[_Group]:
        """Yield groups of whole batches to read at a time."""
        if seed is not None and not sparse.issparse(self.view.X):
            yield from self._groups_of_blocks(batch_size, seed)
            return
        n = len(self)
        order = torch.arange(n, device="cpu")
        if seed is not None:
            order = permutation(n, seed)
        n_batches = SHUFFLE_BYTES // (4 * self.view.shape[1] * batch_size)
        step = max(1, n_batches) * batch_size
        for start in range(0, n, step):
            rows = order[start : start + step]
            reads = slice(start, start + len(rows)) if seed is None else rows.numpy()
            yield _Group([reads], rows, None)

    def _iterate_ahead(self, batch_size: int, seed: tuple[int, ...] | None) -> Iterator:
        """Yield batches on another device than the CPU, while the next are read."""
        waiting: deque[_Group] = deque()
        kept: Tensor | None = None

        def selections() -> Iterator[Any]:
            for group in self._groups(batch_size, seed):
                waiting.append(group)
                yield group.rows()

        for raw in self.view.pieces(selections(), self.device):
            group = waiting.popleft()
            x = self._standardise(raw)
            if self._arrange is not None:
                x = self._arrange(x)
            order = upload(group.order, self.device)
            targets, weights = self.targets[order], self.weights[order]
            if group.shuffle is not None:
                x = x if kept is None else torch.cat([kept, x])
                x = x.index_select(0, upload(group.shuffle, self.device))
                x, kept = x[: len(order)], x[len(order) :]
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                yield x[part], (targets[part], weights[part])


@dataclass(frozen=True)
class _Group:
    """Rows that are read together.

    Parameters
    ----------
    reads : list of slices or int arrays
        What to read.
    order : int tensor of shape (n,)
        Numbers of the rows of the next batches, in their order.
    shuffle : int tensor or None
        Order of the rows that were kept and of those read: the first n are those of
        the batches, the others are kept. None: the rows read, as they are.
    """

    reads: list[Any]
    order: Tensor
    shuffle: Tensor | None

    def rows(self) -> Any:
        """Return what to read, in one selection."""
        if len(self.reads) == 1:
            return self.reads[0]
        return np.concatenate([np.arange(r.start, r.stop) for r in self.reads])


def _select_rows(x: Tensor, shuffle: Tensor, part: slice, rows: Tensor) -> Tensor:
    """Return a part of shuffled rows, see :meth:`StreamedRows._pieces`."""
    return x.index_select(0, shuffle[part])


class Batches:
    """An iterable of batches that knows its length, as skorch wants it."""

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: tuple[int, ...] | None,
        shares: Shares | None = None,
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.shares = shares

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator:
        return self.rows.iterate(self.batch_size, self.seed, self.shares)


def make_rows(
    view: View,
    targets: Tensor,
    weights: np.ndarray,
    affine: Affine,
    device: torch.device,
) -> Rows:
    """Make :class:`Rows`, or :class:`StreamedRows` of what must not be copied."""
    kind = StreamedRows if view.streamed else Rows
    return kind(view, targets, weights, affine, device)


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
