"""Chunk sizes by kind of device, and copies to a device that do not block the host.

The host queues work for a GPU and does not wait for it, except for results that Python
needs and for copies from pageable memory. Copies from pinned memory do not block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 2**20
"""Bytes, as float64, of a chunk of rows that the CPU converts: it fits the cache."""

PREDICTION_BYTES = 2**22
"""Bytes of rows and activations of a chunk that the CPU predicts: it fits the cache."""

LARGE_CHUNK_BYTES = LARGE_PREDICTION_BYTES = 2**28
"""The same on other kinds of device, where every chunk costs some launches."""

LEAST_LARGE_BYTES = 2**24
"""Least bytes of a chunk on a GPU with little free memory."""

PINNING = frozenset({"cuda"})
"""The kinds of device that copy from pinned memory without blocking the host."""


def is_accelerator(device: torch.device) -> bool:
    """Tell whether a device is not the CPU."""
    return device.type != "cpu"


def chunk_bytes(device: torch.device) -> int:
    """Return the bytes, as float64, of a chunk of rows that is converted."""
    return _that_fit(device, LARGE_CHUNK_BYTES, CHUNK_BYTES)


def prediction_bytes(device: torch.device) -> int:
    """Return the bytes of rows and activations of a chunk that is predicted."""
    return _that_fit(device, LARGE_PREDICTION_BYTES, PREDICTION_BYTES)


def _that_fit(device: torch.device, large: int, on_cpu: int) -> int:
    """Return `large` bytes, or as many as an eighth of a GPU's free memory."""
    if device.type != "cuda":
        return large if is_accelerator(device) else on_cpu
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that torch has reserved but does not use is free, too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(LEAST_LARGE_BYTES, min(large, free // 8))


def empty_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor in pinned memory of the host."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)


def host_buffer(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return an uninitialised CPU tensor that can be copied without blocking."""
    if device.type in PINNING:
        return empty_pinned(shape, dtype)
    return torch.empty(shape, dtype=dtype, device="cpu")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without blocking; return itself for the CPU."""
    if device.type not in PINNING or is_accelerator(tensor.device):
        return tensor.to(device)
    # torch keeps the pinned memory until the copy is done.
    pinned = empty_pinned(tuple(tensor.shape), tensor.dtype).copy_(tensor)
    return pinned.to(device, non_blocking=True)


class Copies:
    """Copies from pinned memory, queued with the other work of the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def copy(self, pinned: Tensor) -> tuple[Tensor, Callable[[], Any]]:
        """Begin a copy; return it, and a function that waits for its end.

        `pinned` may be changed after the end.
        """
        return pinned.to(self.device, non_blocking=True), lambda: None


class CudaCopies(Copies):
    """Copies on a stream of their own, concurrent with kernels."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def copy(self, pinned: Tensor) -> tuple[Tensor, Callable[[], Any]]:
        """Begin a copy, see :meth:`Copies.copy`."""
        current = torch.cuda.current_stream(self.device)
        done = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            there = pinned.to(self.device, non_blocking=True)
            done.record(self.stream)
        current.wait_event(done)
        there.record_stream(current)  # so that its memory is not reused too early
        return there, done.synchronize


COPIES: dict[str, type[Copies]] = {"cuda": CudaCopies}
"""How to copy, by kind of device."""


class _Slot:
    """A pinned buffer, and a function that waits for the last copy from it."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.wait: Callable[[], Any] = lambda: None

    def fill(self, part: np.ndarray | Tensor) -> Tensor:
        """Copy an array into the buffer, after the last copy from it has ended."""
        self.wait()
        dtype = part.dtype
        if isinstance(dtype, np.dtype):
            # In native byte order, because torch has no other.
            dtype = torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
        n_bytes = int(np.prod(part.shape)) * dtype.itemsize
        if self.buffer is None or self.buffer.numel() < n_bytes:
            self.buffer = empty_pinned((n_bytes,), torch.uint8)
        filled = self.buffer[:n_bytes].view(dtype).view(*part.shape)
        if isinstance(part, Tensor):
            return filled.copy_(part)
        np.copyto(filled.numpy(), part)
        return filled


def uploaded(
    parts: Iterable[np.ndarray | Tensor], device: torch.device
) -> Iterator[Tensor]:
    """Yield arrays or CPU tensors as tensors of the same dtype on a device, in order.

    A thread reads the next array into one of two pinned buffers while the device copies
    the other and computes, so that neither the host nor the device waits.
    """
    if device.type not in PINNING:
        for part in parts:
            yield as_own(part).to(device)
        return
    copies = COPIES.get(device.type, Copies)(device)
    free: SimpleQueue[_Slot | None] = SimpleQueue()
    full: SimpleQueue[tuple[_Slot, Tensor] | BaseException | None] = SimpleQueue()
    for _ in range(2):
        free.put(_Slot())
    reader = threading.Thread(target=_read, args=(parts, free, full), daemon=True)
    reader.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slot, filled = item
            there, slot.wait = copies.copy(filled)
            free.put(slot)
            yield there
    finally:
        free.put(None)  # ends the reader if the caller stops early
        reader.join()


def _read(parts: Iterable, free: SimpleQueue, full: SimpleQueue) -> None:
    """Fill free buffers with parts until none is left or `free` yields None."""
    try:
        for part in parts:
            slot = free.get()
            if slot is None:
                return
            full.put((slot, slot.fill(part)))
        full.put(None)
    except BaseException as error:  # raised where the parts are used
        full.put(error)


def as_own(part: np.ndarray | Tensor) -> Tensor:
    """Return an array as a tensor; it is copied only if torch cannot share its memory.

    torch needs native byte order, positive strides and writable memory.
    """
    if isinstance(part, Tensor):
        return part
    part = np.asarray(part, dtype=part.dtype.newbyteorder("="), order="C")
    if not part.flags.writeable or min(part.strides) < 0:
        part = part.copy()
    return torch.from_numpy(part)
