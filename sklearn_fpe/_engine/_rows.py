"""Training rows: standardised, on the device, in batches.

Arrays in memory are standardised once, into a float32 tensor on the device, from which
whole batches are selected. Large arrays in files and sparse matrices are never copied
whole: their batches are made when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sklearn_fpe._engine._views import View, as_double, chunks
from sklearn_fpe.nn import MLP, Affine

SHUFFLE_BLOCK = 1024
"""Neighbouring rows of a streamed file that are read together."""

SHUFFLE_BYTES = 2**26
"""Bytes, as float32, of the blocks whose rows are shuffled among one another."""


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
        self.targets = targets.to(device)
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        self.device = device
        self.x: Tensor | None = None
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._arrange: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, rows: Any) -> Tensor:
        """Return some rows standardised, as a new float32 tensor on their device."""
        part = as_double(self.view.read(rows))
        if part.device not in self._tensors:
            self._tensors[part.device] = self.affine.tensors(part.device)
        mean, scale = self._tensors[part.device]
        part -= mean
        part /= scale
        return part.float()

    def arrange(self, network: MLP) -> bool:
        """Arrange the columns for ``network.arranged()`` where that saves time.

        Returns
        -------
        arranged : bool
            Whether batches have arranged columns from now on.
        """
        if not network.reorders_columns:
            return False
        self._arrange = network.arrange
        if self.x is not None:
            self.x = _replace(self.x, network.arrange)
        return True

    def _load(self) -> Tensor:
        if self.x is not None:
            return self.x
        x = None
        for rows in chunks(*self.view.shape):
            part = self.read(rows).to(self.device)
            if self._arrange is not None:
                part = self._arrange(part)
            if x is None:
                x = part.new_empty(len(self), part.shape[1])
            x[rows] = part
        assert x is not None
        self.x = x
        return x

    def batches(self, batch_size: int, seed: tuple[int, ...] | None = None) -> Batches:
        """Return an iterable of (x, (targets, weights)), shuffled if seeded."""
        return Batches(self, batch_size, seed)

    def iterate(self, batch_size: int, seed: tuple[int, ...] | None) -> Iterator:
        """Yield batches, see :meth:`batches`."""
        all_x = self._load()
        n = len(self)
        if seed is None:
            for start in range(0, n, batch_size):
                rows = slice(start, start + batch_size)
                yield all_x[rows], (self.targets[rows], self.weights[rows])
            return
        order = _permutation(n, seed).to(self.device)
        # Targets and weights are shuffled whole, which saves two selections a batch.
        targets, weights = self.targets[order], self.weights[order]
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            x = all_x.index_select(0, order[rows])
            yield x, (targets[rows], weights[rows])


class StreamedRows(Rows):
    """Training rows that stay where they are; batches are made on demand.

    Rows of a sparse matrix are shuffled like rows in memory. Rows in files are shuffled
    by blocks: blocks of :data:`SHUFFLE_BLOCK` neighbouring rows are read in random
    order, and :data:`SHUFFLE_BYTES` worth of them are shuffled among one another at a
    time, so that the files are read in runs and not row by row.
    """

    def iterate(self, batch_size: int, seed: tuple[int, ...] | None) -> Iterator:
        """Yield batches, see :meth:`Rows.batches`."""
        for order, x in self._pieces(batch_size, seed):
            for start in range(0, len(order), batch_size):
                part = slice(start, start + batch_size)
                rows = order[part]
                of_batch = rows.to(self.device)
                of_x = x(part, rows).to(self.device)
                if self._arrange is not None:
                    of_x = self._arrange(of_x)
                yield of_x, (self.targets[of_batch], self.weights[of_batch])

    def _pieces(
        self, batch_size: int, seed: tuple[int, ...] | None
    ) -> Iterator[tuple[Tensor, Callable[[slice, Tensor], Tensor]]]:
        """Yield row numbers and a function that reads a part of them."""
        n = len(self)
        if seed is None:
            yield torch.arange(n, device="cpu"), lambda part, rows: self.read(part)
        elif sparse.issparse(self.view.X):
            order = _permutation(n, seed)
            yield order, lambda part, rows: self.read(rows.numpy())
        else:
            yield from self._shuffled_blocks(batch_size, seed)

    def _shuffled_blocks(
        self, batch_size: int, seed: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Callable[[slice, Tensor], Tensor]]]:
        """Yield :meth:`_pieces` of rows in files, each row once.

        Rows that do not fill a batch are kept for the next piece, so that every batch
        but the last is full.
        """
        width = self.view.shape[1]
        # Used again and again: the losses of the steps between two pieces would land in
        # the memory of blocks that were freed, so that it could not be used for others.
        space = torch.empty(
            SHUFFLE_BLOCK, width, dtype=torch.float64, device="cpu"
        ).numpy()
        x = torch.empty(0, width, device="cpu")
        order = torch.empty(0, dtype=torch.int64, device="cpu")
        n_left = len(self)
        for g, blocks in enumerate(self._groups(batch_size, seed)):
            stops = np.cumsum([len(x), *(b.stop - b.start for b in blocks)]).tolist()
            kept, x = x, torch.empty(stops[-1], width, device="cpu")
            x[: len(kept)] = kept
            for block, start, stop in zip(blocks, stops[:-1], stops[1:], strict=True):
                self._read_into(x[start:stop], block, space)
            new = [torch.arange(b.start, b.stop, device="cpu") for b in blocks]
            order = torch.cat([order, *new])
            shuffle = _permutation(len(order), (*seed, g))
            n_left -= stops[-1] - stops[0]
            n_ready = len(order) - (len(order) % batch_size if n_left else 0)
            yield order[shuffle[:n_ready]], partial(_select_rows, x, shuffle)
            x, order = x[shuffle[n_ready:]], order[shuffle[n_ready:]]

    def _read_into(self, x: Tensor, block: slice, space: np.ndarray) -> None:
        """Read a block standardised, like :meth:`Rows.read`, by way of `space`."""
        space = space[: len(x)]
        space[...] = self.view.read(block)
        mean, scale = self.affine.tensors(x.device)
        x.copy_(torch.from_numpy(space).sub_(mean).div_(scale))

    def _groups(self, batch_size: int, seed: tuple[int, ...]) -> Iterator[list[slice]]:
        """Yield blocks of rows that are shuffled among one another.

        Runs are in random order. Each is cut into blocks, in the order of its rows.
        """
        together = SHUFFLE_BYTES // (4 * SHUFFLE_BLOCK * self.view.shape[1])
        most = SHUFFLE_BLOCK * max(1, together, -(-batch_size // SHUFFLE_BLOCK))
        starts = self.view.runs(SHUFFLE_BLOCK)
        ends = np.append(starts[1:], len(self))
        blocks: list[slice] = []
        n_rows = 0
        for run in _permutation(len(starts), seed).tolist():
            end = int(ends[run])
            for start in range(int(starts[run]), end, SHUFFLE_BLOCK):
                block = slice(start, min(start + SHUFFLE_BLOCK, end))
                if n_rows + block.stop - block.start > most:
                    yield blocks
                    blocks, n_rows = [], 0
                blocks.append(block)
                n_rows += block.stop - block.start
        yield blocks


def _select_rows(x: Tensor, shuffle: Tensor, part: slice, rows: Tensor) -> Tensor:
    """Return a part of shuffled rows, see :meth:`StreamedRows._pieces`."""
    return x.index_select(0, shuffle[part])


class Batches:
    """An iterable of batches that knows its length, as skorch wants it."""

    def __init__(
        self, rows: Rows, batch_size: int, seed: tuple[int, ...] | None
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator:
        return self.rows.iterate(self.batch_size, self.seed)


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
    for rows in chunks(n_rows, width):
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


def _permutation(n: int, seed: tuple[int, ...]) -> Tensor:
    """Return a random order of 0 ... n - 1 on the CPU, by a seed of several ints."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device="cpu").manual_seed(state)
    return torch.randperm(n, generator=generator, device="cpu")
