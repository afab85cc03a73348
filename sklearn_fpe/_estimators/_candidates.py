"""The candidates of a search: prepared one by one, trained together, scored.

A *fit* is a candidate on a split. :meth:`Group.begin` checks parameters and rows of
every fit and trains the warm-ups that several of them need. :meth:`Group.train` then
trains the networks of all fits at once, an epoch of each at a time: :class:`Lockstep`
runs the epochs of networks of one shape as one batched product.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, product
from traceback import format_exception
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from sklearn_fpe._engine._lockstep import Lockstep, run_together
from sklearn_fpe._engine._recipe import Learned
from sklearn_fpe._engine._shared import Shared
from sklearn_fpe._estimators._base import BaseFPE, Job, prepare_fit
from sklearn_fpe._estimators._compat import check_method_params, score_on, take_rows
from sklearn_fpe._estimators._steps import EarlierSteps, final_step

MAX_TOGETHER = 64
"""Most fits that train together, except with `halving`."""

MAX_BYTES_TOGETHER = 2**28
"""Bytes of rows, as float32, of the splits that train together."""


@dataclass(frozen=True)
class Plan:
    """What the fits of a search have in common.

    Parameters
    ----------
    search : FPESearchCV
        The search, with the estimator and the settings.
    X, y : array-like
        All rows.
    candidates : list of dict
        Parameters of every candidate.
    splits : list of (int array, int array)
        Training and test rows of every split.
    scorers : callable
        One scorer, or one that returns several scores.
    fit_params, score_params : dict
        Arguments of ``fit`` and of the scorers.
    """

    search: Any
    X: Any
    y: Any
    candidates: list[dict]
    splits: list[tuple]
    scorers: Any
    fit_params: dict
    score_params: dict

    def groups(self) -> list[list[tuple[int, int]]]:
        """Return the (candidate, split) pairs that train together.

        Pairs of a split stay together, because they read the same rows.
        """
        n_candidates, n_splits = len(self.candidates), len(self.splits)
        try:
            n_bytes = 4 * math.prod(np.shape(self.X))
        except ValueError:  # lists of different lengths, which a pipeline may take
            n_bytes = 0
        n_together = max(1, MAX_TOGETHER // n_candidates)
        n_together = min(n_together, max(1, MAX_BYTES_TOGETHER // max(1, n_bytes)))
        groups = []
        for splits in np.array_split(range(n_splits), -(-n_splits // n_together)):
            n_parts = -(-n_candidates * len(splits) // MAX_TOGETHER)
            for part in np.array_split(range(n_candidates), n_parts):
                groups.append([(int(c), int(s)) for s, c in product(splits, part)])
        return groups


class Fold:
    """The rows of a split, and what its candidates have in common."""

    def __init__(self, plan: Plan, split: int):
        self.plan = plan
        self.train, self.test = plan.splits[split]
        self.X, self.y = take_rows(plan.search.estimator, plan.X, plan.y, self.train)
        self.fit_params = check_method_params(
            plan.X, params=plan.fit_params, indices=self.train
        )
        self.shared = Shared()

    @cached_property
    def held(self):
        """The test rows and their targets."""
        plan = self.plan
        return take_rows(plan.search.estimator, plan.X, plan.y, self.test, self.train)

    def make(self, fit: Fit) -> None:
        """Make the estimator of a candidate."""
        params = clone(self.plan.candidates[fit.candidate], safe=False)
        fit.estimator = clone(self.plan.search.estimator).set_params(**params)

    def prepare(self, fit: Fit) -> None:
        """Check and transform the rows of a candidate."""
        if not _trains_together(fit.estimator):
            return
        X, fit_params = self.X, self.fit_params
        if isinstance(fit.estimator, Pipeline):
            fit.steps = self.shared.get(
                EarlierSteps.key(fit.estimator),
                lambda: EarlierSteps(fit.estimator, self.X, self.y, fit_params),
            )
            X, fit_params = fit.steps.X, fit.steps.of_last(fit.estimator, fit_params)
        last = final_step(fit.estimator)
        fit.job = prepare_fit(last, X, self.y, self.shared, **fit_params)

    def scores(self, fit: Fit, test: bool = True):
        """Return the scores of a fitted candidate on test or training rows."""
        plan, rows = self.plan, self.test if test else self.train
        X, y = self.held if test else (self.X, self.y)
        params = check_method_params(plan.X, params=plan.score_params, indices=rows)
        error_score = plan.search.error_score
        return score_on(fit.estimator, X, y, plan.scorers, params, error_score)


def _trains_together(estimator) -> bool:
    """Tell whether the training of an estimator can be split into epochs."""
    last = final_step(estimator)
    return (
        isinstance(last, BaseFPE)
        and type(last).fit is BaseFPE.fit
        and not getattr(last, "_skl_callbacks", None)
        and getattr(estimator, "transform_input", None) is None
    )


@dataclass(eq=False)
class Fit:
    """A candidate on a split.

    Attributes
    ----------
    context : CallbackContext
        The task of this fit, as callbacks see it.
    job : Job or None
        The training that is left to do; None if the estimator trains alone.
    steps : EarlierSteps or None
        The fitted steps before the last one of a pipeline.
    lockstep : Lockstep or None
        Where its networks train.
    keys : list
        The keys of its networks in the lockstep: several for an ensemble.
    error : Exception or None
        The error that ended it.
    seconds : float
        Duration of a fit that trains alone.
    result : dict
        Scores, times and error message, by the names of scikit-learn's searches.
    """

    candidate: int
    split: int
    context: Any
    estimator: Any = None
    job: Job | None = None
    steps: EarlierSteps | None = None
    lockstep: Lockstep | None = None
    keys: list[tuple[Fit, int]] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0
    result: dict = field(default_factory=dict)

    def accept(self, ended: bool) -> None:
        """Let the estimator have learned what its networks have learned so far.

        Raises the error that ended one of them, if there is one.
        """
        learned = [self.lockstep.learned(key) for key in self.keys]
        if ended:
            self.job.end(learned)
        else:
            self.job.accept(Learned.join(learned))
        if self.steps is not None:
            self.steps.put_into(self.estimator)


class Group:
    """Fits that train together: begin, train, end."""

    def __init__(self, plan: Plan, fits: list[Fit]):
        self.plan, self.fits = plan, fits
        self.folds = {split: Fold(plan, split) for split in {f.split for f in fits}}
        self.locksteps: list[Lockstep] = []
        self._start, self._seconds = time.time(), 0.0

    def begin(self) -> None:
        """Check all fits, train the warm-ups that several share, begin to train."""
        for fit in self.fits:
            fit.context.call_on_fit_task_begin(estimator=self.plan.search)
        by_device: dict[Any, list[Fit]] = {}
        for fit in self.fits:
            self.folds[fit.split].make(fit)  # an unknown parameter ends the search
            with self._attempt(fit):
                self.folds[fit.split].prepare(fit)
            if fit.job is not None:
                by_device.setdefault(fit.job.settings.device, []).append(fit)
        for device, fits in by_device.items():
            self.locksteps.append(_begin_trainings(fits, device))

    def train(self, n_epochs: float = math.inf) -> None:
        """Train all networks to their end, or until they have run so many epochs."""
        for lockstep in self.locksteps:
            lockstep.advance(n_epochs)
        self._seconds = (time.time() - self._start) / len(self.fits)

    def end(self, fits: list[Fit]) -> None:
        """Score fits whose training has ended, and those that train alone."""
        for fit in fits:
            if fit.job is None and fit.error is None:
                start, fold = time.time(), self.folds[fit.split]
                with self._attempt(fit):
                    fit.estimator.fit(fold.X, fold.y, **fold.fit_params)
                fit.seconds = time.time() - start
            self.score(fit, ended=True)
            self.close(fit)

    def score(self, fit: Fit, ended: bool = False) -> None:
        """Score what a fit has learned so far; write scores and times to its result."""
        search, fold = self.plan.search, self.folds[fit.split]
        if fit.lockstep is not None:
            with self._attempt(fit):
                fit.accept(ended)
        start, failed = time.time(), fit.error is not None
        scores = search.error_score if failed else fold.scores(fit)
        fit.result = {
            "fit_error": "".join(format_exception(fit.error)) if failed else None,
            "test_scores": scores,
            "fit_time": self._seconds + fit.seconds,
            "score_time": 0.0 if failed else time.time() - start,
        }
        if search.return_train_score:
            of_train = scores if failed else fold.scores(fit, test=False)
            fit.result["train_scores"] = of_train

    def close(self, fit: Fit) -> None:
        """End the trainings and the task of a fit; keep only its result."""
        for key in fit.keys:
            fit.lockstep.drop(key)
        fit.context.call_on_fit_task_end(estimator=self.plan.search)
        fit.estimator = fit.job = fit.steps = fit.lockstep = fit.error = None

    @contextmanager
    def _attempt(self, fit: Fit) -> Iterator[None]:
        """Note why a fit failed, or raise where failures are errors."""
        try:
            yield
        except Exception as error:
            if self.plan.search.error_score == "raise":
                raise
            fit.error = error


def _begin_trainings(fits: list[Fit], device) -> Lockstep:
    """Train each warm-up that several fits share once, and begin all trainings."""
    keys = [fit.job.warm_up_key() for fit in fits]
    counts, first = Counter(keys), {}
    for fit, key in zip(fits, keys, strict=True):
        if key is not None and counts[key] > 1:
            first.setdefault(key, fit.job)
    results = run_together([job.warming() for job in first.values()], device)
    # Where a warm-up failed, each fit trains its own and finds the error by itself.
    warm = {
        key: result
        for key, result in zip(first, results, strict=True)
        if not isinstance(result, Exception)
    }
    trainings = {}
    for fit, key in zip(fits, keys, strict=True):
        of_fit = fit.job.trainings(warm.get(key))
        fit.keys = [(fit, number) for number in range(len(of_fit))]
        trainings.update(zip(fit.keys, of_fit, strict=True))
    lockstep = Lockstep(trainings, device)
    for fit in fits:
        fit.lockstep = lockstep
    return lockstep


def make_fits(plan: Plan, searching, pairs) -> list[Fit]:
    """Return the fits of (candidate, split) pairs.

    Each has a task of its own within the task of the search, `searching`.
    """
    fits = []
    for candidate, split in pairs:
        number = candidate * len(plan.splits) + split
        context = searching.subcontext(
            task_name="candidate-split-evaluation", task_id=number
        )
        fits.append(Fit(candidate, split, context))
    return fits


def run_groups(plan: Plan, searching, n_jobs: int | None) -> list[dict]:
    """Train and score all candidates on all splits, with groups in `n_jobs` processes.

    Returns
    -------
    results : list of dict
        Scores, times and errors: those of a candidate's splits, one after another.
    """
    groups = plan.groups()
    fits = [make_fits(plan, searching, pairs) for pairs in groups]
    found = Parallel(n_jobs=n_jobs)(delayed(_run_group)(plan, part) for part in fits)
    results = dict(zip(chain(*groups), chain(*found), strict=True))
    return [results[pair] for pair in sorted(results)]


def _run_group(plan: Plan, fits: list[Fit]) -> list[dict]:
    group = Group(plan, fits)
    group.begin()
    group.train()
    group.end(fits)
    return [fit.result for fit in fits]
