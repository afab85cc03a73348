"""Distribution of the interference measures, of several models side by side."""

import numpy as np

from sklearn_fpe._optional import import_optional
from sklearn_fpe.inspection._measures import feature_capacity, pairwise_cosines


class InterferenceDisplay:
    """Cumulative distributions of feature capacity and of similarity of neurons.

    Less interference moves the capacities of the inputs to the right and the cosine
    similarities of pairs of neurons to the left. Use :meth:`from_estimators` to make a
    display.

    Parameters
    ----------
    capacities : dict of str to ndarray of shape (n_inputs,)
        Capacity of each input in [0, 1], per model; see
        :func:`~sklearn_fpe.inspection.feature_capacity`.
    similarities : dict of str to ndarray of shape (n_pairs,)
        Absolute cosine similarity of each pair of neurons in [0, 1], for the same
        models; see :func:`~sklearn_fpe.inspection.mean_cosine_similarity`.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (2,)
        Axes of the capacities and of the similarities.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of str to list of matplotlib Line2D
        The two distributions of each model.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.inspection import InterferenceDisplay
    >>> weight = np.random.default_rng(0).normal(size=(4, 16))
    >>> halves = np.vstack([weight * (np.arange(16) % 2 == a) for a in (0, 1)])
    >>> display = InterferenceDisplay.from_estimators(
    ...     {"dense": weight, "expanded": halves}
    ... )
    >>> [ax.get_xlabel() for ax in display.axes_]
    ['Feature capacity', '|Cosine similarity| of two neurons']
    """

    def __init__(self, *, capacities, similarities):
        self.capacities = capacities
        self.similarities = similarities

    @classmethod
    def from_estimators(cls, models, *, axes=None, line_kw=None):
        """Measure several models and plot their distributions.

        Parameters
        ----------
        models : dict of str to estimator, MLP or array-like (n_neurons, n_inputs)
            Name and model, such as ``{"dense": ..., "expanded": ...}``. For the kinds
            of model, see :func:`~sklearn_fpe.inspection.feature_capacity`.
        axes, line_kw
            See :meth:`plot`.

        Returns
        -------
        display : InterferenceDisplay
            The plotted display.
        """
        import_optional("matplotlib.pyplot")
        if not models:
            raise ValueError("models must name at least one model, got none.")
        display = cls(
            capacities={name: feature_capacity(m) for name, m in models.items()},
            similarities={
                name: np.abs(pairwise_cosines(m)) for name, m in models.items()
            },
        )
        return display.plot(axes, line_kw=line_kw)

    def plot(self, axes=None, *, line_kw=None):
        """Plot the distributions.

        Parameters
        ----------
        axes : sequence of two matplotlib Axes, default=None
            Where to plot the capacities and the similarities. None: a new figure.
        line_kw : dict, default=None
            Keywords of :meth:`matplotlib.axes.Axes.ecdf`.

        Returns
        -------
        display : InterferenceDisplay
            This display.
        """
        pyplot = import_optional("matplotlib.pyplot")
        if axes is None:
            _, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
        axes = np.ravel(axes)
        if len(axes) != 2:
            raise ValueError(f"axes must be two Axes, got {len(axes)}.")
        self.lines_ = {}
        for name in self.capacities:
            measured = (self.capacities[name], self.similarities[name])
            self.lines_[name] = [
                _plot_distribution(ax, values, name, line_kw or {})
                for ax, values in zip(axes, measured, strict=True)
            ]
        axes[0].set(xlabel="Feature capacity", ylabel="Share of the inputs below")
        axes[1].set(
            xlabel="|Cosine similarity| of two neurons",
            ylabel="Share of the pairs below",
        )
        for ax in axes:
            ax.set_xlim(-0.02, 1.02)
            ax.legend()
        self.axes_, self.figure_ = axes, axes[0].figure
        return self


def _plot_distribution(ax, values, name, line_kw):
    """Plot the empirical distribution function; the legend tells the mean."""
    if not len(values):
        return ax.plot([], [], label=f"{name} (no pair of neurons)")[0]
    return ax.ecdf(values, **{"label": f"{name} (mean {values.mean():.3f})"} | line_kw)
