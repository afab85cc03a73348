"""Several trainings at once: epochs of networks of one shape run as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sklearn_fpe._engine._context import threads_for, training_context
from sklearn_fpe._engine._stack import Stack, shape_of, stream_of
from sklearn_fpe._engine._trainer import Epoch, Training


def run_together(trainings: Sequence[Training], device: torch.device) -> list[Any]:
    """Run trainings in lockstep, an epoch of each at a time.

    Epochs of networks that :func:`shape_of` gives one shape run as a stack, the others
    one after another.

    Parameters
    ----------
    trainings : sequence of generators
        What :meth:`Trainer.training` returns, or a generator around it.
    device : torch.device
        Where all of them train.

    Returns
    -------
    results : list
        The result of every training, or the exception that ended it. What is not an
        ``Exception``, such as Ctrl-C, ends all of them.
    """
    results: list[Any] = [None] * len(trainings)
    running = dict(enumerate(trainings))
    stacks: dict[tuple, Stack] = {}
    with training_context(device):
        while running:
            waiting: dict[int, Epoch] = {}
            for number, training in list(running.items()):
                try:
                    waiting[number] = next(training)
                except StopIteration as end:
                    results[number] = end.value
                except Exception as error:  # returned to the caller
                    results[number] = error
                if number not in waiting:
                    del running[number]
            stacks = _run(waiting, stacks, results, running)
    return results


def _run(
    waiting: dict[int, Epoch],
    stacks: dict[tuple, Stack],
    results: list[Any],
    running: dict[int, Training],
) -> dict[tuple, Stack]:
    """Run an epoch of each; return the stacks, for the next epochs of the same."""
    used = {}
    for numbers, n_streams in _groups(waiting):
        epochs = [waiting[number] for number in numbers]
        try:
            if len(epochs) == 1:
                _run_alone(epochs[0])
                continue
            key = tuple(id(epoch.trainer.net.flat_) for epoch in epochs)
            stack = stacks.get(key)
            if stack is None:
                stack = Stack([epoch.trainer for epoch in epochs], n_streams)
            used[key] = stack
            with threads_for(_flops(epochs), epochs[0].trainer.settings.device):
                stack.run_epochs(epochs)
        except Exception as error:  # returned to the caller
            for number in numbers:
                results[number] = error
                running.pop(number).close()
    return used


def _run_alone(epoch: Epoch) -> None:
    with threads_for(_flops([epoch]), epoch.trainer.settings.device):
        epoch.trainer.run_epoch(epoch)


def _flops(epochs: Sequence[Epoch]) -> float:
    """Return the floating-point operations of a step of all of them."""
    trainer = epochs[0].trainer
    n_rows = trainer.settings.rows_per_step(len(epochs[0].rows))
    n_weights = sum(layer.weight.numel() for layer in trainer.network.maps)
    return 6.0 * n_rows * n_weights * len(epochs)


def _groups(waiting: dict[int, Epoch]) -> list[tuple[list[int], int]]:
    """Return groups of epochs that run as one, and their numbers of streams.

    All streams of a group feed equally many networks.
    """
    shapes: dict[tuple, dict[tuple, list[int]]] = {}
    groups: list[tuple[list[int], int]] = []
    for number, epoch in waiting.items():
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
