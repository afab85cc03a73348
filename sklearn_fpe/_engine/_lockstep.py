"""Several trainings at once: epochs of networks of one shape run as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from sklearn_fpe._engine._context import (
    readable_memory_errors,
    threads_for,
    training_context,
)
from sklearn_fpe._engine._stack import Stack, shape_of, stream_of
from sklearn_fpe._engine._trainer import Epoch, Training

REMEDY = "Let fewer networks train together, for example fewer values in a grid"


class Lockstep:
    """Trainings that run in lockstep, an epoch of each at a time.

    Epochs of networks of one shape, see :func:`shape_of`, run as a :class:`Stack`, the
    others one after another.

    Parameters
    ----------
    trainings : dict of generators
        Trainings as :meth:`Trainer.training` returns them, by any key.
    device : torch.device
        Where all of them train.

    Attributes
    ----------
    results : dict
        The result of every training that has ended, or the exception that ended it;
        None for the others. An error that is no ``Exception``, such as Ctrl-C, ends
        all trainings.
    waiting : dict
        The next epoch of every training that has not ended.
    """

    def __init__(self, trainings: dict[Any, Training], device: torch.device) -> None:
        self.results: dict[Any, Any] = dict.fromkeys(trainings)
        self.waiting: dict[Any, Epoch] = {}
        self._running = dict(trainings)
        self._device = device
        self._stacks: dict[tuple, Stack] = {}
        with training_context(device):
            for key in trainings:
                self._resume(key)

    def advance(self, n_epochs: float = float("inf")) -> None:
        """Train until all have ended or have trained so many epochs."""
        with training_context(self._device):
            while due := {
                key: epoch
                for key, epoch in self.waiting.items()
                if epoch.trainer.n_iter < n_epochs
            }:
                self._run(due)
                for key in due:
                    if key in self._running:
                        self._resume(key)

    def learned(self, key: Any) -> Any:
        """Return what a training has learned so far; raise the error that ended it."""
        if key in self.waiting:
            return self.waiting[key].trainer.learned()
        if isinstance(self.results[key], Exception):
            raise self.results[key]
        return self.results[key]

    def drop(self, key: Any) -> None:
        """End a training where it is, if it has not ended."""
        if key in self._running:
            self.waiting.pop(key, None)
            self._running.pop(key).close()

    def _resume(self, key: Any) -> None:
        """Let a training go on to its next epoch, or to its end."""
        self.waiting.pop(key, None)
        try:
            self.waiting[key] = next(self._running[key])
            return
        except StopIteration as end:
            self.results[key] = end.value
        except Exception as error:  # returned to the caller
            self.results[key] = error
        del self._running[key]

    def _run(self, due: dict[Any, Epoch]) -> None:
        """Run epochs; keep the stacks for the next epochs of the same networks."""
        stacks = {}
        for keys, n_streams in _groups(due):
            epochs = [due[key] for key in keys]
            trainers = [epoch.trainer for epoch in epochs]
            try:
                with (
                    training_context(self._device, trainers[0].settings.tf32),
                    threads_for(_flops(epochs), self._device),
                    readable_memory_errors(self._device, REMEDY),
                ):
                    if len(epochs) == 1:
                        trainers[0].run_epoch(epochs[0])
                        continue
                    networks = tuple(id(trainer.net.flat_) for trainer in trainers)
                    stack = self._stacks.get(networks) or Stack(trainers, n_streams)
                    stacks[networks] = stack
                    stack.run_epochs(epochs)
            except Exception as error:  # returned to the caller
                for key in keys:
                    self.results[key] = error
                    self.drop(key)
        self._stacks = stacks


def run_together(trainings: Sequence[Training], device: torch.device) -> list[Any]:
    """Run trainings in lockstep to their ends; return :attr:`Lockstep.results`."""
    lockstep = Lockstep(dict(enumerate(trainings)), device)
    lockstep.advance()
    return list(lockstep.results.values())


def _flops(epochs: Sequence[Epoch]) -> float:
    """Return the floating-point operations of a step of all of them."""
    trainer = epochs[0].trainer
    n_rows = trainer.settings.rows_per_step(len(epochs[0].rows))
    n_weights = sum(layer.weight.numel() for layer in trainer.network.maps)
    return 6.0 * n_rows * n_weights * len(epochs)


def _groups(due: dict[Any, Epoch]) -> list[tuple[list, int]]:
    """Return the keys of the epochs that run as one, and their numbers of streams.

    All streams of a group feed equally many networks.
    """
    streams: dict[tuple, list] = {}
    for key, epoch in due.items():
        alone = ("alone", key)
        shape = shape_of(epoch) or alone
        streams.setdefault((shape, stream_of(epoch)), []).append(key)
    groups: dict[tuple, list[list]] = {}
    for (shape, _), keys in streams.items():
        groups.setdefault((shape, len(keys)), []).append(keys)
    return [(list(chain(*parts)), len(parts)) for parts in groups.values()]
