"""How the estimators fit: check, resolve, train, accept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import joblib
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

from sklearn_fpe._engine._cache import Warm, WarmUpCache, data_digest
from sklearn_fpe._engine._context import (
    readable_memory_errors,
    threads_for,
    training_context,
)
from sklearn_fpe._engine._device import is_accelerator
from sklearn_fpe._engine._hooks import EarlyStopping, Hook, Verbose
from sklearn_fpe._engine._lockstep import run_together
from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._recipe import Learned, Recipe, Seeds, Settings
from sklearn_fpe._engine._shared import Shared
from sklearn_fpe._engine._trainer import Trainer, Training, run_alone
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._engine._world import SINGLE, World, open_world
from sklearn_fpe._estimators import _consistency, _inputs, _parameters, _together
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._fitted import COLUMNS, FITTED, Fitted
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
    "n_estimators",
    # These act on the warm-up through the data, or stand in the key as resolved.
    *("class_weight", "task", "hidden_layer_sizes", "warmup", "batch_size", "device"),
}
"""The parameters that the key of a cached warm-up leaves out."""


def _nothing_of(outputs):
    """Return no row of outputs, because a score does not need them."""
    return outputs[:0]


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
        "precision": [StrOptions({"float32", "tf32", "bfloat16"})],
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
            Training input. Large memory maps, shards and sparse matrices are read in
            pieces, tensors stay on their device.
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

    def _fit(self, world, X, y, sample_weight, *validation):
        # Networks of an ensemble read the same rows.
        shared = Shared() if self._n_networks > 1 and world.size == 1 else None
        job = self._prepare(
            X, y, sample_weight, *validation, shared=shared, world=world
        )
        device = job.settings.device
        with self._computing(job.recipe, job.settings):
            if self._n_networks == 1:
                (training,) = job.trainings()
                with training_context(device, job.settings.tf32):
                    results = [run_alone(training)]
            else:
                results = run_together(job.trainings(), device)
        return job.end(results)

    @property
    def _n_networks(self) -> int:
        """Networks whose predictions are averaged."""
        return getattr(self, "n_estimators", 1)

    def _prepare(
        self,
        X,
        y,
        sample_weight,
        X_val,
        y_val,
        sample_weight_val,
        *,
        shared=None,
        world: World = SINGLE,
    ) -> Job:
        """Check parameters and data; return what is left of the fit."""
        n_warmup = self._check_parameters()
        _parameters.check_schedule(n_warmup, self.max_iter)
        self._check_validation(X_val, y_val)
        learned = self._learned if self.warm_start and self._is_fitted() else None
        self._meet(world, learned, {"X_val": X_val is not None})
        draft = self._draft(learned)
        targets = draft._targets_for(learned)
        rows = draft._check_data(
            X,
            y,
            sample_weight,
            targets,
            learn=learned is None,
            shared=shared,
            world=world,
        )
        recipe = draft._resolve(rows.view.shape[1], targets, learned, world=world)
        held = None
        if X_val is not None:
            held = draft._check_data(
                X_val,
                y_val,
                sample_weight_val,
                targets,
                suffix="_val",
                shared=shared,
                world=world,
            ).used()
        used = rows.used()
        train, held = draft._hold_out(used, held, targets, recipe.seeds, world)
        if shared is not None:
            train = shared.sample(train)
            held = None if held is None else shared.sample(held)
        device = self._device_for(rows, recipe, world)
        settings = self._settings(targets, device, n_warmup)
        n_phases = 1 if learned and learned.phase == "fine-tune" else 2
        n_phases *= self._n_networks
        context = self._init_callback_context(max_subtasks=n_phases)
        progress = Progress(context, self, train, sample_weight, draft._as_fitted)
        return Job(
            self,
            draft,
            recipe,
            settings,
            targets,
            learned,
            (used, train, held),
            progress,
            shared,
            world,
        )

    def _partial_fit(self, X, y, sample_weight, classes=None):
        with _as_before(), open_world(self.distributed) as world:
            return self._train_epoch(world, X, y, sample_weight, classes)

    def _train_epoch(self, world, X, y, sample_weight, classes):
        n_warmup = self._check_parameters()
        self._check_partial()
        learned = self._learned if self._is_fitted() else None
        self._meet(world, learned, {"classes": classes is not None})
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
        device = self._device_for(
            rows, recipe, world, learned and learned.network.device
        )
        settings = self._settings(targets, device, n_warmup)
        # Taken off: if training fails, the next call starts from what was learned.
        trainers, result = vars(self).pop("_trainer", (None, None))
        if trainers and (
            result is not learned or trainers[0].settings.net() != settings.net()
        ):
            trainers = None
        with self._computing(recipe, settings):
            if trainers is None:
                trainers = [
                    Trainer(recipe.of_member(k), settings, targets, part, world=world)
                    for k, part in enumerate(self._parts(learned))
                ]
            for trainer in trainers:
                trainer.settings, trainer.world = settings, world
            result = Learned.join([trainer.partial_fit(rows) for trainer in trainers])
        trainer = trainers[0]
        if result.phase == "fine-tune" and (not learned or learned.phase == "warm-up"):
            _consistency.warn_constant(draft, trainer)
        if self.verbose and world.rank == 0:
            loss = sum(trainer.loss for trainer in trainers) / len(trainers)
            print(f"{result.phase}, epoch {trainer.n_iter}: loss {loss:.6f}")
        world.gather(None, "ends")  # because no process learns what another did not
        for trainer in trainers:
            trainer.world = SINGLE  # because connections do not outlive the call
        self._accept(draft, result, (trainers, result))
        return self

    def _parts(self, learned: Learned | None) -> list[Learned | None]:
        """Return what every network has learned; None: nothing."""
        if learned is None:
            return [None] * self._n_networks
        _consistency.check_same("n_estimators", len(learned.members), self._n_networks)
        return list(learned.members)

    def _check_parameters(self) -> int:
        """Check what does not depend on data; return the epochs of the warm-up."""
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
        # Without setting up CUDA for "auto", which may choose the CPU.
        _parameters.resolve_device(self.device, work=0)
        return _parameters.resolve_warmup(self.warmup, self.max_iter)

    def _meet(self, world: World, learned: Learned | None, given: dict) -> None:
        """Check that all processes make the same call."""
        device = _parameters.resolve_device(self.device, of_process=world.size > 1)
        _together.check_alike(self, world, device, learned, given=given)
        world.use(device)

    def _device_for(
        self, rows: Sample, recipe: Recipe, world: World, before=None
    ) -> torch.device:
        """Return the device to train on; `before` is that of an earlier call."""
        if world.size > 1:
            return _parameters.resolve_device(self.device, of_process=True)
        return _parameters.device_of_fit(
            self.device, rows.view.X, recipe.shape.n_parameters(), before
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
        shared=None,
        world: World = SINGLE,
    ) -> Sample:
        """Check arrays; return rows, targets and weights, rows of weight 0 included."""

        def check():
            checked = _inputs.check_X_y(
                self,
                X,
                y,
                reset=learn,
                suffix=suffix,
                y_numeric=targets.y_numeric,
            )
            return checked, {k: v for k, v in vars(self).items() if k in COLUMNS}

        if shared is None:
            (X, y), _ = check()
        else:
            (X, y), columns = shared.get(("checked", id(X), id(y)), check)
            vars(self).update(columns)
        weights = _inputs.check_weights(sample_weight, X, "sample_weight" + suffix)
        if learn:
            _together.check_columns(self, world)
        y = targets.check(
            y, weights, learn=learn, classes=classes, name="y" + suffix, world=world
        )
        entries = targets.entry_weights(y, weights, world)
        row_weights = targets.row_weights(y, weights, world)
        return Sample(View(X), y, row_weights, entries).in_file_order()

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
            tf32=self.precision == "tf32",
            device=device,
            callbacks=tuple(self.skorch_callbacks or ()),
        )

    @contextmanager
    def _computing(self, recipe: Recipe, settings: Settings):
        """Train with as many threads as pay; explain a lack of memory."""
        remedy = f"Lower batch_size (it is {self.batch_size!r})"
        # Two products of a multiplication and an addition backward, one forward.
        n_flops = 6 * recipe.shape.n_parameters() * settings.rows_per_step(2**20)
        device = settings.device
        with threads_for(n_flops, device), readable_memory_errors(device, remedy):
            yield

    def _trainer_for(
        self, recipe, settings, targets, learned, train, shared=None, world=SINGLE
    ) -> Trainer:
        """Make a trainer that knows location and scale of the rows."""
        trainer = Trainer(recipe, settings, targets, learned, shared, world)
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

    def _stopping(self, targets, held: Sample | None, device) -> list[Hook]:
        """Return the hook that stops early, if rows are held out."""
        if held is None:
            return []
        there = is_accelerator(device)
        # Of the outputs on another device only what is needed is copied.
        reduce = _nothing_of if there else None
        scoring = self.scoring
        if scoring is None:
            scoring = targets.default_scoring
        if scoring == "loss":
            score = None
        elif self.scoring is None:
            reduce = targets.codes if there else None

            def score(trainer, outputs):
                decode = trainer.targets.decode if there else trainer.targets.decide
                return targets.score(
                    held.y, decode(outputs), held.weights, trainer.world
                )

        else:
            score = self._scorer(held)
        return [EarlyStopping(score, self.n_iter_no_change, self.tol, reduce)]

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

    def _of_warm_up(self) -> dict:
        """Return the parameters on which a warm-up depends, as plain values."""
        return {
            name: _parameters.plain(value)
            for name, value in self.get_params(deep=False).items()
            if name not in NOT_OF_WARM_UP
        }

    def _cache(self, recipe: Recipe, settings: Settings, member: int = 0):
        """Return a function from what a trainer knows of a warm-up to its cache."""
        parameters = self._of_warm_up()
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
                "widths": recipe.shape.widths,
                "device": str(settings.device),
                "n_threads": torch.get_num_threads(),
                "versions": (__version__, torch.__version__),
                "parameters": parameters,
            }
            return WarmUpCache(_parameters.as_memory(self.memory), key)

        return cache


class Job:
    """A fit whose parameters and data are checked: what is left is to train.

    Parameters
    ----------
    estimator : BaseFPE
        The estimator to fit.
    draft : BaseFPE
        A copy of it that knows the columns of X.
    recipe : Recipe
        What shapes the network.
    settings : Settings
        How to train.
    targets : ClassTargets or RealTargets
        The targets.
    learned : Learned or None
        What to continue from.
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
        recipe: Recipe,
        settings: Settings,
        targets,
        learned: Learned | None,
        samples: tuple[Sample, Sample, Sample | None],
        progress: Progress,
        shared: Shared | None,
        world: World,
    ):
        self.estimator, self._draft = estimator, draft
        self.recipe, self.settings, self._targets = recipe, settings, targets
        self._learned, self._shared, self._progress = learned, shared, progress
        self._all, self._train, self._held = samples
        self._parts = estimator._parts(learned)
        self._world = world

    def trainer(self, sample: Sample, member: int = 0) -> Trainer:
        """Return a trainer that knows location and scale of the rows of a sample.

        `member` is the number of the network in an ensemble.
        """
        return self._draft._trainer_for(
            self.recipe.of_member(member),
            self.settings,
            self._targets,
            self._parts[member],
            sample,
            self._shared,
            self._world,
        )

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
            cache = draft._cache(self.recipe.of_member(member), self.settings, member)
        trainer = self.trainer(self._train, member)
        stopping = draft._stopping(self._targets, self._held, self.settings.device)
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
        trained = self._learned or not n_epochs or len(self._parts) > 1
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
                estimator._of_warm_up() | {"random_state": None},
            )
        )

    def warming(self) -> Training:
        """Train the warm-up alone, yielding epochs; return its result."""
        trainer = self.trainer(self._train)
        return (yield from trainer.warming(self._train, self.settings.n_warmup))

    def accept(self, learned: Learned) -> BaseFPE:
        """Let the estimator have learned this; return it."""
        self.estimator._accept(self._draft, learned)
        return self.estimator

    def end(self, results: Sequence[Any]) -> BaseFPE:
        """Accept the results of the trainings; return the estimator.

        The first result that is an exception is raised.
        """
        for result in results:
            if isinstance(result, Exception):
                raise result
        learned = Learned.join(results)
        self._progress.end(lambda: self._draft._as_fitted(learned))
        # No process learns what another one did not.
        self._world.gather(None, "ends")
        return self.accept(learned)


def prepare_fit(estimator: BaseFPE, X, y, shared: Shared, **keywords) -> Job:
    """Do what ``fit`` does up to the training.

    Parameters
    ----------
    estimator : BaseFPE
        The estimator to fit.
    X, y : array-like
        Training input and targets.
    shared : Shared
        What the fit has in common with others on the same rows.
    **keywords
        Further arguments of ``fit``.

    Returns
    -------
    job : Job
        The training, and what follows it.
    """
    names = ("sample_weight", "X_val", "y_val", "sample_weight_val")
    unknown = set(keywords) - set(names)
    if unknown:
        raise TypeError(
            f"{type(estimator).__name__}.fit takes {', '.join(names)} beside X and y, "
            f"got {sorted(unknown)}."
        )
    if estimator.distributed:
        raise ValueError(
            "A search trains in one process: set distributed=False, and divide its "
            "candidates among processes by n_jobs."
        )
    estimator._validate_params()
    with _as_before():
        return estimator._prepare(
            X, y, *(keywords.get(name) for name in names), shared=shared
        )
