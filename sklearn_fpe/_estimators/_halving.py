"""Successive halving: the worst candidates are dropped while all of them train."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import product
from typing import Any

import numpy as np

from sklearn_fpe._estimators._candidates import Fit, Group, Plan, make_fits


def run_halving(plan: Plan, searching, factor: int, metric: Any) -> list[dict]:
    """Train all candidates together, and drop the worst after set epochs.

    In every round, one in `factor` candidates continues. If there are several scores,
    `metric` is the name of the one that decides. `searching` is the task of the search.

    Returns
    -------
    results : list of dict
        Scores, times, errors and ``n_epochs``, the epochs trained: those of a
        candidate's splits, one after another. The scores of a dropped candidate are
        those of its last round.
    """
    n_candidates = len(plan.candidates)
    pairs = product(range(n_candidates), range(len(plan.splits)))
    group = Group(plan, make_fits(plan, searching, pairs))
    group.begin()
    max_iter = _common_epochs(group.fits)
    alive = group.fits
    for n_epochs in rungs(max_iter, n_candidates, factor):
        group.train(n_epochs)
        for fit in alive:
            group.score(fit)
            fit.result["n_epochs"] = n_epochs
        best = _best(alive, metric, factor)
        for fit in alive:
            if fit.candidate not in best:
                group.close(fit)
        alive = [fit for fit in alive if fit.candidate in best]
    group.train()
    group.end(alive)
    for fit in alive:
        fit.result["n_epochs"] = max_iter
    return [fit.result for fit in group.fits]


def rungs(max_iter: int, n_candidates: int, factor: int) -> list[int]:
    """Return the epochs after which candidates are dropped, in increasing order."""
    n_rounds = 0
    while factor ** (n_rounds + 1) <= n_candidates:
        n_rounds += 1
    epochs = [max(1, max_iter // factor**r) for r in range(n_rounds, 0, -1)]
    return sorted(set(epochs))


def _common_epochs(fits: list[Fit]) -> int:
    """Return the `max_iter` of all candidates; raise if they differ."""
    jobs = [fit.job for fit in fits if fit.error is None]
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


def check_metric(metric: Any, names: Collection[str] | None = None) -> None:
    """Raise if the parameter `refit` does not name one of several scores."""
    if not isinstance(metric, str) or (names is not None and metric not in names):
        known = "" if names is None else f", one of {', '.join(sorted(names))}"
        raise ValueError(
            f"halving=True with several scores needs refit to be the name of the one "
            f"that decides{known}, got {metric!r}."
        )


def _best(fits: list[Fit], metric: Any, factor: int) -> set[int]:
    """Return the candidates of the highest mean scores, one in `factor`.

    NaN counts as the lowest score.
    """
    scores: dict[int, list[float]] = {}
    for fit in fits:
        score = fit.result["test_scores"]
        if isinstance(score, dict):
            check_metric(metric, score)
            score = score[metric]
        scores.setdefault(fit.candidate, []).append(score)
    means = {c: np.mean(s) for c, s in scores.items()}
    lowest = {c: -math.inf if math.isnan(m) else m for c, m in means.items()}
    n_best = math.ceil(len(lowest) / factor)
    return set(sorted(lowest, key=lambda c: -lowest[c])[:n_best])
