"""Successive halving: the worst candidates are dropped while all of them train."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from sklearn_fpe._estimators._candidates import Attempt, Group, Plan, make_fits


def run_halving(
    plan: Plan, searching, factor: int, metric: Any
) -> tuple[list[dict], list[int]]:
    """Train all candidates together, and drop the worst at set epochs.

    Parameters
    ----------
    plan : Plan
        The search.
    searching : CallbackContext
        The task of the search.
    factor : int
        One in so many candidates goes on in every round.
    metric : object
        If there are several scores, the name of the one that decides.

    Returns
    -------
    results : list of dict
        Scores, times and errors: those of a candidate's splits, one after another.
        Of candidates that were dropped, those when they were.
    n_epochs : list of int
        Epochs that each candidate was trained.
    """
    start = time.time()
    n_candidates, n_splits = len(plan.candidates), len(plan.splits)
    pairs = [(c, s) for c in range(n_candidates) for s in range(n_splits)]
    group = Group(plan, make_fits(plan, searching, pairs))
    for fit in group.fits:
        fit.context.call_on_fit_task_begin(estimator=plan.caller)
    group.prepare()
    max_iter = _common_epochs(group)
    n_epochs = dict.fromkeys(range(n_candidates), max_iter)
    locksteps = group.locksteps()
    alive = set(range(n_candidates))
    for now in rungs(max_iter, n_candidates, factor):
        for lockstep in locksteps:
            lockstep.advance(now)
            for fit in lockstep.fits:
                if fit.candidate in alive:
                    with Attempt(plan, fit):
                        fit.accept_so_far(lockstep.learned(fit))
        for fit in group.fits:
            if fit.candidate in alive:
                fit.seconds = (time.time() - start) / len(group.fits)
                group.score(fit)
        best = _best(group, alive, metric, math.ceil(len(alive) / factor))
        for lockstep in locksteps:
            for fit in lockstep.fits:
                if fit.candidate in alive - best:
                    n_epochs[fit.candidate] = now
                    lockstep.drop(fit)
        for fit in group.fits:
            if fit.candidate in alive - best:
                group.close(fit)
        alive = best
    for lockstep in locksteps:
        lockstep.advance()
        for fit, results in lockstep.results():
            if fit.candidate in alive:
                group.accept_results(fit, results)
    for fit in group.fits:
        if fit.candidate in alive:
            fit.seconds = (time.time() - start) / len(group.fits)
            group.score(fit)
            group.close(fit)
    return [fit.result for fit in group.fits], list(n_epochs.values())


def rungs(max_iter: int, n_candidates: int, factor: int) -> list[int]:
    """Return the epochs after which candidates are dropped, in increasing order."""
    n_rounds = 0
    while factor ** (n_rounds + 1) <= n_candidates:
        n_rounds += 1
    epochs = [max(1, max_iter // factor**r) for r in range(n_rounds, 0, -1)]
    return sorted(set(epochs))


def _common_epochs(group: Group) -> int:
    """Return the `max_iter` of all candidates; raise if they differ."""
    jobs = [fit.job for fit in group.fits if fit.error is None]
    if None in jobs:
        raise ValueError(
            "halving=True needs candidates that can be trained epoch by epoch: "
            "FPEClassifier or FPERegressor, without callbacks of scikit-learn, and "
            "pipelines without transform_input."
        )
    found = sorted({job.settings.max_iter for job in jobs})
    if len(found) > 1:
        raise ValueError(
            f"halving=True drops candidates after a share of max_iter, which must be "
            f"the same for all of them, got {found}."
        )
    return found[0] if found else 1


def check_metric(metric: Any) -> None:
    """Raise if the parameter `refit` does not name one of several scores."""
    if not isinstance(metric, str):
        raise ValueError(
            f"halving=True with several scores needs refit to be the name of the one "
            f"that decides, got {metric!r}."
        )


def _best(group: Group, alive: set[int], metric: Any, n: int) -> set[int]:
    """Return the `n` candidates of the highest mean score; NaN counts as lowest."""
    scores: dict[int, list[float]] = {candidate: [] for candidate in sorted(alive)}
    for fit in group.fits:
        if fit.candidate in alive:
            score = fit.result["test_scores"]
            if isinstance(score, dict):
                check_metric(metric)
                score = score[metric]
            scores[fit.candidate].append(score)
    means = {c: np.mean(s) for c, s in scores.items()}
    lowest = {c: -math.inf if math.isnan(m) else m for c, m in means.items()}
    return set(sorted(lowest, key=lambda c: -lowest[c])[:n])
