"""FPESearchCV: a grid search whose candidates train together."""

from __future__ import annotations

import time
from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.callback import with_callbacks
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils import indexable
from sklearn.utils._param_validation import Interval

from sklearn_fpe._estimators._base import BaseFPE
from sklearn_fpe._estimators._candidates import Plan, run_groups
from sklearn_fpe._estimators._compat import (
    check_method_params,
    fit_context,
    report_failures,
)
from sklearn_fpe._estimators._halving import check_metric, run_halving
from sklearn_fpe._estimators._steps import final_step


class FPESearchCV(GridSearchCV):
    """Exhaustive search over parameters, in which the candidates train together.

    Use it like :class:`~sklearn.model_selection.GridSearchCV`, which describes the
    parameters and attributes that both have in more detail. The results are the same up
    to rounding, in a fraction of the time: candidates whose networks have the same
    shape train as one stacked network, candidates that differ only after the warm-up
    share the warm-up, and rows are checked and standardised once per split. Candidates
    that cannot be stacked are trained one by one.

    Parameters
    ----------
    estimator : FPEClassifier, FPERegressor or Pipeline
        Estimator to search with. The last step of a pipeline must be one of the two;
        its earlier steps are fitted once per split and setting of their own parameters.

    param_grid : dict or list of dict
        Values to try by parameter name. `random_state` may be one of them.

    scoring : str, callable, list, tuple or dict, default=None
        Scores of the test rows.

    n_jobs : int, default=None
        Processes among which groups of candidates are divided. It does not change the
        results. None: 1, or the number of a :func:`joblib.parallel_config` context. One
        process is often enough, because candidates train together in each process. With
        `halving` all of them train in one.

    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows; which score or function decides.

    cv : int, cross-validation generator or iterable, default=None
        How rows are split.

    verbose : int, default=0
        1: print the number of candidates and fits; 2: also the groups in which they
        train.

    error_score : "raise" or float, default=np.nan
        Score of a candidate whose fit fails.

    return_train_score : bool, default=False
        Whether `cv_results_` has scores of the training rows, too.

    halving : bool, default=False
        Whether to drop the worst candidates while they train. After
        ``max_iter / factor**r`` epochs, for r from the number of rounds down to 1, the
        candidates are scored on the test rows, and the best one in `factor` continues.
        All candidates must have the same `max_iter`. `cv_results_` holds the scores of
        dropped candidates at that epoch, and the column `n_epochs`; the best candidate
        is chosen among the candidates that reached the end.

    factor : int, default=3
        In every round of `halving`, one in `factor` candidates continues. At least 2.

    Attributes
    ----------
    cv_results_ : dict of arrays
        Scores, times and ranks by candidate. The time of a fit is the time of its
        group, divided by the number of fits in it.

    best_estimator_ : estimator
        The best candidate, fitted on all rows, if `refit`.

    best_score_ : float
        Mean score of the best candidate.

    best_params_ : dict
        Parameters of the best candidate.

    best_index_ : int
        Row of the best candidate in `cv_results_`.

    scorer_ : callable or dict
        The scorers.

    n_splits_ : int
        Number of splits.

    refit_time_ : float
        Seconds of the last fit, if `refit`.

    multimetric_ : bool
        Whether there are several scores.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Trains every candidate by itself.

    Notes
    -----
    Stacked products round differently from separate ones, in the last digits of
    float32. If two weights are about equally salient, the rounding can decide which of
    them is pruned, so single predictions may differ from those of a separate fit.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_fpe import FPEClassifier, FPESearchCV
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FPEClassifier((4,), max_iter=10, random_state=0)
    >>> grid = {"expansion": [1, 4], "learning_rate_init": [1e-2, 5e-2]}
    >>> search = FPESearchCV(model, grid, cv=3).fit(X, y)
    >>> search.best_params_["expansion"]
    4
    """

    _parameter_constraints: ClassVar[dict] = {
        **GridSearchCV._parameter_constraints,
        "halving": ["boolean"],
        "factor": [Interval(Integral, 2, None, closed="left")],
    }
    del _parameter_constraints["pre_dispatch"]  # which this search does not have

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        scoring=None,
        n_jobs=None,
        refit=True,
        cv=None,
        verbose=0,
        error_score=np.nan,
        return_train_score=False,
        halving=False,
        factor=3,
    ):
        self.estimator = estimator
        self.param_grid = param_grid
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.refit = refit
        self.cv = cv
        self.verbose = verbose
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.halving = halving
        self.factor = factor

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Train and score all candidates, and the best of them on all rows.

        If it fails, what an earlier call has found stays as it was.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training input.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        **params : dict of str -> object
            Arguments of the estimator's ``fit``, of the scorer and of the splitter.
            Arrays as long as X are split with it.

        Returns
        -------
        self : object
            The search.

        Raises
        ------
        TypeError
            If `estimator` is of another package, or a pipeline that ends with one.
        ValueError
            If all fits fail. With ``error_score="raise"``, the first error of a fit is
            raised as it is.
        """
        # What an earlier search has found is replaced by what this one finds.
        before = {name: vars(self).pop(name) for name in _fitted_names(self)}
        try:
            return self._fit(X, y, params)
        except BaseException:
            for name in _fitted_names(self):
                delattr(self, name)
            vars(self).update(before)
            raise

    def _fit(self, X, y, params):
        self._check_estimator()
        scorers, _ = self._get_scorers()
        X, y = indexable(X, y)
        params = check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        weights = params.get("sample_weight")
        task = {
            "estimator": self,
            "X": X,
            "y": y,
            "metadata": None if weights is None else {"sample_weight": weights},
        }
        context = self._init_callback_context(
            max_subtasks=1 + (self.refit is not False)
        ).call_on_fit_task_begin(**task)
        candidates = list(ParameterGrid(self.param_grid))
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(X, y, **routed.splitter.split))
        self._checked_cv_orig, self.n_splits_ = cv, len(splits)
        if not candidates or not splits:
            raise ValueError(
                f"No fits were performed: there are {len(candidates)} candidates and "
                f"{len(splits)} splits."
            )
        fit_params = routed.estimator.fit
        plan = Plan(
            self, X, y, candidates, splits, scorers, fit_params, routed.scorer.score
        )
        results = self._evaluate(plan, context)
        self._choose(results)
        if self.refit:
            self._fit_best(X, y, fit_params, context, task)
        named = isinstance(self.scoring, list | tuple | dict)
        self.scorer_ = scorers._scorers if named else scorers
        self.cv_results_ = results
        context.call_on_fit_task_end(**task)
        return self

    def _check_estimator(self):
        last = final_step(self.estimator)
        if not isinstance(last, BaseFPE) or not hasattr(last, "predict"):
            raise TypeError(
                f"estimator must be an FPEClassifier, an FPERegressor, or a Pipeline "
                f"that ends with one, got {self.estimator!r}. Search others by "
                f"sklearn.model_selection.GridSearchCV."
            )
        if last.distributed:
            raise ValueError(
                "A search trains in one process: set distributed=False, and divide its "
                "candidates among processes by n_jobs."
            )

    def _evaluate(self, plan, context):
        """Train and score the candidates; return what becomes `cv_results_`."""
        n = len(plan.candidates) * len(plan.splits)
        if self.verbose > 0:
            print(
                f"Fitting {len(plan.splits)} folds for each of {len(plan.candidates)} "
                f"candidates, totalling {n} fits"
            )
        if self.verbose > 1:
            groups = plan.groups()
            if self.halving:
                groups = [[pair for group in groups for pair in group]]
            for number, pairs in enumerate(groups, 1):
                n_candidates, n_folds = map(len, map(set, zip(*pairs, strict=True)))
                print(
                    f"Group {number}/{len(groups)}: {n_candidates} candidates, "
                    f"{n_folds} folds"
                )
        searching = context.subcontext(
            task_name="search", max_subtasks=n, sequential_subtasks=False
        ).call_on_fit_task_begin(estimator=self)
        if self.halving:
            if isinstance(self.scoring, list | tuple | dict):
                check_metric(self.refit)  # before anything is trained
            found = run_halving(plan, searching, self.factor, self.refit)
            n_epochs = [result["n_epochs"] for result in found[:: len(plan.splits)]]
            more = {"n_epochs": n_epochs}
        else:
            found, more = run_groups(plan, searching, self.n_jobs), None
        searching.call_on_fit_task_end(estimator=self)
        report_failures(found, self.error_score)
        scores = [r["test_scores"] for r in found if r["fit_error"] is None]
        self.multimetric_ = isinstance(scores[0], dict)
        if self.multimetric_:
            self._check_refit_for_multimetric(scores[0])
            self._name_failures(found, scores[0])
        return self._format_results(plan.candidates, len(plan.splits), found, more)

    def _name_failures(self, found, names):
        """Give failed fits the error score under every name of a score."""
        for result in found:
            if result["fit_error"] is not None:
                for kind in {"test_scores", "train_scores"} & set(result):
                    result[kind] = dict.fromkeys(names, self.error_score)

    def _choose(self, results):
        """Find the best candidate."""
        if not self.refit and self.multimetric_:
            return
        metric = self.refit if self.multimetric_ else "score"
        self.best_index_ = self._best_index(metric, results)
        if not callable(self.refit):
            self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
        self.best_params_ = results["params"][self.best_index_]

    def _best_index(self, metric, results):
        if not self.halving or callable(self.refit):
            return self._select_best_index(self.refit, metric, results)
        scores = results[f"mean_test_{metric}"].copy()
        scores[results["n_epochs"] < results["n_epochs"].max()] = np.nan
        if np.isnan(scores).all():
            return int(results["n_epochs"].argmax())
        return int(np.nanargmax(scores))

    def _fit_best(self, X, y, fit_params, context, task):
        """Fit the best candidate on all rows."""
        best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
        refitting = context.subcontext(task_name="refit-with-best-params")
        with refitting.propagate_callback_context(best):
            refitting.call_on_fit_task_begin(**task)
            start = time.time()
            best.fit(X, y, **fit_params)
            self.refit_time_ = time.time() - start
        self.best_estimator_ = best
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_
        refitting.call_on_fit_task_end(**task)


def _fitted_names(search):
    """Return the names of the attributes that a fit has set."""
    return [name for name in vars(search) if name.endswith("_")]
