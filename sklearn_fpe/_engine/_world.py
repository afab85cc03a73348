"""The processes that fit one model together, and their exchanges.

A training asks its world to add, gather or compare values. The world of a single
process returns its arguments, so that the training need not know how many there are.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import os
import traceback
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which torchrun tells a process how to meet the others."""


class PeerError(RuntimeError):
    """Another process has failed, or does something else."""


class World:
    """The world of a single process.

    Attributes
    ----------
    rank : int
        Number of this process, counted from 0.
    size : int
        Number of processes.
    """

    rank, size = 0, 1

    def gather(self, value: Any, what: str) -> list[Any]:
        """Return the values of all processes, which are pickled, by rank.

        `what` names the values in messages; it is a plural.
        """
        return [value]

    def total(self, value: Any, what: str) -> Any:
        """Return the float64 sum of the numbers or arrays of all processes.

        All processes add in the order of the ranks, so they get the same bits.
        """
        return value

    def mean(self, value: float, weight: float, what: str) -> float:
        """Return the mean of the values of all processes, each with its weight."""
        if self.size == 1:
            return value
        total, weight = self.total(np.array([value * weight, weight]), what)
        return float(total / weight)

    def check_equal(self, value: Any, what: str, hint: str = "") -> None:
        """Raise an error that names a process whose value differs from the first's."""
        values = self.gather(value, what)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"All processes must have equal {what}, but process 0 has "
                    f"{values[0]} and process {rank} has {other}.{hint}"
                )

    def add_(self, vector: Tensor) -> None:
        """Replace a tensor by the sum over all processes, in one all-reduce."""

    def begin(self, stage: str) -> None:
        """Note for messages what is trained now, and count steps from 0."""

    def use(self, device: torch.device) -> None:
        """Prepare to add tensors of a device."""


SINGLE = World()


class ProcessWorld(World):
    """The processes of torch's default process group.

    They communicate in a group of their own. It is closed when one process fails, so
    that the calls of the others end with an error at once.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._default = dist.group.WORLD
        self._stage, self._n_sums = "preparation", 0
        self._nccl: Any = None
        try:
            self._group: Any = dist.new_group(backend="gloo", timeout=_timeout())
        except RuntimeError as error:
            raise self._ended("the processes met", error) from None

    @property
    def is_open(self) -> bool:
        """Whether it has not failed and the default process group is still the same."""
        return self._group is not None and self._default is dist.group.WORLD

    def gather(self, value: Any, what: str) -> list[Any]:
        """Return the values of all processes, see :meth:`World.gather`."""
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, (what, value), group=self._group)
        except BaseException as error:
            raise self._ended(f"{what} were exchanged", error) from None
        for rank, (name, _) in enumerate(found):
            if name != found[0][0]:
                raise PeerError(
                    f"All processes must do the same, but process 0 exchanges "
                    f"{found[0][0]} and process {rank} exchanges {name}."
                )
        return [value for _, value in found]

    def total(self, value: Any, what: str) -> Any:
        """Return the sum of numbers or arrays, see :meth:`World.total`."""
        array = np.asarray(value, dtype=np.float64)
        # The first entry shows whether all processes exchange the same values.
        own = np.array([zlib.crc32(what.encode()), *array.flat])
        found = [torch.empty(len(own), dtype=torch.float64) for _ in range(self.size)]
        try:
            dist.all_gather(found, torch.from_numpy(own), group=self._group)
        except BaseException as error:
            raise self._ended(f"{what} were exchanged", error) from None
        everyone = torch.stack(found).numpy()
        if (everyone[:, 0] != own[0]).any():
            raise PeerError(
                f"All processes must do the same, but process {self.rank} exchanges "
                f"{what}, and another one does not."
            )
        total = everyone.sum(axis=0)[1:].reshape(array.shape)
        return total if array.ndim else float(total)

    def add_(self, vector: Tensor) -> None:
        """Add tensors up in place, see :meth:`World.add_`."""
        self._n_sums += 1
        group = self._group if self._nccl is None else self._nccl
        try:
            dist.all_reduce(vector, group=group)
        except BaseException as error:
            raise self._ended("the gradients were added", error) from None

    def begin(self, stage: str) -> None:
        """Note what is trained, see :meth:`World.begin`."""
        self._stage, self._n_sums = stage, 0

    def use(self, device: torch.device) -> None:
        """Add CUDA tensors by NCCL, if the default process group has it."""
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"distributed=True needs device='cpu' or a CUDA device, got "
                f"{str(device)!r}."
            )
        if device.type == "cpu" or self._nccl is not None:
            return
        if "nccl" in dist.get_backend_config():
            self._nccl = dist.new_group(backend="nccl", timeout=_timeout())

    def leave(self, error: BaseException) -> None:
        """End the calls of the other processes because this one failed."""
        if not isinstance(error, PeerError):
            text = _first_line(error)
            with suppress(Exception):
                text = f"{type(error).__name__}: {text}" if text else repr(error)
                self._group.get_group_store().set(
                    "failure", f"process {self.rank} failed: {text}"
                )
        self.close()

    def close(self) -> None:
        """Close the connections of this world."""
        for group in (self._nccl, self._group):
            if group is not None:  # None would be the default group
                with suppress(Exception):  # the user may have destroyed all groups
                    dist.destroy_process_group(group)
        # Connections close when nothing refers to the group any more.
        self._nccl = self._group = group = None
        gc.collect()

    def _ended(self, what: str, error: BaseException) -> BaseException:
        """Return the error to raise instead of one that ended an exchange.

        For an error of torch, it tells which process failed, and when.
        """
        # The frames of torch would keep the group and its connections alive.
        traceback.clear_frames(error.__traceback__)
        if not isinstance(error, RuntimeError):
            return error
        # Without the line of torch's source, and without its advice.
        text = _first_line(error).rpartition(".cc:")[2].partition("] ")[2] or str(error)
        text = text.partition(". This is")[0]
        reason = None
        with suppress(Exception):
            if self._group.get_group_store().check(["failure"]):
                reason = self._group.get_group_store().get("failure").decode()
        if reason is None and any(s in text.lower() for s in ("timed out", "timeout")):
            reason = f"another process did not answer in time ({text})"
        if reason is None:
            other = "another process" if self.size > 2 else f"process {1 - self.rank}"
            reason = (
                f"the connection to {other} was lost: it was killed, ran out of "
                f"memory, or its machine went away ({text})"
            )
        step = f", step {self._n_sums}" if self._n_sums else ""
        return PeerError(
            f"Process {self.rank} of {self.size} stopped while {what} ({self._stage}"
            f"{step}), because {reason.rstrip('.')}. Nothing was learned in this call."
        )


_worlds: list[ProcessWorld] = []
"""At most one world, which a call of ``fit`` leaves open for the next call."""


def current() -> ProcessWorld | None:
    """Return the world that the last call has left, or None."""
    return _worlds[0] if _worlds else None


@contextmanager
def open_world(distributed: bool) -> Iterator[World]:
    """Yield the world of all processes; tell the others if the code inside fails.

    Parameters
    ----------
    distributed : bool
        Whether there are other processes.

    Raises
    ------
    ValueError
        If there is no process group and torchrun did not start this process.
    PeerError
        If another process fails, does not answer or does something else.
    """
    if distributed:
        _join()
    if not distributed or dist.get_world_size() == 1:
        yield SINGLE
        return
    world = _meet()
    try:
        yield world
    except BaseException as error:
        world.leave(error)
        raise


def _join() -> None:
    """Join the process group that torchrun describes, if there is none yet."""
    if not dist.is_available():
        raise ValueError("distributed=True needs a build of torch with distributed.")
    if dist.is_initialized():
        return
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise ValueError(
            f"distributed=True needs a process group: start the script by torchrun, or "
            f"call torch.distributed.init_process_group before. The environment lacks "
            f"{', '.join(missing)}."
        )
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_nccl else "gloo")
    atexit.register(_destroy, dist.group.WORLD)


def _destroy(group: Any) -> None:
    """Destroy the default process group if it is the one that was joined here."""
    if dist.group.WORLD is group:
        dist.destroy_process_group()


def _meet() -> ProcessWorld:
    """Return the open world, or a new one if the others do not answer."""
    world = current()
    if world is not None and world.is_open:
        world.begin("preparation")
        try:
            world.gather(None, "greetings")
            return world
        except PeerError:
            # Another process may have closed it after this one had succeeded.
            world.close()
    world = ProcessWorld()
    _worlds[:] = [world]
    atexit.register(world.close)
    return world


def _timeout() -> timedelta | None:
    """Return the timeout of the default process group; None: torch's default.

    torch has no public name for it.
    """
    with suppress(Exception):
        group: Any = dist.group.WORLD
        device = "cpu" if "gloo" in dist.get_backend_config() else "cuda"
        return group._get_backend(torch.device(device)).options._timeout
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def digest(arrays: Iterable[Any]) -> str:
    """Return a short digest of the shapes, types and values of arrays or tensors.

    Zeros of both signs are equal, because the sign of a pruned weight is not stored.
    """
    sha = hashlib.sha1(usedforsecurity=False)
    for array in arrays:
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "f":
            array = array + 0.0
        sha.update(f"{array.shape} {array.dtype}".encode())
        sha.update(array.view(np.uint8).reshape(-1).data)
    return sha.hexdigest()[:16]
