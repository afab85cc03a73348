"""What is left of a fit when its parameters and data are checked: the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import torch

from sklearn_fpe._engine._cache import Warm, WarmUpCache, data_digest
from sklearn_fpe._engine._hooks import Hook, Verbose
from sklearn_fpe._engine._recipe import Learned, Recipe, Settings
from sklearn_fpe._engine._shared import Shared
from sklearn_fpe._engine._trainer import Trainer, Training
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._engine._world import World
from sklearn_fpe._estimators import _parameters
from sklearn_fpe._estimators._constraints import NOT_OF_WARM_UP
from sklearn_fpe._estimators._held_out import stopping_hook
from sklearn_fpe._estimators._progress import Progress
from sklearn_fpe._version import __version__

if TYPE_CHECKING:
    from sklearn_fpe._estimators._base import BaseFPE


@dataclass(frozen=True)
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
    on_learned : callable
        Lets the estimator have learned something.
    recipe, settings, targets
        What shapes the network, how to train, and the targets.
    parts : list of Learned or None
        What each network continues from.
    used, train, held : Sample
        All rows, those to train on, and those to validate on or None.
    progress : Progress
        Tells callbacks of the training.
    shared : Shared or None
        What the fit has in common with others.
    world : World
        The processes that fit together.
    """

    estimator: BaseFPE
    draft: BaseFPE
    make_model: Callable[[Learned], Any]
    on_learned: Callable[[Learned], None]
    recipe: Recipe
    settings: Settings
    targets: Any
    parts: list[Learned | None]
    used: Sample
    train: Sample
    held: Sample | None
    progress: Progress
    shared: Shared | None
    world: World

    def trainer(self, sample: Sample, member: int = 0) -> Trainer:
        """Return a trainer that knows location and scale of the rows of a sample.

        `member` is the number of the network in an ensemble.
        """
        learned = self.parts[member]
        trainer = Trainer(
            self.recipe.of_member(member),
            self.settings,
            self.targets,
            learned,
            self.shared,
            self.world,
        )
        if learned is None:
            trainer.learn_scale(sample)
            warn_constant(self.draft, trainer)
        return trainer

    def trainings(self, warm: Warm | None = None) -> list[Training]:
        """Return the training of every network.

        Each yields its epochs and returns what was learned. `warm` is the result of
        the warm-up, if it is known.
        """
        return [self._training(k, warm) for k in range(len(self.parts))]

    def _training(self, member: int, warm: Warm | None) -> Training:
        estimator = self.estimator
        hooks: list[Hook] = [self.progress.of_member()]
        if estimator.verbose and self.world.rank == 0:
            several = len(self.parts) > 1
            hooks.insert(0, Verbose(f"network {member + 1}, " if several else ""))
        cache: Any = None
        if warm is not None:
            cache = lambda known: lambda compute: warm  # noqa: E731
        elif estimator.memory is not None:
            cache = self._warm_up_cache(member)
        trainer = self.trainer(self.train, member)
        if self.held is not None:
            device = self.settings.device
            stopping = stopping_hook(
                self.draft, self.targets, self.held, device, self.make_model
            )
            hooks.insert(0, stopping)
        result = yield from trainer.training(
            self.train, self.held, hooks=hooks, cache=cache
        )
        if estimator.refit and self.held is not None:
            best = result.history.best_iter
            again = self.trainer(self.used, member)
            refitted = yield from again.training(self.used, n_epochs=best)
            result = refitted.with_validation(result)
        return result

    def warm_up_key(self) -> tuple | None:
        """Return all that the warm-up depends on; None: train it alone."""
        estimator = self.estimator
        n_epochs = self.settings.n_warmup
        callbacks = estimator.skorch_callbacks or getattr(
            estimator, "_skl_callbacks", None
        )
        trained = self.parts[0] or not n_epochs or len(self.parts) > 1
        if callbacks or estimator.memory is not None or trained:
            return None
        of_warm_up = self._warm_up()
        of_warm_up["parameters"] |= {"random_state": None, "activation": None}
        seeds, n_rows = self.recipe.seeds, len(self.train)
        digest = joblib.hash(
            (
                id(self.train),
                n_epochs,
                (seeds.init, seeds.shuffle),
                self.settings.rows_per_step(n_rows),
                of_warm_up,
            )
        )
        # Functions of the user's may have no pickle to make a digest of.
        return digest, self.recipe.activation

    def warming(self) -> Training:
        """Train the warm-up alone, yielding epochs; return its result."""
        trainer = self.trainer(self.train)
        return (yield from trainer.warming(self.train, self.settings.n_warmup))

    def accept(self, learned: Learned) -> BaseFPE:
        """Let the estimator have learned this; return it."""
        self.on_learned(learned)
        return self.estimator

    def end(self, results: Sequence[Any]) -> BaseFPE:
        """Accept the results of the trainings; return the estimator.

        The first result that is an exception is raised.
        """
        for result in results:
            if isinstance(result, Exception):
                raise result
        learned = Learned.join(results)
        self.progress.end(learned)
        # No process learns what another one did not.
        self.world.gather(None, "ends")
        return self.accept(learned)

    def _warm_up(self) -> dict[str, Any]:
        """Return what a warm-up depends on beside its rows and seeds."""
        settings = self.settings
        return {
            "loss": settings.loss.name,
            "learning_rate_init": float(settings.learning_rate_init),
            "weight_decay": float(settings.decay_in("warm-up")),
            "widths": self.recipe.shape.widths,
            "device": str(settings.device),
            "parameters": {
                name: _parameters.plain(value)
                for name, value in self.estimator.get_params(deep=False).items()
                if name not in NOT_OF_WARM_UP
            },
        }

    def _warm_up_cache(self, member: int) -> Callable[[dict], WarmUpCache]:
        """Return a function from what a trainer knows of a warm-up to its cache."""
        of_warm_up = self._warm_up()
        if member:
            of_warm_up["parameters"]["member"] = member
        memory = _parameters.as_memory(self.estimator.memory)

        def cache(known: dict) -> WarmUpCache:
            sample = known.pop("sample")
            X = sample.view.X
            if isinstance(X, torch.Tensor):
                values = X.detach().cpu().contiguous().view(torch.uint8).numpy()
                X = values, str(X.dtype)
            data = (X, sample.view.index, sample.y, sample.weights)
            key = {
                **known,
                **of_warm_up,
                "data": data_digest(*data, sample.entry_weights),
                "n_threads": torch.get_num_threads(),
                "versions": (__version__, torch.__version__),
            }
            return WarmUpCache(memory, key)

        return cache


def warn_constant(estimator: BaseFPE, trainer: Trainer) -> None:
    """Warn of columns that differ by rounding only, because they count as constant."""
    found = {"X": trainer.moments, "y": getattr(trainer.targets, "moments", None)}
    for name, moments in found.items():
        if moments is None:
            continue
        columns = np.flatnonzero(moments.constant() & ~moments.exactly_constant())
        if len(columns):
            names = vars(estimator).get("feature_names_in_") if name == "X" else None
            shown = columns.tolist() if names is None else names[columns].tolist()
            warnings.warn(
                f"The values of {name} in column {', '.join(map(str, shown[:5]))} "
                f"differ in the last digits of float64 only, so they count as "
                f"constant: subtract their mean before you store them.",
                UserWarning,
                stacklevel=_parameters.stack_level(),
            )
