"""How the estimators fit: check, resolve, train, accept."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
)

from sklearn_fpe._engine._cache import WarmUpCache, data_digest
from sklearn_fpe._engine._context import readable_memory_errors, threads_for
from sklearn_fpe._engine._hooks import EarlyStopping, Hook, Verbose
from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._recipe import Learned, Recipe, Seeds, Settings
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._engine._world import SINGLE, World, open_world
from sklearn_fpe._estimators import _consistency, _inputs, _parameters, _together
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._fitted import FITTED, Fitted
from sklearn_fpe._estimators._progress import Progress
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import Activation, PruneRule, SplitRule, check_expansion
from sklearn_fpe.nn._activation import ACTIVATIONS, get_activation
from sklearn_fpe.nn._expand import warn_expansion
from sklearn_fpe.nn._prune import PRUNES, get_prune
from sklearn_fpe.nn._split import SPLITS, get_split

if TYPE_CHECKING:
    from sklearn_fpe._estimators._targets import ClassTargets, RealTargets

NOT_OF_WARM_UP = {
    *("expansion", "split", "feature_groups", "prune", "budget"),
    *("early_stopping", "validation_fraction", "n_iter_no_change", "tol", "scoring"),
    *("refit", "warm_start", "verbose", "memory", "skorch_callbacks", "distributed"),
    # These act on the warm-up through the data, or stand in the key as resolved.
    *("class_weight", "task", "hidden_layer_sizes", "warmup", "batch_size", "device"),
}
"""The parameters that the key of a cached warm-up leaves out."""


def _as_before():
    """Return a context that restores how NumPy treats floating-point errors.

    An interrupt can skip the end of an inner ``np.errstate``.
    """
    return np.errstate()


class BaseFPE(CallbackSupportMixin, Fitted):
    """Shared code to fit.

    A subclass spells out the parameters, says what its targets are, and turns raw
    outputs into predictions.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "expansion": ["array-like", Interval(Integral, 1, None, closed="left")],
        "split": [StrOptions({"auto", *SPLITS}), SplitRule, callable],
        "feature_groups": ["array-like", None],
        "prune": [StrOptions({"auto", *PRUNES}), PruneRule],
        "warmup": [
            Interval(Integral, 0, None, closed="left"),
            Interval(Real, 0, 1, closed="both"),
        ],
        "budget": [Interval(Integral, 1, None, closed="left"), None],
        "activation": [StrOptions(set(ACTIVATIONS)), Activation],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "learning_rate": [StrOptions({"constant", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "scoring": [str, callable, None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "tol": [Interval(Real, 0, None, closed="left")],
        "refit": ["boolean"],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "skorch_callbacks": [list, None],
        "memory": [str, HasMethods("cache"), HasMethods("__fspath__"), None],
        "random_state": ["random_state"],
        "distributed": ["boolean"],
        "verbose": ["boolean", Interval(Integral, 0, None, closed="left")],
    }

    # The HTML representation documents parameters only beside a link; the paper is what
    # has an address.
    _doc_link_module = "sklearn_fpe"
    _doc_link_template = "https://arxiv.org/abs/2510.04500"

    @abstractmethod
    def _make_targets(self) -> ClassTargets | RealTargets:
        """Return targets that have learned nothing, see ``_targets``."""

    # ----------------------------------------------------------------------------------
    # Fitting
    # ----------------------------------------------------------------------------------

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X,
        y,
        sample_weight=None,
        *,
        X_val=None,
        y_val=None,
        sample_weight_val=None,
    ):
        """Warm up, split, prune and fine-tune.

        What an earlier fit has learned is replaced when this one has succeeded;
        whatever makes it fail, Ctrl-C included, leaves the estimator as it was.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training input. Large memory maps and sparse matrices are read in pieces,
            tensors stay on their device.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets; on any device.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; rows of weight 0 are left out.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Input to validate on, for `early_stopping`; None: hold rows of X out.
        y_val : array-like, default=None
            Targets of `X_val`; on any device.
        sample_weight_val : array-like of shape (n_val,), default=None
            Weights of the rows of `X_val`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If the parameters and the data do not fit; nothing has been trained then.
        FloatingPointError
            If the training loss stops being finite.
        RuntimeError
            If `distributed` and another process fails or does not answer.
        MemoryError
            If the memory of the device does not suffice.

        Warns
        -----
        UserWarning
            If a smaller expansion than asked for is used, or if a column differs by
            rounding only and counts as constant.
        """
        validation = (X_val, y_val, sample_weight_val)
        with _as_before(), open_world(self.distributed) as world:
            return self._fit(world, X, y, sample_weight, *validation)

    def _fit(self, world, X, y, sample_weight, X_val, y_val, sample_weight_val):
        device, n_warmup = self._check_parameters()
        _parameters.check_schedule(n_warmup, self.max_iter)
        self._check_validation(X_val, y_val)
        learned = self._learned if self.warm_start and self._is_fitted() else None
        _together.check_alike(
            self, world, device, learned, given={"X_val": X_val is not None}
        )
        world.use(device)
        draft = self._draft(learned)
        targets = draft._targets_for(learned)
        rows = draft._check_data(
            X, y, sample_weight, targets, learn=learned is None, world=world
        )
        recipe = draft._resolve(rows.view.shape[1], targets, learned, world=world)
        held = None
        if X_val is not None:
            held = draft._check_data(
                X_val, y_val, sample_weight_val, targets, suffix="_val", world=world
            ).used()
        train, held = draft._hold_out(rows.used(), held, targets, recipe.seeds, world)
        settings = self._settings(targets, device, n_warmup)
        n_phases = 1 if learned and learned.phase == "fine-tune" else 2
        progress = Progress(
            self._init_callback_context(max_subtasks=n_phases),
            self,
            train,
            sample_weight,
            draft._as_fitted,
        )
        hooks: list[Hook] = [progress]
        if self.verbose and world.rank == 0:
            hooks.insert(0, Verbose())
        cache = None if self.memory is None else draft._cache(recipe, settings)
        with self._computing(recipe, settings, device):
            start = (recipe, settings, targets, learned, world)
            trainer = draft._trainer_for(*start, train)
            stopping = draft._stopping(targets, held)
            result = trainer.fit(train, held, hooks=[*stopping, *hooks], cache=cache)
            if self.refit and stopping:
                again = draft._trainer_for(*start, rows.used())
                best = result.history.best_iter
                result = again.fit(rows.used(), n_epochs=best).with_validation(result)
        progress.end(lambda: draft._as_fitted(result))
        world.gather(None, "ends")  # because no process learns what another did not
        self._accept(draft, result)
        return self

    def _partial_fit(self, X, y, sample_weight, classes=None):
        with _as_before(), open_world(self.distributed) as world:
            return self._train_epoch(world, X, y, sample_weight, classes)

    def _train_epoch(self, world, X, y, sample_weight, classes):
        device, n_warmup = self._check_parameters()
        self._check_partial()
        learned = self._learned if self._is_fitted() else None
        _together.check_alike(
            self, world, device, learned, given={"classes": classes is not None}
        )
        world.use(device)
        draft = self._draft(learned)
        targets = draft._targets_for(learned)
        rows = draft._check_data(
            X,
            y,
            sample_weight,
            targets,
            learn=learned is None,
            classes=classes,
            world=world,
        ).used()
        recipe = draft._resolve(
            rows.view.shape[1], targets, learned, in_pieces=True, world=world
        )
        settings = self._settings(targets, device, n_warmup)
        # Taken off: if training fails, the next call starts from what was learned.
        trainer, result = vars(self).pop("_trainer", (None, None))
        if trainer and (
            result is not learned or trainer.settings.net() != settings.net()
        ):
            trainer = None
        # All processes keep the state of the optimizer, or none does.
        if world.total(trainer is None, "fresh starts"):
            trainer = None
        with self._computing(recipe, settings, device):
            if trainer is None:
                trainer = Trainer(recipe, settings, targets, learned, world)
            trainer.settings, trainer.world = settings, world
            result = trainer.partial_fit(rows)
        if result.phase == "fine-tune" and (not learned or learned.phase == "warm-up"):
            _consistency.warn_constant(draft, trainer)
        if self.verbose and world.rank == 0:
            print(f"{result.phase}, epoch {trainer.n_iter}: loss {trainer.loss:.6f}")
        world.gather(None, "ends")  # because no process learns what another did not
        trainer.world = SINGLE
        self._accept(draft, result, (trainer, result))
        return self

    def _check_parameters(self) -> tuple[torch.device, int]:
        """Check what does not depend on data; return the device and the warm-up."""
        _parameters.resolve_hidden(self.hidden_layer_sizes)
        _parameters.resolve_expansion(self.expansion)
        if self.distributed:
            _together.check_supported(self)
        if self.memory is not None:
            _parameters.check_cache(self)
        _parameters.check_skorch_callbacks(
            self.skorch_callbacks, self.early_stopping, self._rules(None, False)[1]
        )
        if self.refit and not self.early_stopping:
            raise ValueError(
                "refit=True trains again for the epochs that early stopping found "
                "best: it needs early_stopping=True."
            )
        if self.refit and self.skorch_callbacks:
            raise ValueError(
                "refit=True trains twice, and skorch_callbacks could stop or change "
                "the second training, too: set skorch_callbacks=None or refit=False."
            )
        return (
            _parameters.resolve_device(self.device, self.distributed),
            _parameters.resolve_warmup(self.warmup, self.max_iter),
        )

    def _check_validation(self, X_val, y_val):
        if (X_val is None) != (y_val is None):
            given, missing = ("X_val", "y_val")[:: 1 if y_val is None else -1]
            raise ValueError(f"{given} is given, but {missing} is not.")
        if X_val is None:
            return
        if not self.early_stopping:
            raise ValueError(
                "X_val and y_val are given, but early_stopping=False would not use "
                "them: set early_stopping=True."
            )
        if self.refit:
            raise ValueError(
                "refit=True trains again with the rows of X that were held out; with "
                "X_val none are: set refit=False."
            )

    def _check_partial(self):
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: the caller decides "
                "which call is the last."
            )
        if getattr(self, "class_weight", None) == "balanced":
            raise ValueError(
                'partial_fit does not support class_weight="balanced": the class '
                "frequencies of all rows are not known. Pass a dict."
            )

    def _draft(self, learned: Learned | None):
        """Return a copy to check inputs with, so that `self` stays as it is."""
        draft = object.__new__(type(self))
        names = FITTED if learned is None else ("_trainer",)
        draft.__dict__ = {k: v for k, v in vars(self).items() if k not in names}
        return draft

    def _targets_for(self, learned: Learned | None):
        made = self._make_targets()
        if learned is None:
            return made
        _consistency.check_same_targets(made, learned.targets)
        return learned.targets

    def _check_data(
        self,
        X,
        y,
        sample_weight,
        targets,
        *,
        learn=False,
        classes=None,
        suffix="",
        world: World = SINGLE,
    ) -> Sample:
        """Check arrays; return rows, targets and weights, rows of weight 0 included."""
        X, y = _inputs.check_X_y(
            self,
            X,
            y,
            reset=learn,
            suffix=suffix,
            y_numeric=targets.y_numeric,
        )
        weights = _inputs.check_weights(sample_weight, X, "sample_weight" + suffix)
        if learn:
            _together.check_columns(self, world)
        y = targets.check(
            y, weights, learn=learn, classes=classes, name="y" + suffix, world=world
        )
        entries = targets.entry_weights(y, weights, world)
        return Sample(View(X), y, targets.row_weights(y, weights, world), entries)

    def _rules(self, learned: Learned | None, in_pieces: bool):
        """Resolve `split` and `prune`, of which ``"auto"`` stands for several."""
        prune = self.prune
        if isinstance(prune, str) and prune == "auto":
            if learned is not None:
                prune = learned.recipe.prune
            else:
                # The budget holds after every call of partial_fit, so that it cannot
                # be approached gradually.
                prune = "magnitude" if in_pieces else "gradual"
        prune = get_prune(prune)
        if in_pieces and learned is None and not prune.at_once:
            raise ValueError(
                f"partial_fit cannot prune gradually, because the budget holds after "
                f'every call: set prune="auto", "magnitude" or "structured", got '
                f"{self.prune!r}."
            )
        split = self.split
        if isinstance(split, str) and split == "auto":
            if learned is not None:
                split = learned.recipe.split
            else:
                split = "shared" if prune.at_once else "learned"
        return get_split(split), prune

    def _resolve(
        self,
        n_features,
        targets,
        learned: Learned | None,
        in_pieces: bool = False,
        world: World = SINGLE,
    ) -> Recipe:
        """Resolve shape, expansion, budget and seeds; raise if they conflict."""
        hidden = _parameters.resolve_hidden(self.hidden_layer_sizes)
        expansion = _parameters.resolve_expansion(self.expansion)
        split, prune = self._rules(learned, in_pieces)
        if split.needs_groups:
            _parameters.check_groups(self.feature_groups, n_features)
        widths = [n_features, *hidden, targets.n_columns]
        _parameters.check_size(widths)
        shape, budget = check_expansion(
            widths,
            expansion,
            split,
            prune=prune,
            budget=self.budget,
            groups=self.feature_groups,
            skip=getattr(self, "skip_connection", False),
        )
        recipe = Recipe(
            shape,
            budget,
            split,
            prune,
            self.feature_groups,
            get_activation(self.activation),
            # Those of process 0, because others may have drawn other seeds.
            world.gather(self._seeds(), "seeds")[0]
            if learned is None
            else learned.recipe.seeds,
        )
        if learned is not None:
            standardized = learned.moments is not None
            _consistency.check_unchanged(self, recipe, learned.recipe, standardized)
            return learned.recipe
        level = 1 + _parameters.stack_level()
        warn_expansion(shape, expansion, budget, prune.at_once, stacklevel=level)
        return recipe

    def _seeds(self) -> Seeds:
        if self.random_state is None:
            return Seeds.spawn(None)  # without moving NumPy's global generator
        return Seeds.spawn(
            int(check_random_state(self.random_state).randint(2**31 - 1))
        )

    def _settings(self, targets, device: torch.device, n_warmup: int) -> Settings:
        return Settings(
            loss=LOSSES[targets.loss](getattr(self, "label_smoothing", 0.0)),
            max_iter=self.max_iter,
            n_warmup=n_warmup,
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            learning_rate=self.learning_rate,
            learning_rate_init=self.learning_rate_init,
            weight_decay=self.weight_decay,
            standardize=self.standardize,
            bfloat16=self.precision == "bfloat16",
            device=device,
            callbacks=tuple(self.skorch_callbacks or ()),
        )

    @contextmanager
    def _computing(self, recipe: Recipe, settings: Settings, device: torch.device):
        """Train with as many threads as pay; explain a lack of memory."""
        remedy = (
            f"Lower batch_size (it is {self.batch_size!r}), pass X as a memory map or "
            f"in pieces by partial_fit if X itself does not fit"
        )
        # Two products of a multiplication and an addition backward, one forward.
        n_flops = 6 * recipe.shape.n_parameters() * settings.rows_per_step(2**20)
        with threads_for(n_flops, device), readable_memory_errors(device, remedy):
            yield

    def _trainer_for(self, recipe, settings, targets, learned, world, train) -> Trainer:
        """Make a trainer that knows location and scale of the rows."""
        trainer = Trainer(recipe, settings, targets, learned, world)
        if learned is None:
            trainer.learn_scale(train)
            _consistency.warn_constant(self, trainer)
        return trainer

    def _hold_out(self, train: Sample, held: Sample | None, targets, seeds, world):
        """Return the rows to train on and those to validate on, or None."""
        if not self.early_stopping:
            return train, None
        if held is None and world.size > 1:
            parts = _together.split_off(
                len(train),
                self.validation_fraction,
                targets.strata(train.y),
                (seeds.validation, world.rank),
            )
            train, held = (train.take(part) for part in parts)
        elif held is None:
            try:
                parts = train_test_split(
                    np.arange(len(train)),
                    test_size=self.validation_fraction,
                    random_state=seeds.validation,
                    stratify=targets.strata(train.y),
                )
            except ValueError as error:
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} of {len(train)} "
                    f"rows cannot be held out for early_stopping: {error}"
                ) from error
            train, held = (train.take(np.sort(part)) for part in parts)
        n_held = world.total(len(held), "numbers of held-out rows")
        if n_held < targets.rows_to_score:
            raise ValueError(
                f"early_stopping needs at least {targets.rows_to_score} rows to "
                f"validate on, got {n_held:g}: raise validation_fraction or give "
                f"X_val and y_val."
            )
        return train, held

    def _stopping(self, targets, held: Sample | None) -> list[Hook]:
        """Return the hook that stops early, if rows are held out."""
        if held is None:
            return []
        scoring = self.scoring
        if scoring is None:
            scoring = targets.default_scoring
        if scoring == "loss":
            score = None
        elif self.scoring is None:

            def score(trainer, outputs):
                return trainer.targets.score(
                    held.y, outputs, held.weights, trainer.world
                )

        else:
            score = self._scorer(held)
        return [EarlyStopping(score, self.n_iter_no_change, self.tol)]

    def _scorer(self, held: Sample):
        """Return a function that scores the model so far by `scoring`."""
        scorer = check_scoring(self, scoring=self.scoring)
        X = held.view.select(held.view.X)
        keywords = {}
        if (held.weights != held.weights[0]).any():
            _parameters.check_takes_weights(scorer, self.scoring)
            keywords["sample_weight"] = held.weights
        kind = self._predictor()

        def score(trainer, outputs):
            model = object.__new__(kind)
            model.__dict__ = vars(self._draft(None)) | self._as_fitted(
                trainer.learned()
            )
            # Rows of a frame are an array by now.
            vars(model).pop("feature_names_in_", None)
            value = scorer(model, X, held.y, **keywords)
            if np.isnan(value):
                raise ValueError(
                    f"scoring={self.scoring!r} gave NaN for the {len(held)} held-out "
                    f"rows: raise validation_fraction, or choose a score that is "
                    f"defined for them."
                )
            return trainer.world.mean(value, held.weights.sum(), "scores")

        return score

    def _predictor(self) -> type:
        """Return the class whose predictions are scored."""
        return type(self)

    def _cache(self, recipe: Recipe, settings: Settings):
        """Return a function from what a trainer knows of a warm-up to its cache."""
        parameters = {
            name: _parameters.plain(value)
            for name, value in self.get_params(deep=False).items()
            if name not in NOT_OF_WARM_UP
        }

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
                "widths": recipe.shape.widths,
                "device": str(settings.device),
                "n_threads": torch.get_num_threads(),
                "versions": (__version__, torch.__version__),
                "parameters": parameters,
            }
            return WarmUpCache(_parameters.as_memory(self.memory), key)

        return cache
