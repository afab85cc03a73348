"""Steps that are recorded once and replayed, because launching them costs the most.

A step of a small network is some twenty launches, each of which takes the host longer
than the device needs to compute it. A CUDA graph launches them all at once. It repeats
what was recorded, at the same addresses and with the same numbers: so whatever changes
from step to step is in a tensor that stays where it is, also the learning rate and the
number of the batch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sklearn_fpe._engine._net import Net
    from sklearn_fpe._engine._rows import Batches, ShuffledRows

MIN_RECORDED_STEPS = 200
"""Steps of a phase from which on recording one, which takes some ms, pays."""

N_WARM_STEPS = 3
"""Steps before the recording, in which libraries and the optimizer set up."""

ONE_AT_A_TIME = threading.Lock()
"""Held while a step is recorded, because a process can record one at a time only."""


class Capture(Protocol):
    """How a kind of device records operations, and runs them again."""

    def __init__(self, device: torch.device) -> None: ...

    def warm_up(self) -> AbstractContextManager:
        """Return a context to compute in what will be recorded."""

    def record(self, function: Callable[[], Any]) -> None:
        """Record the operations of a function, without doing them."""

    def replay(self) -> None:
        """Do the operations."""


class CudaCapture:
    """A CUDA graph.

    It has a stream of its own, because graphs that were recorded on one stream share
    the workspace of cuBLAS.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Return a context to compute in what will be recorded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def record(self, function: Callable[[], Any]) -> None:
        """Record the operations of a function, without doing them."""
        # Other threads may use the device meanwhile.
        mode = "thread_local"
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode=mode),
        ):
            function()

    def replay(self) -> None:
        """Do the operations."""
        self.graph.replay()


CAPTURES: dict[str, type[Capture]] = {"cuda": CudaCapture}
"""How to record, by kind of device."""


class RecordedSteps:
    """Runs the epochs of a phase by replaying a step.

    Steps before which a hook has something to do, the first steps and a last batch of
    fewer rows are run as usual. Where masks begin to matter, the step is recorded anew;
    where masks change, it reads them where they are.

    Parameters
    ----------
    net : Net
        The net in training, which has ``flat_``.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self._capture: Capture | None = None
        self._fresh: Capture | None = None
        self._trainable: Tensor | None = None
        self._static: _Static | None = None
        self._n_warm = 0
        self._impossible = False

    def run(self, batches: Batches) -> tuple[Tensor, list[int]]:
        """Run an epoch; return losses and sizes of the batches."""
        loss, size = self.net.criterion_.loss, batches.batch_size
        assert batches.seed is not None
        epoch = batches.rows.epoch(batches.seed)
        n_full, n_last = divmod(len(epoch.order), size)
        if self._static is None or self._static.x is not epoch.x:
            self._static, self._capture = _Static(epoch, size, loss.shares), None
        else:
            self._static.take(epoch)
        static = self._static
        for number in range(n_full):
            self._step(static, number)
        losses, sizes = static.losses, [size] * n_full
        if n_last:
            rows = slice(n_full * size, None)
            weights = epoch.weights[rows]
            shares = loss.shares(weights, n_last)
            x = epoch.x.index_select(0, epoch.order[rows])
            step = self.net.train_step((x, (epoch.targets[rows], weights, *shares)))
            losses = torch.cat([losses, step["loss"].view(1)])
            sizes.append(n_last)
        return losses, sizes

    def _step(self, static: _Static, number: int) -> None:
        """Do a step: replay it if no hook has to act first."""
        hooks = self.net.before_step
        if self._impossible or (hooks is not None and hooks.due()):
            self._run_as_usual(static, number)
            return
        if self._n_warm < N_WARM_STEPS:
            self._n_warm += 1
            with self._fresh_capture().warm_up():
                self._run_as_usual(static, number)
            return
        assert self.net.flat_ is not None
        static.go_to(number)
        if self._capture is None or self._trainable is not self.net.flat_.trainable:
            self._record(static)
        if self._capture is None:
            self._run_as_usual(static, number)
            return
        self._capture.replay()
        static.passed()
        if hooks is not None:
            hooks.skip()

    def _run_as_usual(self, static: _Static, number: int) -> None:
        step = self.net.train_step(static.batch(number))
        static.losses[number].copy_(step["loss"])

    def _fresh_capture(self) -> Capture:
        """Return what the next recording is made by."""
        if self._fresh is None:
            assert self.net.flat_ is not None
            device = self.net.flat_.vector.device
            self._fresh = CAPTURES[device.type](device)
        return self._fresh

    def _record(self, static: _Static) -> None:
        """Record a step whose batch is numbered by a tensor."""
        assert self.net.flat_ is not None
        self._capture, self._trainable = None, self.net.flat_.trainable
        capture, self._fresh = self._fresh_capture(), None
        hooks, self.net.before_step = self.net.before_step, None
        try:
            with ONE_AT_A_TIME:
                capture.record(lambda: static.count(self.net.train_step))
        except RuntimeError as error:
            self._impossible = True
            warnings.warn(
                f"A training step could not be recorded, so that steps are launched "
                f"one by one, which is slower: {error}",
                UserWarning,
                stacklevel=2,
            )
            return
        finally:
            self.net.before_step = hooks
        self._capture = capture


class _Static:
    """Tensors that stay where they are: the rows of an epoch, and the batch's number.

    Parameters
    ----------
    epoch : ShuffledRows
        The first epoch.
    size : int
        Rows of a batch.
    shares : callable
        What the loss needs of the weights, see :meth:`Loss.shares`.
    """

    def __init__(
        self,
        epoch: ShuffledRows,
        size: int,
        shares: Callable[[Tensor, int], tuple[Tensor, ...]],
    ) -> None:
        self.x, self.size, self.shares_of = epoch.x, size, shares
        self.n_batches = len(epoch.order) // size
        self.tensors = [tensor.clone() for tensor in self._by_batch(epoch)]
        self.losses = epoch.x.new_zeros(self.n_batches)
        self.number = epoch.order.new_zeros(1)
        self._known = 0

    def _by_batch(self, epoch: ShuffledRows) -> list[Tensor]:
        """Return order, targets and shares, (n_batches, size, ...)."""
        n = self.n_batches * self.size
        shares = self.shares_of(epoch.weights[:n], self.size)
        parts = [epoch.order[:n], epoch.targets[:n], *shares]
        return [p.view(self.n_batches, self.size, *p.shape[1:]) for p in parts]

    def take(self, epoch: ShuffledRows) -> None:
        """Copy the order of another epoch."""
        for tensor, values in zip(self.tensors, self._by_batch(epoch), strict=True):
            tensor.copy_(values)

    def batch(self, number: int) -> tuple:
        """Return a batch, as the net takes it."""
        return self._batch([tensor[number] for tensor in self.tensors])

    def _batch(self, parts: list[Tensor]) -> tuple:
        order, targets, *shares = parts
        # The shares stand for the weights, too, of which the shape is checked only.
        return self.x.index_select(0, order), (targets, shares[0], *shares)

    def count(self, step: Callable[[tuple], dict[str, Tensor]]) -> None:
        """Do a step on the batch whose number is in :attr:`number`, and count it."""
        parts = [tensor.index_select(0, self.number)[0] for tensor in self.tensors]
        loss = step(self._batch(parts))["loss"]
        self.losses.index_copy_(0, self.number, loss.view(1))
        self.number.add_(1)

    def go_to(self, number: int) -> None:
        """Set the number of the next batch that :meth:`count` takes."""
        if self._known != number:
            self.number.fill_(number)
            self._known = number

    def passed(self) -> None:
        """Note that the number was raised."""
        self._known += 1
