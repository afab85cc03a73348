"""Which inputs the children of a neuron see."""

import math

import numpy as np

from sklearn_fpe._optional import import_optional
from sklearn_fpe.inspection._first_layer import first_layer_units, first_layer_weight

_MAX_PER_ROW = 4
_MAX_NAMED_INPUTS = 40
_UNSEEN_COLOR = "0.8"


class ChildInputsDisplay:
    """Inputs that each child of a neuron reads, and their weights.

    Inputs that a child does not see are grey: they went to a sibling, or their weight
    was pruned. Use :meth:`from_estimator` to make a display.

    Parameters
    ----------
    weights : ndarray of shape (n_children, n_inputs)
        Weights of the children.
    seen : ndarray of bool of shape (n_children, n_inputs)
        Whether the child sees the input.
    neuron : int
        Their parent, a neuron of the first hidden layer.
    image_shape : tuple of int, default=None
        Height and width, if the inputs are the pixels of an image, row by row. None:
        the map has one row per child.
    feature_names : sequence of str, default=None
        Names of the inputs, written if a row has 40 inputs or fewer.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where the map is.
    images_ : list of matplotlib AxesImage
        The map, or one image per child with `image_shape`.
    colorbar_ : matplotlib Colorbar
        Scale of the weights.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.inspection import ChildInputsDisplay
    >>> seen = np.arange(6) % 2 == [[0], [1]]
    >>> weights = np.where(seen, [1.0, -1.0, 0.5, 2.0, 0.1, 0.0], 0.0)
    >>> display = ChildInputsDisplay(weights=weights, seen=seen, neuron=0)
    >>> display.plot().ax_.get_title()
    'Neuron 0, 2 children'
    """

    def __init__(self, *, weights, seen, neuron, image_shape=None, feature_names=None):
        self.weights = weights
        self.seen = seen
        self.neuron = neuron
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls, estimator, neuron=0, *, image_shape=None, ax=None, image_kw=None
    ):
        """Plot the children of a neuron of the first hidden layer.

        Parameters
        ----------
        estimator : estimator or MLP
            Fitted estimator with ``coefs_``, or network of :mod:`sklearn_fpe.nn`. In a
            dense network a neuron is its own only child.
        neuron : int, default=0
            Parent neuron.
        image_shape : tuple of int, default=None
            Height and width, if the inputs are the pixels of an image, row by row.
        ax, image_kw
            See :meth:`plot`.

        Returns
        -------
        display : ChildInputsDisplay
            The plotted display.
        """
        import_optional("matplotlib.pyplot")
        seen, parents = first_layer_units(estimator)
        children = np.flatnonzero(parents == neuron)
        if not children.size:
            raise ValueError(
                f"neuron must be one with children, one of {np.unique(parents)}, got "
                f"{neuron}."
            )
        display = cls(
            weights=first_layer_weight(estimator)[children],
            seen=seen[children],
            neuron=neuron,
            image_shape=image_shape,
            feature_names=getattr(estimator, "feature_names_in_", None),
        )
        return display.plot(ax, image_kw=image_kw)

    def plot(self, ax=None, *, image_kw=None):
        """Plot the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to plot. None: a new figure.
        image_kw : dict, default=None
            Keywords of :meth:`matplotlib.axes.Axes.imshow`, such as ``cmap``.

        Returns
        -------
        display : ChildInputsDisplay
            This display.
        """
        pyplot = import_optional("matplotlib.pyplot")
        from matplotlib import colormaps

        shown = np.where(self.seen, self.weights, np.nan)
        largest = np.nanmax(np.abs(shown), initial=0) or 1.0
        scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
        image_kw = scale | (image_kw or {})
        cmap = colormaps.get_cmap(image_kw["cmap"])
        image_kw["cmap"] = cmap.with_extremes(bad=_UNSEEN_COLOR)
        if ax is None:
            figsize = None
            if self.image_shape is not None:
                n_rows, n_columns = _grid(len(shown))
                figsize = (2 * n_columns + 1.2, 2.3 * n_rows + 0.4)
            _, ax = pyplot.subplots(figsize=figsize, layout="constrained")
        if self.image_shape is None:
            self.images_ = [self._plot_rows(ax, shown, image_kw)]
        else:
            self.images_ = self._plot_tiles(ax, shown, image_kw)
        n_children = len(shown)
        children = "1 child" if n_children == 1 else f"{n_children} children"
        ax.set_title(f"Neuron {self.neuron}, {children}")
        self.colorbar_ = ax.figure.colorbar(self.images_[0], ax=ax, label="Weight")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_rows(self, ax, shown, image_kw):
        """Show the inputs side by side, one row a child."""
        image_kw = {"aspect": "auto", "interpolation": "nearest"} | image_kw
        image = ax.imshow(shown, **image_kw)
        n_children, n_inputs = shown.shape
        ax.set_yticks(range(n_children))
        ax.hlines(np.arange(1, n_children) - 0.5, -0.5, n_inputs - 0.5, color="white")
        ax.set(xlabel="Input", ylabel="Child")
        if self.feature_names is not None and n_inputs <= _MAX_NAMED_INPUTS:
            ax.set_xticks(range(n_inputs), self.feature_names, rotation=90)
        return image

    def _plot_tiles(self, ax, shown, image_kw):
        """Show an image a child, in rows of at most four."""
        n_inputs = shown.shape[1]
        shape = tuple(self.image_shape)
        if len(shape) != 2 or math.prod(shape) != n_inputs:
            raise ValueError(
                f"image_shape must be (height, width) of {n_inputs} pixels, the number "
                f"of inputs, got {shape}."
            )
        height, width = shape
        gap = 0.1 * max(shape)
        n_rows, n_columns = _grid(len(shown))
        # The row above an image holds its caption.
        row_height = height + 3 * gap
        images = []
        for child, pixels in enumerate(shown):
            row, column = divmod(child, n_columns)
            left, top = column * (width + gap), row * row_height
            extent = (left, left + width, top + height, top)
            kwargs = {"interpolation": "nearest"} | image_kw | {"extent": extent}
            images.append(ax.imshow(pixels.reshape(shape), **kwargs))
            n_seen = np.count_nonzero(self.seen[child])
            caption = f"child {child}: {n_seen} input{'' if n_seen == 1 else 's'}"
            place = (left + width / 2, top - 0.5 * gap)
            ax.text(*place, caption, ha="center", fontsize="small")
        ax.set_xlim(0, n_columns * (width + gap) - gap)
        ax.set_ylim(n_rows * row_height - 2 * gap, -2 * gap)
        ax.set_axis_off()
        return images


def _grid(n_images):
    """Return the rows and columns that images are laid out in."""
    n_columns = min(n_images, _MAX_PER_ROW)
    return math.ceil(n_images / n_columns), n_columns
