"""Contexts that set the state of torch for a training or a prediction."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def training_context(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Set the modes of torch for training, whatever those of the caller are.

    With `tf32`, CUDA multiplies float32 matrices in TF32.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _default_device_of_torch(),
        _tf32 if tf32 and device.type == "cuda" else nullcontext(),
    ):
        yield


class _Tf32:
    """Context in which CUDA multiplies float32 matrices in TF32.

    The setting belongs to the process. If threads overlap, the first one sets it and
    the last one restores it.
    """

    def __init__(self) -> None:
        self._lock, self._n_inside, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._before = torch.backends.cuda.matmul.fp32_precision
                torch.backends.cuda.matmul.fp32_precision = "tf32"
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                torch.backends.cuda.matmul.fp32_precision = self._before


_tf32 = _Tf32()


def _default_device_of_torch() -> AbstractContextManager:
    """Return a context in which the default device of tensors is the CPU."""
    try:
        device = torch.get_default_device()
    except AttributeError:  # torch 2.9, after torch.set_default_device(None)
        return nullcontext()
    if device.type == "cpu":
        return nullcontext()  # because a device context slows every call of torch
    return torch.device("cpu")


class readable_memory_errors:
    """Context that raises MemoryError with advice if a device has too little memory.

    `remedy` is the first advice, such as "Lower batch_size". This is a class, because
    entering a generator would slow the prediction of a single row.
    """

    def __init__(self, device: torch.device, remedy: str) -> None:
        self.device, self.remedy = device, remedy

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        if not isinstance(error, RuntimeError):  # the base of torch.OutOfMemoryError
            return
        on_host = "DefaultCPUAllocator" in str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or on_host):
            return
        raise MemoryError(
            f"device={str(self.device)!r} ran out of memory. {self.remedy}, run fewer "
            f"fits on one device at a time (n_jobs of a search, 1 for a GPU), or use "
            f'another device, such as device="cpu".'
        ) from error


FLOPS_PER_THREAD = 4e7
"""Operations of a step or a prediction for which another thread pays."""


def threads_for(n_flops: float, device: torch.device) -> AbstractContextManager:
    """Return a context that limits the CPU threads of the caller to a useful number.

    Threads that wait for each other spin. So two threads with little work use two CPUs
    and, beside other busy processes, take many times as long as one thread.

    Parameters
    ----------
    n_flops : float
        Floating-point operations between two synchronisations of the threads.
    device : torch.device
        The device that computes; only the CPU is limited.
    """
    allowed = torch.get_num_threads()
    n_threads = max(1, min(allowed, round(n_flops / FLOPS_PER_THREAD)))
    if device.type != "cpu" or n_threads == allowed:
        return nullcontext()
    return _ThreadLimit(n_threads)


class _ThreadLimit:
    """Context that limits the OpenMP threads of the calling thread.

    ``ThreadpoolController.limit`` does the same, but it queries every library twice,
    which takes longer than the prediction of a single row.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def __enter__(self) -> None:
        libraries = _openmp()
        self.before = [library.get_num_threads() for library in libraries]
        for library in libraries:
            library.set_num_threads(self.n_threads)

    def __exit__(self, *_: object) -> None:
        for library, n_threads in zip(_openmp(), self.before, strict=True):
            library.set_num_threads(n_threads)


@functools.cache
def _openmp() -> list[Any]:
    """Return the OpenMP libraries.

    Their limits hold for the calling thread alone, while ``torch.set_num_threads`` also
    changes the default of other threads.
    """
    return ThreadpoolController().select(user_api="openmp").lib_controllers
