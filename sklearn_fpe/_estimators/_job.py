"""What is left of a fit when its parameters and data are checked: the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import joblib
import torch

from sklearn_fpe._engine._cache import Warm, WarmUpCache, data_digest
from sklearn_fpe._engine._hooks import Hook, Verbose
from sklearn_fpe._engine._recipe import Learned, Recipe, Settings
from sklearn_fpe._engine._shared import Shared
from sklearn_fpe._engine._trainer import Trainer, Training
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._engine._world import World
from sklearn_fpe._estimators import _consistency, _parameters
from sklearn_fpe._estimators._progress import Progress
from sklearn_fpe._estimators._validation import stopping_hook
from sklearn_fpe._version import __version__

if TYPE_CHECKING:
    from sklearn_fpe._estimators._base import BaseFPE

NOT_OF_WARM_UP = {
    *("expansion", "split", "feature_groups", "prune", "budget"),
    *("early_stopping", "validation_fraction", "n_iter_no_change", "tol", "scoring"),
    *("refit", "warm_start", "verbose", "memory", "skorch_callbacks", "distributed"),
    "n_estimators",
    # These act on the warm-up through the data, or stand in the key as resolved.
    *("class_weight", "task", "hidden_layer_sizes", "warmup", "batch_size", "device"),
    *("learning_rate_init", "weight_decay"),
}
"""The parameters that the key of a cached warm-up leaves out."""


class Job:
    """A fit whose parameters and data are checked: what is left is to train.

    Parameters
    ----------
    estimator : BaseFPE
        The estimator to fit.
    draft : BaseFPE
        A copy of it that knows the columns of X.
    make_model : callable
        Maps what was learned to a fitted copy, to score it.
    accept : callable
        Lets the estimator have learned something.
    recipe : Recipe
        What shapes the network.
    settings : Settings
        How to train.
    targets : ClassTargets or RealTargets
        The targets.
    parts : list of Learned or None
        What each network continues from.
    samples : tuple
        All rows, those to train on, and those to validate on or None.
    progress : Progress
        Tells callbacks of the training.
    shared : Shared or None
        What the fit has in common with others.
    world : World
        The processes that fit together.
    """

    def __init__(
        self,
        estimator: BaseFPE,
        draft: BaseFPE,
        make_model: Callable[[Learned], Any],
        accept: Callable[[Learned], None],
        recipe: Recipe,
        settings: Settings,
        targets,
        parts: list[Learned | None],
        samples: tuple[Sample, Sample, Sample | None],
        progress: Progress,
        shared: Shared | None,
        world: World,
    ):
        self.estimator, self._draft = estimator, draft
        self._make_model, self._accept = make_model, accept
        self.recipe, self.settings, self._targets = recipe, settings, targets
        self._shared, self._progress = shared, progress
        self._all, self._train, self._held = samples
        self._parts = parts
        self._world = world

    def trainer(self, sample: Sample, member: int = 0) -> Trainer:
        """Return a trainer that knows location and scale of the rows of a sample.

        `member` is the number of the network in an ensemble.
        """
        recipe, learned = self.recipe.of_member(member), self._parts[member]
        trainer = Trainer(
            recipe, self.settings, self._targets, learned, self._shared, self._world
        )
        if learned is None:
            trainer.learn_scale(sample)
            _consistency.warn_constant(self._draft, trainer)
        return trainer

    def trainings(self, warm: Warm | None = None) -> list[Training]:
        """Return the training of every network.

        Each yields its epochs and returns what was learned. `warm` is the result of
        the warm-up, if it is known.
        """
        return [self._training(k, warm) for k in range(len(self._parts))]

    def _training(self, member: int, warm: Warm | None) -> Training:
        estimator, draft = self.estimator, self._draft
        hooks: list[Hook] = [self._progress.of_member()]
        if estimator.verbose and self._world.rank == 0:
            several = len(self._parts) > 1
            hooks.insert(0, Verbose(f"network {member + 1}, " if several else ""))
        cache: Any = None
        if warm is not None:
            cache = lambda known: lambda compute: warm  # noqa: E731
        elif estimator.memory is not None:
            cache = warm_up_cache(
                draft, self.recipe.of_member(member), self.settings, member
            )
        trainer = self.trainer(self._train, member)
        stopping = stopping_hook(
            draft, self._targets, self._held, self.settings.device, self._make_model
        )
        result = yield from trainer.training(
            self._train, self._held, hooks=[*stopping, *hooks], cache=cache
        )
        if estimator.refit and stopping:
            best = result.history.best_iter
            again = self.trainer(self._all, member)
            refitted = yield from again.training(self._all, n_epochs=best)
            result = refitted.with_validation(result)
        return result

    def warm_up_key(self) -> str | None:
        """Return a digest of all that the warm-up depends on; None: train it alone."""
        estimator = self.estimator
        n_epochs = self.settings.n_warmup
        callbacks = estimator.skorch_callbacks or getattr(
            estimator, "_skl_callbacks", None
        )
        trained = self._parts[0] or not n_epochs or len(self._parts) > 1
        if callbacks or estimator.memory is not None or trained:
            return None
        seeds, shape = self.recipe.seeds, self.recipe.shape
        return joblib.hash(
            (
                id(self._train),
                n_epochs,
                (seeds.init, seeds.shuffle),
                (shape.widths, shape.skip),
                (self.settings.loss.name, str(self.settings.device)),
                self.settings.rows_per_step(len(self._train)),
                speeds_of_warm_up(self.settings),
                of_warm_up(estimator) | {"random_state": None},
            )
        )

    def warming(self) -> Training:
        """Train the warm-up alone, yielding epochs; return its result."""
        trainer = self.trainer(self._train)
        return (yield from trainer.warming(self._train, self.settings.n_warmup))

    def accept(self, learned: Learned) -> BaseFPE:
        """Let the estimator have learned this; return it."""
        self._accept(learned)
        return self.estimator

    def end(self, results: Sequence[Any]) -> BaseFPE:
        """Accept the results of the trainings; return the estimator.

        The first result that is an exception is raised.
        """
        for result in results:
            if isinstance(result, Exception):
                raise result
        learned = Learned.join(results)
        self._progress.end(learned)
        # No process learns what another one did not.
        self._world.gather(None, "ends")
        return self.accept(learned)


def of_warm_up(estimator) -> dict:
    """Return the parameters on which a warm-up depends, as plain values."""
    return {
        name: _parameters.plain(value)
        for name, value in estimator.get_params(deep=False).items()
        if name not in NOT_OF_WARM_UP
    }


def speeds_of_warm_up(settings: Settings) -> dict[str, float]:
    """Return the learning rate and the weight decay of a warm-up."""
    return {
        "learning_rate_init": float(settings.learning_rate_init),
        "weight_decay": float(settings.decay_in("warm-up")),
    }


def warm_up_cache(estimator, recipe: Recipe, settings: Settings, member: int = 0):
    """Return a function from what a trainer knows of a warm-up to its cache."""
    parameters = of_warm_up(estimator)
    if member:
        parameters["member"] = member

    def cache(known):
        sample = known.pop("sample")
        X = sample.view.X
        if isinstance(X, torch.Tensor):
            X = (
                X.detach().cpu().contiguous().view(torch.uint8).numpy(),
                str(X.dtype),
            )
        key = {
            **known,
            "data": data_digest(
                X, sample.view.index, sample.y, sample.weights, sample.entry_weights
            ),
            "loss": settings.loss.name,
            **speeds_of_warm_up(settings),
            "widths": recipe.shape.widths,
            "device": str(settings.device),
            "n_threads": torch.get_num_threads(),
            "versions": (__version__, torch.__version__),
            "parameters": parameters,
        }
        return WarmUpCache(_parameters.as_memory(estimator.memory), key)

    return cache
