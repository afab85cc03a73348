"""The training: warm up, expand, fine-tune."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine import _graph
from sklearn_fpe._engine._cache import StoppedError, Warm, WarmUpCache
from sklearn_fpe._engine._context import training_context
from sklearn_fpe._engine._deal import Deal, DealtBatches, deal
from sklearn_fpe._engine._hooks import Hook, StepHooks
from sklearn_fpe._engine._in_training import InTraining
from sklearn_fpe._engine._recipe import Learned
from sklearn_fpe._engine._rows import Batches, Rows
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._engine._world import SINGLE

PREDICTION_ROWS = 4096
"""Held-out rows that are predicted at a time."""

Training = Generator["Epoch", None, Any]
"""A training that yields each epoch, which its caller runs, and returns a result."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that a training waits for.

    Run it by :meth:`Trainer.run_epoch`, or together with epochs of other networks.
    """

    trainer: Trainer
    rows: Rows
    rate: float


class Trainer(InTraining):
    """The training of a network: its phases, epochs and hooks.

    It takes the parameters of :class:`InTraining`. Hooks may read its attributes.
    """

    epochs = range(0)  # of the running phase
    epoch = n_epochs = 0  # the running epoch of a fit, from 0, and their number
    step = n_steps = 0  # the running step of the phase, from 0, and their number
    loss = math.nan  # mean training loss of the last epoch
    validation_score: float | None = None  # of the held-out rows, after the last epoch
    settled = True  # whether the network may be kept; not while hooks still prune it
    from_cache = False  # whether the running phase is taken from a cache
    loaded = False  # whether a callback replaced the weights at the end of the phase
    _dealt: Deal | None = None

    def fit(self, *args: Any, **kwargs: Any) -> Learned:
        """Run the phases that are left, with the parameters of :meth:`training`."""
        with training_context(self.settings.device, self.settings.tf32):
            return run_alone(self.training(*args, **kwargs))

    def training(
        self,
        train: Sample,
        held: Sample | None = None,
        *,
        hooks: Sequence[Hook] = (),
        cache: Callable[[dict], WarmUpCache] | None = None,
        n_epochs: int | None = None,
    ) -> Training:
        """Run the phases that are left; return a :class:`Learned`.

        Every epoch is yielded for the caller to run, who must resume the training in a
        :func:`training_context` of the device.

        Parameters
        ----------
        train, held : Sample
            Rows to train on, and to validate on.
        hooks : sequence of Hook, default=()
            Hooks to call between steps and epochs.
        cache : callable, default=None
            Maps a dict, the sample and the sizes of the warm-up, to the cache that may
            hold its result.
        n_epochs : int, default=None
            Epochs after which to stop; the learning rate falls over `max_iter` epochs.
        """
        settings = self.settings
        rows = self.rows(train)
        self.held = None if held is None else self.rows(held)
        self.history = replace(self.history, n_iter=0)
        if held is None:
            self.history = self.history.without_validation()
        self.n_epochs = settings.max_iter
        last = settings.max_iter if n_epochs is None else n_epochs
        n_warmup = 0
        if self.phase == "warm-up":
            n_warmup = max(0, settings.n_warmup - len(self.history.losses))
            warm_up = range(min(n_warmup, last))
            yield from self._warm_up(rows, warm_up, hooks, cache, train)
            self.expand()
        rows = self.arrange(rows, train, held)
        pruning = self.recipe.prune.hook(self.recipe)
        if pruning is not None:
            hooks = [pruning, *hooks]
        yield from self._run(rows, range(n_warmup, max(n_warmup, last)), hooks)
        return self.learned()

    def _warm_up(
        self,
        rows: Rows,
        epochs: range,
        hooks: Sequence[Hook],
        cache: Callable[[dict], WarmUpCache] | None,
        train: Sample,
    ) -> Training:
        """Train the dense parent, or take it from the cache."""
        if cache is None or not epochs or self.history.losses:
            yield from self._run(rows, epochs, hooks)
            return

        def compute() -> Warm:
            if run_alone(self._run(rows, epochs, hooks)):
                raise StoppedError
            return self._warm()

        batch_size = self.settings.rows_per_step(len(rows))
        known = {"sample": train, "n_epochs": len(epochs), "batch_size": batch_size}
        try:
            state, losses = cache(known)(compute)
        except StoppedError:
            return
        if self.history.losses:
            return  # computed just now
        self.epochs, self.from_cache = epochs, True
        for hook in hooks:
            hook.on_phase_begin(self)
        self.history = replace(self.history, losses=tuple(losses), n_iter=len(epochs))
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        self.network.load_state_dict(tensors)
        for hook in hooks:
            hook.on_phase_end(self)
        self.from_cache = False

    def _run(self, rows: Rows, epochs: range, hooks: Sequence[Hook]) -> Training:
        """Yield the epochs of a phase; return whether they were stopped early."""
        self.epochs = epochs
        self.validation_score = None
        self._deal(rows)
        self.step, self.n_steps = 0, len(epochs) * len(self.batches(rows))
        wanted = [h for h in hooks if type(h).before_step is not Hook.before_step]
        self.net.before_step = StepHooks(self, wanted) if wanted else None
        self.net.records_ = (
            not self.settings.callbacks
            and self.world.size == 1
            and rows.resident
            and self.settings.device.type in _graph.CAPTURES
            and self.n_steps >= _graph.MIN_RECORDED_STEPS
        )
        self.net.begin_phase()
        stopped = False
        for hook in hooks:
            hook.on_phase_begin(self)
        for self.epoch in epochs:
            for hook in hooks:
                hook.on_epoch_begin(self)
            yield Epoch(self, rows, self.settings.rate_at(self.epoch))
            self._check_loss()
            self.settled = all(hook.settled for hook in hooks)
            # Every hook is called, whichever asks to stop.
            asked = [hook.on_epoch_end(self) for hook in hooks]
            stopped = self.world.total(self.net.stop_ or any(asked), "decisions") > 0
            if stopped:
                break
        self._end_training()
        for hook in hooks:
            hook.on_phase_end(self)
        self.net.before_step, self.net.records_ = None, False
        self.check_equal()
        return stopped

    def run_epoch(self, epoch: Epoch) -> None:
        """Run an epoch of this network alone."""
        net = self.net
        net.world = self.world
        self.begin_epoch(epoch)
        self.world.begin(f"{self.phase}, epoch {len(self.history.losses) + 1}")
        held = None
        if self.settings.callbacks and self.held is not None:
            held = self.held.batches(PREDICTION_ROWS)
        net.fit_loop(self.batches(epoch.rows), held, epochs=1)
        net.world = SINGLE  # because connections do not outlive a call
        self.end_epoch(net.history[-1, "train_loss"])

    def begin_epoch(self, epoch: Epoch) -> None:
        """Set the learning rate and the weight decay of an epoch."""
        self.net.stop_, self.validation_score = False, None
        self.net.set_rate(epoch.rate)
        for group in self.net.optimizer_.param_groups:
            group["weight_decay"] = self.settings.decay_in(self.phase)

    def end_epoch(self, loss: float) -> None:
        """Record the mean training loss of an epoch."""
        self.loss = loss
        self.history = replace(
            self.history,
            losses=(*self.history.losses, loss),
            n_iter=self.history.n_iter + 1,
        )

    def partial_fit(self, sample: Sample) -> Learned:
        """Run one epoch on some rows at a constant learning rate."""
        with training_context(self.settings.device, self.settings.tf32):
            if self.phase == "warm-up":
                self.learn_scale(sample)
                if len(self.history.losses) >= self.settings.n_warmup:
                    self.expand()
            rows = self.rows(sample)
            self.arrange(rows)
            self._deal(rows)
            self.history = self.history.without_validation()
            self.net.notify("on_train_begin", X=None, y=None)
            self.run_epoch(Epoch(self, rows, self.settings.learning_rate_init))
            self._check_loss()
            self.net.notify("on_train_end", X=None, y=None)
            self.check_equal()
            return self.learned()

    def warming(self, train: Sample, n_epochs: int) -> Training:
        """Train the dense parent, yielding epochs; return its entry of a cache."""
        self.n_epochs = self.settings.max_iter
        yield from self._run(self.rows(train), range(n_epochs), ())
        return self._warm()

    def _warm(self) -> Warm:
        state = self.network.state_dict()
        state = {name: value.cpu().numpy() for name, value in state.items()}
        return state, list(self.history.losses)

    # ----------------------------------------------------------------------------------
    # Batches
    # ----------------------------------------------------------------------------------

    def _deal(self, rows: Rows) -> None:
        """Deal the rows of several processes to the steps of an epoch."""
        self._dealt = None
        if self.world.size > 1:
            counts = self.world.gather(len(rows), "numbers of rows")
            n_together = self.settings.rows_per_step(sum(counts))
            self._dealt = deal(counts, self.world.rank, n_together)

    def batches(self, rows: Rows) -> Batches | DealtBatches:
        """Return the shuffled batches of the next epoch, one for every step."""
        if self._dealt is not None:
            return self._dealt.batches(rows, self.order_seed)
        batch_size = self.settings.rows_per_step(len(rows))
        shares = None if self.net.flat_ is None else self.settings.loss.shares
        return rows.batches(batch_size, self.order_seed, shares)

    @property
    def order_seed(self) -> tuple[int, ...]:
        """The seed of the order of the rows in the next epoch."""
        # Processes shuffle their rows differently.
        of_process = (self.world.rank,) if self.world.size > 1 else ()
        return (self.recipe.seeds.shuffle, *of_process, len(self.history.losses))

    # ----------------------------------------------------------------------------------
    # Losses and scores
    # ----------------------------------------------------------------------------------

    @property
    def n_iter(self) -> int:
        """Epochs of the running fit so far."""
        return self.history.n_iter

    def validate(
        self, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[np.ndarray, float]:
        """Return outputs of the held-out rows, and the mean loss over all processes.

        `reduce` maps outputs (n_rows, n_outputs) to a smaller tensor to return instead,
        so that less is copied from the device, for which the host waits once.
        """
        assert self.held is not None
        network = self.net.module_.eval()
        with torch.inference_mode():
            batches = self.held.batches(PREDICTION_ROWS)
            outputs = torch.cat([network(x) for x, _ in batches])
            loss = self.settings.loss(outputs, self.held.targets, self.held.weights)
            if reduce is None:
                array, value = outputs.cpu().numpy(), float(loss)
                finite = bool(np.isfinite(array).all())
            else:
                needed = reduce(outputs)
                flags = torch.stack([loss.double(), outputs.isfinite().all().double()])
                # In one copy, as float64, which holds float32 and class numbers.
                copied = torch.cat([needed.flatten().double(), flags]).cpu()
                array = copied[:-2].to(needed.dtype).view(needed.shape).numpy()
                value, finite = float(copied[-2]), bool(copied[-1])
        if not finite:
            raise self.diverged("The outputs for validation rows became infinite.")
        n_rows = len(self.held)
        return array, self.world.mean(value, n_rows, "validation losses")

    def record_validation(self, score: float, loss: float) -> None:
        """Add a score and a loss of the held-out rows to the history."""
        self.validation_score = score
        self.history = replace(
            self.history,
            validation_scores=(*self.history.validation_scores, score),
            validation_losses=(*self.history.validation_losses, loss),
        )

    def _check_loss(self) -> None:
        if not math.isfinite(self.loss):
            raise self.diverged(f"The training loss became {self.loss}.")

    def _end_training(self) -> None:
        """Let skorch's callbacks end the phase; note whether one loaded weights."""
        self.loaded = False
        state = {}
        if self.settings.callbacks:
            state = copy.deepcopy(self.network.state_dict())
        self.net.notify("on_train_end", X=None, y=None)
        for name, value in self.network.state_dict().items():
            self.loaded |= name in state and not torch.equal(value, state[name])


def run_alone(training: Training) -> Any:
    """Run a training epoch by epoch; return its result."""
    while True:
        try:
            epoch = next(training)
        except StopIteration as end:
            return end.value
        epoch.trainer.run_epoch(epoch)
