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
"""A training that yields each epoch, which somebody else runs, and returns a result."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that a training waits for.

    Run it by :meth:`Trainer.run_epoch`, or together with epochs of other networks.

    Parameters
    ----------
    trainer : Trainer
        The network in training.
    rows : Rows
        The rows to train on.
    rate : float
        The learning rate.
    """

    trainer: Trainer
    rows: Rows
    rate: float


def run_alone(training: Training) -> Any:
    """Run a training epoch by epoch; return its result."""
    while True:
        try:
            epoch = next(training)
        except StopIteration as end:
            return end.value
        epoch.trainer.run_epoch(epoch)


class Trainer(InTraining):
    """The training of a network: its rows, epochs and hooks.

    Its parameters are those of :class:`InTraining`.

    Attributes
    ----------
    epochs : range
        The epochs of the running phase.
    from_cache : bool
        Whether the running phase is taken from a cache.
    settled : bool
        Whether the network may be kept as it is; not while it is pruned gradually.
    epoch, n_epochs : int
        The running epoch of a fit, counted from 0, and their number.
    step, n_steps : int
        The running step of the phase, counted from 0, and their number.
    loss : float
        Mean training loss of the last epoch.
    validation_score : float or None
        Score of the held-out rows after the last epoch.
    loaded : bool
        Whether a skorch callback replaced the weights at the end of the last phase.
    """

    epochs = range(0)
    from_cache, settled, loaded = False, True, False
    epoch = n_epochs = step = n_steps = 0
    loss = math.nan
    validation_score: float | None = None
    _dealt: Deal | None = None

    # ----------------------------------------------------------------------------------
    # What an estimator calls
    # ----------------------------------------------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> Learned:
        """Run the phases that are left; takes what :meth:`training` takes."""
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
        """Run the phases that are left, and yield every epoch for somebody to run.

        Must be resumed in a :func:`training_context` of the device.

        Parameters
        ----------
        train : Sample
            Rows to train on.
        held : Sample, default=None
            Rows to validate on.
        hooks : sequence of Hook, default=()
            What to call between steps and epochs.
        cache : callable, default=None
            Maps what the trainer knows of a warm-up, a dict, to the cache to take it
            from.
        n_epochs : int, default=None
            Epochs to run of those that the learning rate's course covers; None: all.

        Returns
        -------
        learned : Learned
            What was learned.
        """
        settings = self.settings
        rows = self.rows(train)
        self.held = None if held is None else self.rows(held)
        self.history = replace(self.history, n_iter=0)
        if held is None:
            self.history = self.history.without_validation()
        self.n_epochs = settings.max_iter
        last = settings.max_iter if n_epochs is None else n_epochs
        first = 0
        if self.phase == "warm-up":
            first = max(0, settings.n_warmup - len(self.history.losses))
            warm_up = range(min(first, last))
            yield from self._warm_up(rows, warm_up, hooks, cache, train)
            self.expand()
        rows = self.arrange(rows, train, held)
        pruning = self.recipe.prune.hook(self.recipe)
        if pruning is not None:
            hooks = [pruning, *hooks]
        yield from self._run(rows, range(first, max(first, last)), hooks)
        return self.learned()

    def warming(self, train: Sample, n_epochs: int) -> Training:
        """Train the dense parent alone, yielding epochs; return its weights and losses.

        Its result is what a cache stores, see :meth:`training`.
        """
        self.n_epochs = self.settings.max_iter
        yield from self._run(self.rows(train), range(n_epochs), ())
        return self._warm()

    def _warm(self) -> Warm:
        state = self.network.state_dict()
        state = {name: value.cpu().numpy() for name, value in state.items()}
        return state, list(self.history.losses)

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

    @property
    def n_iter(self) -> int:
        """Epochs of the running fit so far."""
        return self.history.n_iter

    def validate(
        self, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[np.ndarray, float]:
        """Return outputs and mean loss of the held-out rows.

        The loss is that of the rows of all processes, the outputs those of this one.

        Parameters
        ----------
        reduce : callable, default=None
            Maps outputs (n_rows, n_outputs) to the tensor that is needed of them, so
            that the host waits for the device once, and less is copied. None: all.

        Returns
        -------
        outputs : ndarray
            Outputs (n_rows, n_outputs), or what `reduce` made of them.
        loss : float
            Mean loss.
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

    # ----------------------------------------------------------------------------------
    # Epochs
    # ----------------------------------------------------------------------------------

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

    def _end_training(self) -> None:
        """Let skorch's callbacks end the phase; note whether one loaded weights."""
        self.loaded = False
        state = {}
        if self.settings.callbacks:
            state = copy.deepcopy(self.network.state_dict())
        self.net.notify("on_train_end", X=None, y=None)
        for name, value in self.network.state_dict().items():
            self.loaded |= name in state and not torch.equal(value, state[name])

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

    def run_epoch(self, epoch: Epoch) -> None:
        """Run an epoch of this network alone."""
        net, rows = self.net, epoch.rows
        net.world = self.world
        self.begin_epoch(epoch)
        self.world.begin(f"{self.phase}, epoch {len(self.history.losses) + 1}")
        held = None
        if self.settings.callbacks and self.held is not None:
            held = self.held.batches(PREDICTION_ROWS)
        net.fit_loop(self.batches(rows), held, epochs=1)
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

    @property
    def order_seed(self) -> tuple[int, ...]:
        """The seed of the order of the rows in the next epoch."""
        # Processes shuffle their rows differently.
        of_process = (self.world.rank,) if self.world.size > 1 else ()
        return (self.recipe.seeds.shuffle, *of_process, len(self.history.losses))

    def _check_loss(self) -> None:
        if not math.isfinite(self.loss):
            raise self.diverged(f"The training loss became {self.loss}.")
