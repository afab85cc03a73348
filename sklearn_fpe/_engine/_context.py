"""The state of torch in which a training or a prediction runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def training_context(device: torch.device) -> Iterator[None]:
    """Train the same in whatever mode of torch the caller is."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _default_device_of_torch(),
    ):
        yield


def _default_device_of_torch() -> AbstractContextManager:
    """Return a context in which tensors are made on the CPU by default."""
    if torch.get_default_device().type == "cpu":
        return nullcontext()  # because a device as context slows every call of torch
    return torch.device("cpu")


@contextmanager
def readable_memory_errors(device: torch.device, remedy: str) -> Iterator[None]:
    """Say what to change when the device's memory does not suffice.

    Parameters
    ----------
    device : torch.device
        The device.
    remedy : str
        What to change first: the end of a sentence that begins with "Lower" or so.
    """
    try:
        yield
    except RuntimeError as error:  # the base of torch.OutOfMemoryError
        on_host = "DefaultCPUAllocator" in str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or on_host):
            raise
        raise MemoryError(
            f"device={str(device)!r} ran out of memory. {remedy}, run fewer fits on "
            f"one device at a time (n_jobs of a search, 1 for a GPU), or use another "
            f'device, such as device="cpu".'
        ) from error


FLOPS_PER_THREAD = 4e7
"""Operations of a step or a prediction that are worth a thread of their own."""


@contextmanager
def threads_for(n_flops: float, device: torch.device) -> Iterator[None]:
    """Compute with as many CPU threads as the work is worth, and no more than allowed.

    Threads that wait for each other spin, so that two of them on little work take the
    CPU of two and, beside other busy processes, many times as long as one. The limit
    holds for the calling thread only and is lifted at the end.

    Parameters
    ----------
    n_flops : float
        Floating-point operations between two points where threads meet.
    device : torch.device
        Where they are done.
    """
    allowed = torch.get_num_threads()
    n_threads = max(1, min(allowed, round(n_flops / FLOPS_PER_THREAD)))
    if device.type != "cpu" or n_threads == allowed:
        yield
        return
    with _openmp().limit(limits=n_threads):
        yield


@functools.cache
def _openmp() -> ThreadpoolController:
    """Return the OpenMP libraries, whose limits belong to the calling thread.

    Unlike ``torch.set_num_threads``, which also changes the default of other threads.
    """
    return ThreadpoolController().select(user_api="openmp")
