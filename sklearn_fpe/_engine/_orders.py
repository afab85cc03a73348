"""Random orders of rows, drawn ahead where a device would wait for them."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._device import host_buffer, is_accelerator


class Orders:
    """Random orders of rows on a device, equal on all kinds of device.

    They are drawn on the CPU. On another device the next epoch's order is drawn in a
    thread during this one, and copied from pinned memory, so that nothing waits for it.

    Parameters
    ----------
    n_rows : int
        Rows.
    device : torch.device
        Where orders are needed.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        self.n_rows, self.device = n_rows, device
        self._next: _Draw | None = None

    def take(self, seed: tuple[int, ...]) -> Tensor:
        """Return the order of an epoch, whose number is the last entry of its seed."""
        if not is_accelerator(self.device):
            return permutation(self.n_rows, seed)
        draw, self._next = self._next, None
        if draw is None or draw.seed != seed:
            draw = _Draw(self.n_rows, seed, self.device)
        order = draw.result()
        self._next = _Draw(self.n_rows, (*seed[:-1], seed[-1] + 1), self.device)
        return order.to(self.device, non_blocking=True)


class _Draw:
    """An order that is being drawn in a thread."""

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
