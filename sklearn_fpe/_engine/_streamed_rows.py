"""Training rows in files and sparse matrices, read in pieces at every use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sklearn_fpe._engine._device import is_accelerator, upload
from sklearn_fpe._engine._rows import Rows, Shares, permutation

SHUFFLE_BLOCK = 1024
"""Neighbouring rows of a streamed file that are read together."""

SHUFFLE_BYTES = 2**26
"""Bytes, as float32, of the blocks whose rows are shuffled among one another."""


class StreamedRows(Rows):
    """Training rows that stay where they are; batches are made on demand.

    Rows of a sparse matrix are shuffled like rows in memory. Rows in files are shuffled
    by blocks: blocks of :data:`SHUFFLE_BLOCK` neighbouring rows are read in random
    order, and :data:`SHUFFLE_BYTES` worth of them are shuffled among one another at a
    time, so that the files are read in runs and not row by row.
    """

    resident = False

    def iterate(
        self,
        batch_size: int,
        seed: tuple[int, ...] | None,
        shares: Shares | None = None,
    ) -> Iterator:
        """Yield batches, see :meth:`Rows.batches`."""
        batches: Iterator[tuple[Tensor, Tensor]]
        if seed is None or sparse.issparse(self.view.X):
            groups = self._groups_of_batches(batch_size, seed)
            batches = ((self.read(group.reads[0]), group.order) for group in groups)
        else:
            groups = self._groups_of_blocks(batch_size, seed)
            batches = self._shuffle_blocks(groups, batch_size)
        if is_accelerator(self.device):
            yield from self._read_ahead(groups, batch_size)
            return
        for x, rows in batches:
            if self._arrange is not None:
                x = self._arrange(x)
            yield x, (self.targets[rows], self.weights[rows])

    def _shuffle_blocks(
        self, groups: Iterator[_Group], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches on the CPU, and the numbers of their rows."""
        width = self.view.shape[1]
        # Allocated once, because losses of the steps between two groups would land in
        # the memory of a freed block, so that the next block did not fit there.
        space = torch.empty(
            SHUFFLE_BLOCK, width, dtype=torch.float64, device="cpu"
        ).numpy()
        kept = torch.empty(0, width, device="cpu")
        for group in groups:
            lengths = [block.stop - block.start for block in group.reads]
            x = torch.empty(len(kept) + sum(lengths), width, device="cpu")
            x[: len(kept)] = kept
            parts = x[len(kept) :].split(lengths)
            for block, part in zip(group.reads, parts, strict=True):
                self._read_into(part, block, space)
            assert group.shuffle is not None
            n_ready = len(group.order)  # 0 where the group is smaller than a batch
            ready, waiting = group.shuffle[:n_ready], group.shuffle[n_ready:]
            for start in range(0, n_ready, batch_size):
                part = slice(start, start + batch_size)
                yield x.index_select(0, ready[part]), group.order[part]
            kept = x[waiting]

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

    def _groups_of_batches(
        self, batch_size: int, seed: tuple[int, ...] | None
    ) -> Iterator[_Group]:
        """Yield groups of whole batches that are read in their order.

        On the CPU of one batch; on another device, of :data:`SHUFFLE_BYTES`.
        """
        n, n_batches = len(self), 1
        order = torch.arange(n, device="cpu") if seed is None else permutation(n, seed)
        if is_accelerator(self.device):
            n_batches = SHUFFLE_BYTES // (4 * self.view.shape[1] * batch_size)
        for rows in order.split(max(1, n_batches) * batch_size):
            first = int(rows[0])
            reads = slice(first, first + len(rows)) if seed is None else rows.numpy()
            yield _Group([reads], rows, None)

    def _read_ahead(self, groups: Iterator[_Group], batch_size: int) -> Iterator:
        """Yield batches on another device than the CPU.

        It gets a group of rows as they are stored, standardises and shuffles them. The
        next group is read meanwhile.
        """
        waiting: deque[_Group] = deque()
        kept: Tensor | None = None

        def selections() -> Iterator[Any]:
            for group in groups:
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
    """Rows that are read together."""

    reads: list[Any]  # selections of rows to read: slices or int arrays
    order: Tensor  # (n,), numbers of the rows of the next batches, in their order
    # Order of the rows kept from the last group and the rows read. The first n make the
    # batches, the others are kept. None: the batches are the rows read.
    shuffle: Tensor | None

    def rows(self) -> Any:
        """Return all reads as one selection."""
        if len(self.reads) == 1:
            return self.reads[0]
        return np.concatenate([np.arange(r.start, r.stop) for r in self.reads])
