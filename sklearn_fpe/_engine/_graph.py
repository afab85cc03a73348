"""Training steps on CUDA that are recorded once and replayed.

A step of a small network is some twenty launches, each of which takes the host longer
than the device needs to compute it. A CUDA graph launches all of them at once. It
repeats the recorded operations with the same addresses and numbers. So the values that
change from step to step, among them the learning rate and the number of the batch, are
in tensors that keep their addresses.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sklearn_fpe._engine._net import Net
    from sklearn_fpe._engine._rows import Batches, ShuffledRows

MIN_RECORDED_STEPS = 200
"""Least number of steps in a phase for which recording, which takes some ms, pays."""

N_WARM_STEPS = 3
"""Steps before the recording, in which libraries and the optimizer set up."""

ONE_AT_A_TIME = threading.Lock()
"""Held while a step is recorded, because a process can record only one at a time."""


class CudaCapture:
    """A CUDA graph, recorded on a stream of its own.

    Graphs that were recorded on one stream would share the workspace of cuBLAS.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Return a context in which to run steps before they are recorded."""
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


CAPTURES: dict[str, type[CudaCapture]] = {"cuda": CudaCapture}
"""How to record, by kind of device."""


class RecordedSteps:
    """Runs the epochs of a phase by replaying a step of a net that has ``flat_``.

    Steps at which a hook is due, the first steps and a last batch of fewer rows are
    launched as usual. The step is recorded anew when the first masks are set, because
    then gradients have to be masked. Masks that change later are read in place.
    """

    def __init__(self, net: Net) -> None:
        assert net.flat_ is not None
        self.net, self.flat = net, net.flat_
        self._capture = self._new_capture()
        self._is_recorded = self._is_impossible = False
        self._trainable: Tensor | None = None
        self._static: _Static | None = None
        self._n_warm = 0

    def run(self, batches: Batches) -> tuple[Tensor, list[int]]:
        """Run an epoch; return losses and sizes of the batches."""
        loss, size = self.net.criterion_.loss, batches.batch_size
        assert batches.seed is not None
        epoch = batches.rows.epoch(batches.seed)
        n_full, n_last = divmod(len(epoch.order), size)
        if self._static is None or self._static.x is not epoch.x:
            self._static = _Static(epoch, size, loss.shares)
            if self._is_recorded:
                self._capture, self._is_recorded = self._new_capture(), False
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
        if self._is_impossible or (hooks is not None and hooks.due()):
            self._launch(static, number)
            return
        if self._n_warm < N_WARM_STEPS:
            self._n_warm += 1
            with self._capture.warm_up():
                self._launch(static, number)
            return
        static.go_to(number)
        is_current = self._is_recorded and self._trainable is self.flat.trainable
        if not is_current and not self._record(static):
            self._launch(static, number)
            return
        self._capture.replay()
        static.passed()
        if hooks is not None:
            hooks.skip()

    def _launch(self, static: _Static, number: int) -> None:
        step = self.net.train_step(static.batch(number))
        static.losses[number].copy_(step["loss"])

    def _new_capture(self) -> CudaCapture:
        device = self.flat.vector.device
        return CAPTURES[device.type](device)

    def _record(self, static: _Static) -> bool:
        """Record a step whose batch is numbered by a tensor; tell whether it worked."""
        if self._is_recorded:
            self._capture = self._new_capture()
        hooks, self.net.before_step = self.net.before_step, None
        try:
            with ONE_AT_A_TIME:
                self._capture.record(lambda: static.count(self.net.train_step))
        except RuntimeError as error:
            self._is_impossible = True
            warnings.warn(
                f"A training step could not be recorded, so that steps are launched "
                f"one by one, which is slower: {error}",
                UserWarning,
                stacklevel=2,
            )
            return False
        finally:
            self.net.before_step = hooks
        self._is_recorded, self._trainable = True, self.flat.trainable
        return True


class _Static:
    """Tensors that keep their addresses: the rows of an epoch, and the batch's number.

    Batches have `size` rows; `shares` is :meth:`Loss.shares` of the loss.
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
        """Copy the order, targets and shares of another epoch."""
        for tensor, values in zip(self.tensors, self._by_batch(epoch), strict=True):
            tensor.copy_(values)

    def batch(self, number: int) -> tuple:
        """Return a batch for the net."""
        return self._batch([tensor[number] for tensor in self.tensors])

    def _batch(self, parts: list[Tensor]) -> tuple:
        order, targets, *shares = parts
        # The first shares are passed as weights, too: the loss only reads their shape.
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
        """Note that a replay of :meth:`count` has raised the number."""
        self._known += 1
