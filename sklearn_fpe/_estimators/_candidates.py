"""The candidates of a search: prepared one by one, trained together, scored."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, product
from numbers import Number
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
from sklearn_fpe._estimators._compat import (
    MultimetricScorer,
    check_method_params,
    score_on,
    take_rows,
)
from sklearn_fpe._estimators._steps import EarlierSteps, final_step, transforms_input

MAX_TOGETHER = 64
"""Most fits that train together, but for `halving`."""

MAX_BYTES_TOGETHER = 2**28
"""Bytes of rows, as float32, of the splits that train together."""


@dataclass(frozen=True)
class Plan:
    """What is searched: everything that the fits of a search have in common.

    Parameters
    ----------
    estimator : estimator
        Unfitted; the candidates are clones of it.
    X, y : array-like
        All rows.
    candidates : list of dict
        Parameters of every candidate.
    splits : list of (int array, int array)
        Rows to train on and rows to test on, of every split.
    scorers : callable or _MultimetricScorer
        The scores.
    fit_params, score_params : dict
        Arguments of ``fit`` and of the scorers.
    error_score : float or "raise"
        Score of a fit that fails.
    with_train_score : bool
        Whether to score the training rows, too.
    caller : FPESearchCV
        The search, for callbacks.
    """

    estimator: Any
    X: Any
    y: Any
    candidates: list[dict]
    splits: list[tuple]
    scorers: Any
    fit_params: dict
    score_params: dict
    error_score: Any
    with_train_score: bool
    caller: Any

    def groups(self) -> list[list[tuple[int, int]]]:
        """Return the (candidate, split) pairs that train together.

        Pairs of a split stay together, because they read the same rows.
        """
        n_candidates, n_splits = len(self.candidates), len(self.splits)
        shape = self.X.shape if hasattr(self.X, "shape") else np.shape(self.X)
        n_bytes = 4 * math.prod(shape)
        n_together = max(1, MAX_TOGETHER // n_candidates)
        n_together = min(n_together, max(1, MAX_BYTES_TOGETHER // max(1, n_bytes)))
        n_groups = -(-n_splits // n_together)
        groups = []
        for splits in np.array_split(np.arange(n_splits), n_groups):
            n_parts = -(-n_candidates * len(splits) // MAX_TOGETHER)
            for part in np.array_split(np.arange(n_candidates), n_parts):
                groups.append(
                    [(int(c), int(s)) for s, c in product(splits, part)],
                )
        return groups


class Fold:
    """The rows of a split, and what its candidates have in common.

    Parameters
    ----------
    plan : Plan
        The search.
    split : int
        Number of the split.
    """

    def __init__(self, plan: Plan, split: int):
        self.plan = plan
        self.train, self.test = plan.splits[split]
        self.X, self.y = take_rows(plan.estimator, plan.X, plan.y, self.train)
        self.fit_params = check_method_params(
            plan.X, params=plan.fit_params, indices=self.train
        )
        self.shared = Shared()

    @cached_property
    def held(self):
        """The rows to test on, and their targets."""
        plan = self.plan
        return take_rows(plan.estimator, plan.X, plan.y, self.test, self.train)

    def prepare(self, fit: Fit) -> None:
        """Make the estimator of a candidate; check and transform its rows."""
        plan = self.plan
        params = clone(plan.candidates[fit.candidate], safe=False)
        fit.estimator = clone(plan.estimator).set_params(**params)
        last = final_step(fit.estimator)
        if not _trains_together(last) or transforms_input(fit.estimator):
            return
        X, fit_params = self.X, self.fit_params
        if isinstance(fit.estimator, Pipeline):
            fit.steps = self.shared.get(
                EarlierSteps.key(fit.estimator),
                lambda: EarlierSteps(fit.estimator, self.X, self.y, fit_params),
            )
            X, fit_params = fit.steps.X, fit.steps.of_last(fit.estimator, fit_params)
        fit.job = prepare_fit(last, X, self.y, self.shared, **fit_params)

    def fit_alone(self, fit: Fit) -> None:
        """Fit a candidate that does not train with others."""
        y = () if self.y is None else (self.y,)
        fit.estimator.fit(self.X, *y, **self.fit_params)

    def scores(self, fit: Fit, test: bool = True):
        """Return the scores of a fitted candidate on test or training rows."""
        plan = self.plan
        X, y = self.held if test else (self.X, self.y)
        params = check_method_params(
            plan.X, params=plan.score_params, indices=self.test if test else self.train
        )
        return score_on(fit.estimator, X, y, plan.scorers, params, plan.error_score)


@dataclass(eq=False)
class Fit:
    """A candidate on a split.

    Parameters
    ----------
    candidate, split : int
        Their numbers.
    context : CallbackContext
        The task of this fit, as callbacks see it.
    """

    candidate: int
    split: int
    context: Any
    estimator: Any = None
    job: Job | None = None
    warm_up: str | None = None
    steps: EarlierSteps | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    result: dict = field(default_factory=dict)

    def accept_so_far(self, results: list) -> None:
        """Let the estimator have learned what its networks have learned so far."""
        for result in results:
            if isinstance(result, Exception):
                raise result
        self.accept(Learned.join(results))

    def accept(self, learned: Learned) -> None:
        """Let the estimator have learned this."""
        assert self.job is not None
        self.job.accept(learned)
        if self.steps is not None:
            self.steps.put_into(self.estimator)

    def end(self, results: list) -> None:
        """Accept the results of the trainings at their end."""
        assert self.job is not None
        self.accept(self.job.end(results).learned_)


class FitsInLockstep:
    """The trainings of fits, of which an ensemble has several.

    Parameters
    ----------
    fits : list of Fit
        The fits.
    trainings : list of list of Training
        The trainings of every fit.
    device : torch.device
        Where all of them train.
    """

    def __init__(self, fits: list[Fit], trainings: list[list], device):
        self.fits = fits
        ends = np.cumsum([0, *map(len, trainings)])
        self._numbers = [range(*pair) for pair in pairwise(ends.tolist())]
        flat = [training for of_fit in trainings for training in of_fit]
        self._lockstep = Lockstep(flat, device)

    def advance(self, n_epochs: float = math.inf) -> None:
        """Train until all have ended or have trained so many epochs."""
        self._lockstep.advance(n_epochs)

    def results(self) -> list[tuple[Fit, list]]:
        """Return the results of every fit, see :class:`Lockstep`."""
        found = self._lockstep.results
        return [
            (fit, [found[number] for number in numbers])
            for fit, numbers in zip(self.fits, self._numbers, strict=True)
        ]

    def learned(self, fit: Fit) -> list:
        """Return what the networks of a fit have learned so far, or exceptions.

        Raises
        ------
        FloatingPointError
            If the weights of a network became infinite.
        """
        numbers = self._numbers[self.fits.index(fit)]
        waiting, results = self._lockstep.waiting, self._lockstep.results
        return [
            waiting[number].trainer.learned() if number in waiting else results[number]
            for number in numbers
        ]

    def drop(self, fit: Fit) -> None:
        """End the trainings of a fit where they are."""
        for number in self._numbers[self.fits.index(fit)]:
            self._lockstep.drop(number)


class Group:
    """Fits that train together.

    Parameters
    ----------
    plan : Plan
        The search.
    fits : list of Fit
        The fits.
    """

    def __init__(self, plan: Plan, fits: list[Fit]):
        self.plan, self.fits = plan, fits
        self.folds = {split: Fold(plan, split) for split in {f.split for f in fits}}
        self._warm: dict[str, Any] = {}

    def prepare(self) -> None:
        """Check everything, and train each warm-up that several fits share."""
        for fit in self.fits:
            with Attempt(self.plan, fit):
                self.folds[fit.split].prepare(fit)
        jobs: dict[str, list[Job]] = {}
        for fit in self._together():
            fit.warm_up = fit.job.warm_up_key()
            if fit.warm_up is not None:
                jobs.setdefault(fit.warm_up, []).append(fit.job)
        first = {key: of_key[0] for key, of_key in jobs.items() if len(of_key) > 1}
        for device in self._devices():
            here = [k for k, job in first.items() if job.settings.device == device]
            results = run_together([first[key].warming() for key in here], device)
            for key, result in zip(here, results, strict=True):
                # If it failed, each fit finds that out by itself.
                if not isinstance(result, Exception):
                    self._warm[key] = result

    def _together(self) -> list[Fit]:
        return [f for f in self.fits if f.job is not None and f.error is None]

    def _devices(self) -> list:
        return list(dict.fromkeys(f.job.settings.device for f in self._together()))

    def locksteps(self) -> list[FitsInLockstep]:
        """Return the trainings, begun but not run, for every device."""
        found = []
        for device in self._devices():
            fits = [f for f in self._together() if f.job.settings.device == device]
            trainings = [fit.job.trainings(self._warm.get(fit.warm_up)) for fit in fits]
            found.append(FitsInLockstep(fits, trainings, device))
        return found

    def run(self) -> list[Fit]:
        """Train and score all fits."""
        start = time.time()
        for fit in self.fits:
            fit.context.call_on_fit_task_begin(estimator=self.plan.caller)
        self.prepare()
        for lockstep in self.locksteps():
            lockstep.advance()
            for fit, results in lockstep.results():
                self.accept_results(fit, results)
        self.end(start)
        return self.fits

    def accept_results(self, fit: Fit, results: list) -> None:
        """Let an estimator have learned the results, or note why not."""
        with Attempt(self.plan, fit):
            fit.end(results)

    def end(self, start: float) -> None:
        """Fit those that train alone; score all."""
        seconds = (time.time() - start) / len(self.fits)
        for fit in self.fits:
            fit.seconds = seconds
            if fit.job is None and fit.error is None:
                begin = time.time()
                with Attempt(self.plan, fit):
                    self.folds[fit.split].fit_alone(fit)
                fit.seconds += time.time() - begin
            self.score(fit)
            self.close(fit)

    def score(self, fit: Fit) -> None:
        """Score a fit; put all that is known of it into its result."""
        plan, fold = self.plan, self.folds[fit.split]
        start, error = time.time(), fit.error
        scores = fold.scores(fit) if error is None else _of_failure(plan)
        fit.result = {
            "fit_error": None if error is None else "".join(format_exception(error)),
            "test_scores": scores,
            "n_test_samples": len(fold.test),
            "fit_time": fit.seconds,
            "score_time": 0.0 if error is not None else time.time() - start,
        }
        if plan.with_train_score:
            of_train = scores if error is not None else fold.scores(fit, test=False)
            fit.result["train_scores"] = of_train

    def close(self, fit: Fit) -> None:
        """End the task of a fit; keep its result only."""
        fit.context.call_on_fit_task_end(estimator=self.plan.caller)
        fit.estimator = fit.job = fit.steps = fit.error = None


class Attempt:
    """Context that notes why a fit failed, or raises where failures are errors."""

    def __init__(self, plan: Plan, fit: Fit):
        self.plan, self.fit = plan, fit

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, Exception) or self.plan.error_score == "raise":
            return False
        self.fit.error = error
        return True


def _of_failure(plan: Plan):
    """Return the scores of a fit that failed."""
    if not isinstance(plan.error_score, Number):
        raise ValueError(
            f"error_score must be 'raise' or a number, got {plan.error_score!r}."
        )
    if isinstance(plan.scorers, MultimetricScorer):
        return dict.fromkeys(plan.scorers._scorers, plan.error_score)
    return plan.error_score


def _trains_together(last) -> bool:
    """Tell whether an estimator is one whose fit can be split into epochs."""
    return (
        isinstance(last, BaseFPE)
        and type(last).fit is BaseFPE.fit
        and not getattr(last, "_skl_callbacks", None)
    )


def run_groups(plan: Plan, searching, n_jobs: int | None) -> list[dict]:
    """Train and score all candidates on all splits.

    Parameters
    ----------
    plan : Plan
        The search.
    searching : CallbackContext
        The task of the search.
    n_jobs : int or None
        Processes among which the groups are divided.

    Returns
    -------
    results : list of dict
        Scores, times and errors: those of a candidate's splits, one after another.
    """
    fits = [make_fits(plan, searching, pairs) for pairs in plan.groups()]
    found = Parallel(n_jobs=n_jobs)(delayed(_run_group)(plan, part) for part in fits)
    by_pair = {pair: result for part in found for pair, result in part}
    return [by_pair[pair] for pair in sorted(by_pair)]


def make_fits(plan: Plan, searching, pairs: list[tuple[int, int]]) -> list[Fit]:
    """Return the fits of (candidate, split) pairs, each with a task of its own."""
    fits = []
    for candidate, split in pairs:
        number = candidate * len(plan.splits) + split
        context = searching.subcontext(
            task_name="candidate-split-evaluation", task_id=number
        )
        fits.append(Fit(candidate, split, context))
    return fits


def _run_group(plan: Plan, fits: list[Fit]) -> list[tuple[tuple[int, int], dict]]:
    fits = Group(plan, fits).run()
    return [((fit.candidate, fit.split), fit.result) for fit in fits]
