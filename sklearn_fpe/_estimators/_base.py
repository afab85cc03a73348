"""How the estimators fit: check, resolve, train, accept."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from sklearn.callback import CallbackSupportMixin, with_callbacks

from sklearn_fpe._engine._context import (
    readable_memory_errors,
    threads_for,
    training_context,
)
from sklearn_fpe._engine._lockstep import run_together
from sklearn_fpe._engine._recipe import Learned, Recipe, Settings
from sklearn_fpe._engine._shared import Shared
from sklearn_fpe._engine._trainer import Trainer, run_alone
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._engine._world import SINGLE, World, open_world
from sklearn_fpe._estimators import _inputs, _parameters, _together
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._constraints import CONSTRAINTS
from sklearn_fpe._estimators._fitted import COLUMNS, FITTED, Fitted
from sklearn_fpe._estimators._held_out import hold_out
from sklearn_fpe._estimators._job import Job, warn_constant
from sklearn_fpe._estimators._progress import Progress
from sklearn_fpe._estimators._resolution import (
    check_parameters,
    check_partial,
    check_same,
    check_validation,
    device_for,
    recipe_of,
    settings_of,
)

if TYPE_CHECKING:
    from sklearn_fpe._estimators._targets import ClassTargets, RealTargets


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

    _parameter_constraints = CONSTRAINTS

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
            if self._n_networks == 1 or world.size > 1:
                # In turn, because the first error must end all processes at once.
                with training_context(device, job.settings.tf32):
                    results = [run_alone(training) for training in job.trainings()]
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
        check_validation(self, X_val, y_val, sample_weight_val)
        learned = self._learned if self.warm_start and self._is_fitted() else None
        self._meet(world, learned, {"X_val": X_val is not None})
        draft = self._draft(learned)
        targets = draft._targets_for(learned)
        common = {"targets": targets, "shared": shared, "world": world}
        rows = draft._check_data(X, y, sample_weight, learn=learned is None, **common)
        recipe = recipe_of(draft, rows.view.shape[1], targets, learned, world=world)
        held = None
        if X_val is not None:
            held = draft._check_data(
                X_val, y_val, sample_weight_val, suffix="_val", **common
            ).used()
        train = used = rows.used()
        if self.early_stopping:
            train, held = hold_out(draft, used, held, targets, recipe.seeds, world)
        if shared is not None:
            train = shared.sample(train)
            held = None if held is None else shared.sample(held)
        device = device_for(self, rows, recipe, world)
        n_rows = world.total(len(train), "numbers of rows to train on")
        settings = settings_of(self, recipe, targets, device, n_warmup, n_rows)
        n_phases = 1 if learned and learned.phase == "fine-tune" else 2
        n_phases *= self._n_networks
        context = self._init_callback_context(max_subtasks=n_phases)
        progress = Progress(context, self, train, sample_weight, draft._as_fitted)
        return Job(
            estimator=self,
            draft=draft,
            make_model=draft._model_of,
            on_learned=lambda learned: self._accept(draft, learned),
            recipe=recipe,
            settings=settings,
            parts=self._parts(learned),
            used=used,
            train=train,
            held=held,
            progress=progress,
            **common,
        )

    def _partial_fit(self, X, y, sample_weight, classes=None):
        with _as_before(), open_world(self.distributed) as world:
            return self._train_epoch(world, X, y, sample_weight, classes)

    def _train_epoch(self, world, X, y, sample_weight, classes):
        n_warmup = self._check_parameters()
        check_partial(self)
        learned = self._learned if self._is_fitted() else None
        self._meet(world, learned, {"classes": classes is not None})
        draft = self._draft(learned)
        targets = draft._targets_for(learned)
        rows = draft._check_data(
            X,
            y,
            sample_weight,
            targets=targets,
            learn=learned is None,
            classes=classes,
            world=world,
        ).used()
        recipe = recipe_of(
            draft, rows.view.shape[1], targets, learned, in_pieces=True, world=world
        )
        device = device_for(
            self, rows, recipe, world, learned and learned.network.device
        )
        settings = settings_of(self, recipe, targets, device, n_warmup)
        # Taken off: if training fails, the next call starts from what was learned.
        trainers, result = vars(self).pop("_trainer", (None, None))
        if trainers and (
            result is not learned or trainers[0].settings.net() != settings.net()
        ):
            trainers = None
        # All processes keep the state of the optimizer, or none does.
        if world.total(trainers is None, "fresh starts"):
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
            warn_constant(draft, trainer)
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
        check_same("n_estimators", len(learned.members), self._n_networks)
        return list(learned.members)

    def _check_parameters(self) -> int:
        """Check what does not depend on data; return the epochs of the warm-up."""
        return check_parameters(self)

    def _meet(self, world: World, learned: Learned | None, given: dict) -> None:
        """Check that all processes make the same call."""
        if world.size == 1:
            return
        device = _parameters.resolve_device(self.device, of_process=True)
        _together.check_alike(self, world, device, learned, given=given)
        world.use(device)

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
        both = learned.targets, made
        tasks = ("regression" if t.y_numeric else "classification" for t in both)
        check_same("task", *tasks)
        check_same("class_weight", *(getattr(t, "class_weight", None) for t in both))
        return learned.targets

    def _check_data(
        self,
        X,
        y,
        sample_weight,
        *,
        targets,
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
        if learn and world.size > 1:
            _together.check_columns(self, world)
        y = targets.check(
            y, weights, learn=learn, classes=classes, name="y" + suffix, world=world
        )
        entries = targets.entry_weights(y, weights, world)
        row_weights = targets.row_weights(y, weights, world)
        return Sample(View(X), y, row_weights, entries).in_file_order()

    @contextmanager
    def _computing(self, recipe: Recipe, settings: Settings):
        """Train with as many threads as pay; explain a lack of memory."""
        remedy = f"Lower batch_size (it is {self.batch_size!r})"
        # Two products of a multiplication and an addition backward, one forward.
        n_flops = 6 * recipe.shape.n_parameters() * settings.rows_per_step(2**20)
        device = settings.device
        with threads_for(n_flops, device), readable_memory_errors(device, remedy):
            yield

    def _model_of(self, learned: Learned):
        """Return a fitted copy that has learned this, to score it."""
        model = object.__new__(self._predictor())
        model.__dict__ = vars(self._draft(None)) | self._as_fitted(learned)
        return model

    def _predictor(self) -> type:
        """Return the class whose predictions are scored."""
        return type(self)


def prepare_fit(estimator: BaseFPE, X, y, shared: Shared, **keywords) -> Job:
    """Do what ``fit`` does up to the training; return the training that is left.

    `shared` is what the fit has in common with others on the same rows, `keywords` are
    further arguments of ``fit``.
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
