"""Split rules: a weight matrix and a number of children to a partition.

A partition is an integer array ``children`` of shape (n_neurons, n_inputs) with
values in [0, n_children): the child of the neuron that inherits each input edge.
Since an array has one value per edge, coverage (no edge is lost) and disjointness
(no edge is shared by two children) hold by construction.
"""

from numbers import Integral

import numpy as np

SPLITS = ("random", "shared", "contiguous", "feature", "groups")
"""The names that :func:`partition` knows; a callable is the other choice."""


def partition(weight, n_children, split="shared", *, groups=None, rng=None):
    """Partition the input edges of every neuron among its children.

    Parameters
    ----------
    weight : array-like of shape (n_neurons, n_inputs)
        Weights of the layer, one row a neuron.
    n_children : int
        Children per neuron, in [1, n_inputs]; with ``split="groups"`` in
        [1, number of groups].
    split : {"random", "shared", "contiguous", "feature", "groups"} or callable
        - ``"random"``: every neuron deals its edges at random, on its own;
        - ``"shared"``: one random deal for all neurons;
        - ``"contiguous"``: one deal of neighbouring inputs for all neurons;
        - ``"feature"``: inputs that the neurons use alike (near rows of the Gram
          matrix of ``weight``) stay together, one deal for all neurons;
        - ``"groups"``: inputs of one group stay together, every neuron deals the
          groups at random, on its own;
        - ``f(weight, n_children, rng)``: returns the partition.

        All but ``"groups"`` and a callable are balanced: the fan-ins of two children
        of a neuron differ by at most one.
    groups : array-like of shape (n_inputs,), default=None
        Group label of every input, for ``split="groups"``.
    rng : numpy.random.Generator or int, default=None
        Source of randomness.

    Returns
    -------
    children : ndarray of int of shape (n_neurons, n_inputs)
        The child, in [0, n_children), that inherits each edge.

    Raises
    ------
    ValueError
        If `n_children` is out of range, `split` is unknown, `groups` does not fit, or
        a callable returns something that is no partition.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.nn import partition
    >>> partition(np.ones((2, 6)), 3, "contiguous")
    array([[0, 0, 1, 1, 2, 2],
           [0, 0, 1, 1, 2, 2]])
    """
    weight = np.asarray(weight)
    if weight.ndim != 2:
        raise ValueError(
            f"weight must have shape (n_neurons, n_inputs), got shape {weight.shape}."
        )
    n_neurons, n_inputs = weight.shape
    rng = np.random.default_rng(rng)
    limit = max_children(n_inputs, split, groups)
    if not (isinstance(n_children, Integral) and 1 <= n_children <= limit):
        raise ValueError(
            f"n_children must be an integer in [1, {limit}] for split={split!r} of "
            f"{n_inputs} inputs, got {n_children!r}."
        )
    if callable(split):
        return _check_partition(
            split(weight, n_children, rng), weight.shape, n_children
        )
    if split == "random":
        rows = np.tile(deal(n_inputs, n_children), (n_neurons, 1))
        return rng.permuted(rows, axis=1)
    if split == "groups":
        return _deal_groups(np.asarray(groups), n_neurons, n_children, rng)
    if split == "shared":
        row = rng.permutation(deal(n_inputs, n_children))
    elif split == "contiguous":
        row = deal(n_inputs, n_children)
    else:
        row = _cluster_inputs(weight, n_children, rng)
    return np.tile(row, (n_neurons, 1))


def max_children(n_inputs, split, groups=None):
    """Return the largest number of children that `split` can deal `n_inputs` to."""
    if not callable(split) and split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS} or a callable, got {split!r}.")
    if split == "groups":
        if groups is None:
            raise ValueError(
                'split="groups" needs groups, the group label of every input, got None.'
            )
        groups = np.asarray(groups)
        if groups.shape != (n_inputs,):
            raise ValueError(
                f"groups must have one label per input, shape ({n_inputs},), got "
                f"shape {groups.shape}."
            )
        return len(np.unique(groups))
    return n_inputs


def is_shared(children):
    """Tell whether all neurons of a layer use one partition.

    Parameters
    ----------
    children : int ndarray of shape (n_neurons, n_inputs)
        The child of each edge, see :func:`partition`.

    Returns
    -------
    shared : bool
        Whether all rows are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.nn import is_shared, partition
    >>> weight = np.ones((3, 8))
    >>> is_shared(partition(weight, 2, "shared", rng=0))
    True
    >>> is_shared(partition(weight, 2, "random", rng=0))
    False
    """
    return bool((children == children[:1]).all())


def deal(n_inputs, n_children):
    """Deal 0, 1, ... in runs whose lengths differ by at most one."""
    return np.arange(n_inputs) * n_children // n_inputs


def _deal_groups(groups, n_neurons, n_children, rng):
    """Deal whole groups, each to the child with the smallest fan-in so far."""
    _, group_of_input, sizes = np.unique(
        groups, return_inverse=True, return_counts=True
    )
    children = np.empty((n_neurons, len(groups)), dtype=np.intp)
    for neuron in range(n_neurons):
        child_of_group = np.empty(len(sizes), dtype=np.intp)
        # A child without a group comes before one with any, however small.
        load = np.zeros(n_children)
        for group in rng.permutation(len(sizes)):
            child_of_group[group] = child = load.argmin()
            load[child] += sizes[group]
        children[neuron] = child_of_group[group_of_input]
    return children


def _cluster_inputs(weight, n_clusters, rng, n_iter=20):
    """Balanced k-means on the rows of the Gram matrix of the columns of `weight`.

    With G = W'W the squared distance of rows j and k of G is
    (w_j - w_k)' WW' (w_j - w_k), so the rows are clustered as (WW')^(1/2) w_j: as
    many coordinates as neurons instead of as inputs.
    """
    weight = np.asarray(weight, dtype=np.float64)
    values, vectors = np.linalg.eigh(weight @ weight.T)
    points = weight.T @ (vectors * np.sqrt(values.clip(min=0)))
    centers = points[rng.choice(len(points), n_clusters, replace=False)]
    labels = None
    for _ in range(n_iter):
        previous, labels = labels, _assign_balanced(points, centers)
        if previous is not None and (labels == previous).all():
            break
        for cluster in range(n_clusters):
            centers[cluster] = points[labels == cluster].mean(axis=0)
    return labels


def _assign_balanced(points, centers):
    """Assign points to centers of equal capacity, those with most to lose first."""
    n_points, n_centers = len(points), len(centers)
    distance = (
        (points**2).sum(1)[:, None] - 2 * points @ centers.T + (centers**2).sum(1)
    )
    room = np.bincount(deal(n_points, n_centers), minlength=n_centers).tolist()
    nearest = np.argsort(distance, axis=1, kind="stable")
    two = np.take_along_axis(distance, nearest[:, :2], axis=1)
    regret = two[:, -1] - two[:, 0]
    choices = nearest.tolist()
    labels = np.empty(n_points, dtype=np.intp)
    for point in np.argsort(-regret, kind="stable").tolist():
        labels[point] = center = next(c for c in choices[point] if room[c])
        room[center] -= 1
    return labels


def _check_partition(children, shape, n_children):
    """Check what a user's split rule returned."""
    children = np.asarray(children)
    if children.shape != shape or not np.issubdtype(children.dtype, np.integer):
        raise ValueError(
            f"A callable split must return an int array of shape {shape}, the child of "
            f"each edge; it returned shape {children.shape} of {children.dtype}."
        )
    if children.size and not 0 <= children.min() <= children.max() < n_children:
        raise ValueError(
            f"A callable split must return children in [0, {n_children}); it returned "
            f"values in [{children.min()}, {children.max()}]."
        )
    return children.astype(np.intp)
