"""Several trainings at once: epochs of networks of one shape run as one."""

from __future__ import annotations

from collections.abc import Sequence
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

    Epochs of networks that :func:`shape_of` gives one shape run as a stack, the others
    one after another.

    Parameters
    ----------
    trainings : sequence of generators
        What :meth:`Trainer.training` returns, or a generator around it.
    device : torch.device
        Where all of them train.

    Attributes
    ----------
    results : list
        The result of every training that has ended, or the exception that ended it;
        None for the others. What is not an ``Exception``, such as Ctrl-C, ends all.
    waiting : dict
        The next epoch of every training that has not ended, by its number.
    """

    def __init__(self, trainings: Sequence[Training], device: torch.device) -> None:
        self.results: list[Any] = [None] * len(trainings)
        self.waiting: dict[int, Epoch] = {}
        self._running = dict(enumerate(trainings))
        self._device = device
        self._stacks: dict[tuple, Stack] = {}
        with training_context(device):
            for number in list(self._running):
                self._resume(number)

    def advance(self, n_epochs: float = float("inf")) -> None:
        """Train until all have ended or have trained so many epochs."""
        with training_context(self._device):
            while due := {
                number: epoch
                for number, epoch in self.waiting.items()
                if epoch.trainer.n_iter < n_epochs
            }:
                self._run(due)
                for number in due:
                    if number in self._running:
                        self._resume(number)

    def drop(self, number: int) -> None:
        """End a training where it is, if it has not ended."""
        if number in self._running:
            self.waiting.pop(number, None)
            self._running.pop(number).close()

    def _resume(self, number: int) -> None:
        """Let a training go on to its next epoch, or to its end."""
        self.waiting.pop(number, None)
        try:
            self.waiting[number] = next(self._running[number])
        except StopIteration as end:
            self.results[number] = end.value
        except Exception as error:  # returned to the caller
            self.results[number] = error
        if number not in self.waiting:
            del self._running[number]

    def _run(self, due: dict[int, Epoch]) -> None:
        """Run epochs; keep the stacks for the next epochs of the same networks."""
        stacks = {}
        for numbers, n_streams in _groups(due):
            epochs = [due[number] for number in numbers]
            try:
                with (
                    training_context(self._device, epochs[0].trainer.settings.tf32),
                    threads_for(_flops(epochs), self._device),
                    readable_memory_errors(self._device, REMEDY),
                ):
                    if len(epochs) == 1:
                        epochs[0].trainer.run_epoch(epochs[0])
                        continue
                    key = tuple(id(epoch.trainer.net.flat_) for epoch in epochs)
                    stack = self._stacks.get(key)
                    if stack is None:
                        stack = Stack([epoch.trainer for epoch in epochs], n_streams)
                    stacks[key] = stack
                    stack.run_epochs(epochs)
            except Exception as error:  # returned to the caller
                for number in numbers:
                    self.results[number] = error
                    self.drop(number)
        self._stacks = stacks


def run_together(trainings: Sequence[Training], device: torch.device) -> list[Any]:
    """Run trainings in lockstep to their ends; return the results, see `Lockstep`."""
    lockstep = Lockstep(trainings, device)
    lockstep.advance()
    return lockstep.results


def _flops(epochs: Sequence[Epoch]) -> float:
    """Return the floating-point operations of a step of all of them."""
    trainer = epochs[0].trainer
    n_rows = trainer.settings.rows_per_step(len(epochs[0].rows))
    n_weights = sum(layer.weight.numel() for layer in trainer.network.maps)
    return 6.0 * n_rows * n_weights * len(epochs)


def _groups(due: dict[int, Epoch]) -> list[tuple[list[int], int]]:
    """Return groups of epochs that run as one, and their numbers of streams.

    All streams of a group feed equally many networks.
    """
    shapes: dict[tuple, dict[tuple, list[int]]] = {}
    groups: list[tuple[list[int], int]] = []
    for number, epoch in due.items():
        shape = shape_of(epoch)
        if shape is None:
            groups.append(([number], 1))
        else:
            streams = shapes.setdefault(shape, {})
            streams.setdefault(stream_of(epoch), []).append(number)
    for streams in shapes.values():
        by_size: dict[int, list[list[int]]] = {}
        for numbers in streams.values():
            by_size.setdefault(len(numbers), []).append(numbers)
        for members in by_size.values():
            groups.append(([n for numbers in members for n in numbers], len(members)))
    return groups
