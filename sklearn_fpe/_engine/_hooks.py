"""Hooks: objects that a training calls between its steps and epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_fpe._engine._trainer import Trainer


class Hook:
    """Base of the objects that a training calls; every method does nothing.

    A hook may read the attributes of the trainer, change masks by
    :meth:`Trainer.set_masks` and, in :meth:`before_step`, the gradients.
    """

    settled = True
    """Whether the network may be kept; False as long as the hook has to prune."""

    def on_phase_begin(self, trainer: Trainer) -> None:
        """Act before the epochs of a phase."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Act before every epoch."""

    def due(self, trainer: Trainer) -> bool:
        """Tell whether :meth:`before_step` has to be called at the running step.

        Other steps may be replayed. Must not make the host wait for the device.
        """
        return True

    def before_step(self, trainer: Trainer) -> None:
        """Act when gradients are computed, before the optimizer uses them."""

    def on_epoch_end(self, trainer: Trainer) -> bool | None:
        """Act after every epoch; return True to stop the phase."""

    def on_phase_end(self, trainer: Trainer) -> None:
        """Act after the epochs of a phase."""


class StepHooks:
    """Calls the hooks of a training before steps, and counts the steps."""

    def __init__(self, trainer: Trainer, hooks: list[Hook]) -> None:
        self.trainer, self.hooks = trainer, hooks

    def due(self) -> bool:
        """Tell whether a hook has something to do at the running step."""
        return any(hook.due(self.trainer) for hook in self.hooks)

    def __call__(self) -> None:
        """Let the hooks act, and count the step."""
        for hook in self.hooks:
            if hook.due(self.trainer):
                hook.before_step(self.trainer)
        self.trainer.step += 1

    def skip(self) -> None:
        """Count a step at which no hook is due."""
        self.trainer.step += 1


class EarlyStopping(Hook):
    """Stop the fine-tuning when a validation score stops rising; keep the best weights.

    Parameters
    ----------
    score : callable or None
        ``score(trainer, outputs)`` maps the outputs for the held-out rows to a score,
        the higher the better; None: minus the validation loss.
    patience : int or inf
        Stop after more than this many consecutive epochs without improvement.
    tol : float
        Smallest gain over the best score that counts as improvement.
    reduce : callable, default=None
        Applied to the outputs before `score`, see :meth:`Trainer.validate`.
    """

    def __init__(
        self,
        score: Callable[[Trainer, np.ndarray], float] | None,
        patience: float,
        tol: float,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._score, self.patience, self.tol = score, patience, tol
        self._reduce = reduce
        self.best_score = -math.inf
        self.best_iter: int | None = None
        self.n_no_change = 0
        self._best_state: dict | None = None

    def on_phase_begin(self, trainer: Trainer) -> None:
        """After a warm start, let the weights so far compete."""
        if trainer.phase != "fine-tune" or trainer.history.best_score == -math.inf:
            return
        # Weights that were trained on the held-out rows must not compete.
        if not trainer.history.refitted:
            score, _ = self._measure(trainer)
            self._update(trainer, score)
            trainer.validation_score = score

    def on_epoch_end(self, trainer: Trainer) -> bool:
        """Score the held-out rows; return whether to stop."""
        if trainer.phase != "fine-tune":
            return False
        score, loss = self._measure(trainer)
        trainer.record_validation(score, loss)
        if not trainer.settled:
            return False
        self._update(trainer, score)
        return self.n_no_change > self.patience

    def on_phase_end(self, trainer: Trainer) -> None:
        """Give the network its best weights back."""
        if trainer.phase != "fine-tune":
            return
        if trainer.loaded:
            self._take_loaded(trainer)
        if self._best_state is None:  # no epoch ended with a network to keep
            score, _ = self._measure(trainer)
            self._update(trainer, score)
        assert self._best_state is not None
        trainer.restore(self._best_state, self.best_score, self.best_iter)

    def _take_loaded(self, trainer: Trainer) -> None:
        """Keep the weights that a skorch callback loaded, and find their epoch."""
        score, loss = self._measure(trainer)
        self.best_score, self._best_state = -math.inf, None
        self._update(trainer, score)
        n_epochs = min(len(trainer.epochs), trainer.n_iter)
        losses = np.array(trainer.history.validation_losses[-n_epochs:])
        after = len(losses) - 1 - int(np.abs(losses - loss).argmin())
        self.best_iter = trainer.n_iter - after

    def _measure(self, trainer: Trainer) -> tuple[float, float]:
        outputs, loss = trainer.validate(self._reduce)
        score = -loss if self._score is None else self._score(trainer, outputs)
        return float(score), loss

    def _update(self, trainer: Trainer, score: float) -> None:
        improved = score >= self.best_score + self.tol
        self.n_no_change = 0 if improved else self.n_no_change + 1
        if score > self.best_score or self._best_state is None:
            self.best_score, self.best_iter = score, trainer.n_iter
            state = trainer.network.state_dict()
            self._best_state = {name: value.clone() for name, value in state.items()}


class Verbose(Hook):
    """Print a line per epoch, beginning with `start`."""

    def __init__(self, start: str = "") -> None:
        self.start = start

    def on_phase_begin(self, trainer: Trainer) -> None:
        """Print where a cached or continued phase starts."""
        if trainer.from_cache:
            n_epochs = len(trainer.epochs)
            print(f"{self.start}{trainer.phase}: {n_epochs} epochs taken from memory")
        score = trainer.validation_score
        if trainer.phase == "fine-tune" and score is not None:
            print(f"{self.start}warm start: validation score {score:.6f}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Print loss and validation score."""
        message = (
            f"{self.start}{trainer.phase}, epoch {trainer.epoch + 1}/"
            f"{trainer.n_epochs}: loss {trainer.loss:.6f}"
        )
        if trainer.validation_score is not None:
            message += f", validation score {trainer.validation_score:.6f}"
        print(message)
