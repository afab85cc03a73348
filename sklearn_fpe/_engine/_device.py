"""What depends on the kind of device: sizes of pieces, and copies that nobody waits for.

A GPU computes while the host goes on, as long as nothing makes the host wait: a copy
from memory that the operating system may move ("pageable"), or a result that Python
needs. Copies from pinned memory do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE_BYTES = {"cpu": 2**20}
"""Bytes, as float64, of the pieces in which rows are converted, by kind of device.

On the CPU a piece fits the L2 cache.
"""

LARGE_PIECE_BYTES = 2**27
"""The same on every other kind of device, where a piece costs some launches."""

PINNING = frozenset({"cuda"})
"""The kinds of device that copy from pinned memory while the host goes on."""


def is_accelerator(device: torch.device) -> bool:
    """Tell whether a device is another one than the CPU."""
    return device.type != "cpu"


def piece_bytes(device: torch.device) -> int:
    """Return the bytes, as float64, of the pieces in which rows are converted."""
    return PIECE_BYTES.get(device.type, LARGE_PIECE_BYTES)


def empty_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor in pinned memory of the host, not initialised."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device; the host does not wait for the copy.

    On the CPU the tensor itself is returned.
    """
    if device.type not in PINNING:
        return tensor.to(device)
    # torch keeps the pinned memory until the copy is done.
    pinned = empty_pinned(tuple(tensor.shape), tensor.dtype).copy_(tensor)
    return pinned.to(device, non_blocking=True)
