"""Score against expansion, at equal parameters."""

import re
from numbers import Integral

import numpy as np
from sklearn.model_selection import validation_curve

from sklearn_fpe._optional import import_optional


class ExpansionCurveDisplay:
    """Cross-validated score against expansion, at equal non-zero parameters.

    The widths of the parents, and so the budget, are the same at every expansion;
    expansion 1 is the dense network. Use :meth:`from_estimator` or
    :meth:`from_cv_results` to make a display.

    Parameters
    ----------
    expansions : array-like of int of shape (n_expansions,)
        Children per neuron, ascending.
    test_scores : ndarray of shape (n_expansions, n_splits)
        Score of each expansion on each test fold.
    score_name : str, default=None
        Name of the score, for the axis. None: "Score".

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where the curve is.
    line_ : matplotlib Line2D
        Mean score.
    fill_between_ : matplotlib PolyCollection
        Mean plus and minus one standard deviation over the folds.
    dense_level_ : matplotlib Line2D or None
        Mean score at expansion 1, if it was asked for and measured.

    See Also
    --------
    sklearn.model_selection.ValidationCurveDisplay : The same for any parameter.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn_fpe.inspection import ExpansionCurveDisplay
    >>> scores = [[0.7, 0.72], [0.81, 0.8], [0.84, 0.85]]
    >>> display = ExpansionCurveDisplay(expansions=[1, 2, 4], test_scores=scores)
    >>> display.plot().ax_.get_ylabel()
    'Score'
    """

    def __init__(self, *, expansions, test_scores, score_name=None):
        self.expansions = expansions
        self.test_scores = test_scores
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        expansions=(1, 2, 4, 8),
        param_name="expansion",
        groups=None,
        cv=None,
        scoring=None,
        n_jobs=None,
        params=None,
        ax=None,
        score_name=None,
        name=None,
        plot_dense_level=True,
        line_kw=None,
        fill_between_kw=None,
    ):
        """Fit an estimator at several expansions and plot its scores.

        Parameters
        ----------
        estimator : estimator
            Classifier, regressor or a composition that holds one; it is cloned.
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target.
        expansions : sequence of int, default=(1, 2, 4, 8)
            Children per neuron, each at least 1.
        param_name : str, default="expansion"
            Name of the parameter, ``"fpeclassifier__expansion"`` in a pipeline.
        groups : array-like of shape (n_samples,), default=None
            Group labels of the rows, for a splitter that keeps groups together.
        cv : int, splitter or iterable, default=None
            See :func:`sklearn.model_selection.validation_curve`.
        scoring : str or callable, default=None
            Score; None: the estimator's own.
        n_jobs : int, default=None
            Fits that run at the same time.
        params : dict, default=None
            Parameters of ``fit`` and of the score.
        ax, score_name, name, plot_dense_level, line_kw, fill_between_kw
            See :meth:`plot`.

        Returns
        -------
        display : ExpansionCurveDisplay
            The plotted display.
        """
        import_optional("matplotlib.pyplot")
        expansions = _check_expansions(expansions)
        _, test_scores = validation_curve(
            estimator,
            X,
            y,
            param_name=param_name,
            param_range=expansions,
            groups=groups,
            cv=cv,
            scoring=scoring,
            n_jobs=n_jobs,
            error_score="raise",
            params=params,
        )
        display = cls(
            expansions=expansions,
            test_scores=test_scores,
            score_name=_readable(scoring) if score_name is None else score_name,
        )
        return display.plot(
            ax,
            name=name,
            plot_dense_level=plot_dense_level,
            line_kw=line_kw,
            fill_between_kw=fill_between_kw,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results,
        *,
        param_name="expansion",
        metric="score",
        ax=None,
        score_name=None,
        name=None,
        plot_dense_level=True,
        line_kw=None,
        fill_between_kw=None,
    ):
        """Plot a search over expansions, each at its best other parameters.

        If the search varied other parameters too, such as the learning rate, an
        expansion is shown by its candidate with the best mean score. Candidates
        without an expansion, from another grid of a list, are left out.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search such as
            :class:`~sklearn.model_selection.GridSearchCV`.
        param_name : str, default="expansion"
            Name of the parameter, ``"fpeclassifier__expansion"`` in a pipeline.
        metric : str, default="score"
            Which score, if the search had several; it names the axis, too, if
            `score_name` does not.
        ax, score_name, name, plot_dense_level, line_kw, fill_between_kw
            See :meth:`plot`.

        Returns
        -------
        display : ExpansionCurveDisplay
            The plotted display.
        """
        import_optional("matplotlib.pyplot")
        expansions, test_scores = _best_candidates(cv_results, param_name, metric)
        display = cls(
            expansions=expansions,
            test_scores=test_scores,
            score_name=_readable(metric) if score_name is None else score_name,
        )
        return display.plot(
            ax,
            name=name,
            plot_dense_level=plot_dense_level,
            line_kw=line_kw,
            fill_between_kw=fill_between_kw,
        )

    def plot(
        self,
        ax=None,
        *,
        name=None,
        plot_dense_level=True,
        line_kw=None,
        fill_between_kw=None,
    ):
        """Plot the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to plot; several curves can share it. None: a new figure.
        name : str, default=None
            Name of the curve, for the legend.
        plot_dense_level : bool, default=True
            Whether to draw the score at expansion 1, if measured, as a level.
        line_kw : dict, default=None
            Keywords of :meth:`matplotlib.axes.Axes.plot` for the mean score.
        fill_between_kw : dict, default=None
            Keywords of :meth:`matplotlib.axes.Axes.fill_between` for the spread.

        Returns
        -------
        display : ExpansionCurveDisplay
            This display.
        """
        pyplot = import_optional("matplotlib.pyplot")
        if ax is None:
            _, ax = pyplot.subplots()
        expansions = np.asarray(self.expansions)
        scores = np.asarray(self.test_scores)
        mean, spread = scores.mean(axis=1), scores.std(axis=1)

        line_kw = {"marker": "o", "label": name} | (line_kw or {})
        (self.line_,) = ax.plot(expansions, mean, **line_kw)
        color = self.line_.get_color()
        fill_between_kw = {"alpha": 0.25, "color": color} | (fill_between_kw or {})
        self.fill_between_ = ax.fill_between(
            expansions, mean - spread, mean + spread, **fill_between_kw
        )
        self.dense_level_ = None
        if plot_dense_level and expansions[0] == 1:
            label = "dense" if name is None else f"{name}, dense"
            self.dense_level_ = ax.axhline(
                mean[0], color=color, linestyle="--", linewidth=1, label=label
            )

        ax.set_xscale("log", base=2)
        # Curves that share the axes may have other expansions: keep their ticks.
        ticks = np.unique(np.concatenate([line.get_xdata() for line in ax.lines]))
        ticks = ticks[ticks >= 1].astype(int)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("Expansion (children per neuron)")
        ax.set_ylabel(self.score_name or "Score")
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_expansions(expansions):
    """Return the distinct expansions, ascending."""
    for expansion in expansions:
        if not isinstance(expansion, Integral) or expansion < 1:
            raise ValueError(
                f"expansions must be ints of at least 1, got {expansion!r}."
            )
    if not len(expansions):
        raise ValueError("expansions must not be empty.")
    return sorted({int(expansion) for expansion in expansions})


def _best_candidates(cv_results, param_name, metric):
    """Return the expansions and the folds' scores of the best candidate of each."""
    key = f"param_{param_name}"
    if key not in cv_results:
        searched = [k.removeprefix("param_") for k in cv_results if k[:6] == "param_"]
        raise ValueError(
            f"param_name={param_name!r} was not searched; the search varied {searched}."
        )
    folds = [k for k in cv_results if re.fullmatch(rf"split\d+_test_{metric}", k)]
    if not folds:
        metrics = [k[10:] for k in cv_results if k[:10] == "mean_test_"]
        raise ValueError(f"metric={metric!r} is not among the scores {metrics}.")
    scores = np.column_stack([cv_results[fold] for fold in folds])
    values = list(cv_results[key])
    # Of a list of grids, some may have no expansion.
    there = [value is not np.ma.masked for value in values]
    scores, values = scores[there], [v for v in values if v is not np.ma.masked]
    expansions = _check_expansions(values)
    best = []
    for expansion in expansions:
        rows = scores[[value == expansion for value in values]]
        means = np.nan_to_num(rows.mean(axis=1), nan=-np.inf)
        best.append(rows[means.argmax()])
    return expansions, np.array(best)


def _readable(scoring):
    """Name a score for the axis, as scikit-learn's displays do."""
    if scoring is None:
        return None
    name = getattr(scoring, "__name__", None) or str(scoring)
    return re.sub("^neg_", "negative ", name).replace("_", " ").capitalize()
