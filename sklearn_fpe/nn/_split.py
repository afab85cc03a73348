"""Split rules: from a weight matrix and a number of children to a partition.

A partition is an integer array ``children`` of shape (n_neurons, n_inputs) with
values in [0, n_children): the child of the neuron that inherits each input edge.
Since an array has one value per edge, coverage (no edge is lost) and disjointness
(no edge is shared by two children) hold by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class SplitRule:
    """A rule that partitions the input edges of neurons among their children.

    Parameters
    ----------
    name : str
        Name of the rule.
    assign : callable
        ``assign(weight, n_children, rng, groups)`` returns the partition, int of the
        shape of `weight`, (n_neurons, n_inputs), in [0, n_children). `rng` is a
        ``numpy.random.Generator``, `groups` the group label of every input or None.
    shared : bool or None, default=False
        Whether all neurons of a layer get the same partition, so that the layer runs
        as dense blocks; None: it depends.
    contiguous : bool, default=False
        Whether children read runs of neighbouring inputs.
    needs_groups : bool, default=False
        Whether the rule needs group labels, which only the network's inputs have;
        deeper layers are then split by ``"shared"``.
    overlapping : bool, default=False
        Whether every child starts with all inputs of its parent, entered as -1 in the
        partition, so that pruning must decide which child keeps which.
    checked : bool, default=True
        Whether to check what `assign` returns.

    Examples
    --------
    Odd and even columns apart:

    >>> import numpy as np
    >>> from sklearn_fpe.nn import SplitRule, partition
    >>> def assign(weight, n_children, rng, groups):
    ...     row = np.arange(weight.shape[1]) % n_children
    ...     return np.tile(row, (len(weight), 1))
    >>> rule = SplitRule("interleaved", assign, shared=True)
    >>> partition(np.ones((2, 6)), 2, rule)
    array([[0, 1, 0, 1, 0, 1],
           [0, 1, 0, 1, 0, 1]])
    """

    name: str
    assign: Callable[[np.ndarray, int, Generator, Any], np.ndarray]
    shared: bool | None = False
    contiguous: bool = False
    needs_groups: bool = False
    overlapping: bool = False
    checked: bool = True

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a registered rule by its name."""
        if SPLITS.get(self.name) is self:
            return get_split, (self.name,)
        return super().__reduce__()

    def max_children(self, n_inputs: int, groups: Any = None) -> int:
        """Return the largest number of children for `n_inputs` inputs in `groups`."""
        if not self.needs_groups:
            return n_inputs
        if groups is None:
            raise ValueError(
                f'split="{self.name}" needs groups, the group label of every input, '
                f"got None."
            )
        groups = np.asarray(groups)
        if groups.shape != (n_inputs,):
            raise ValueError(
                f"groups must have one label per input, shape ({n_inputs},), got "
                f"shape {groups.shape}."
            )
        return len(np.unique(groups))

    def at_level(self, level: int) -> SplitRule:
        """Return the rule for hidden layer `level`; only the first one has groups."""
        return SPLITS["shared"] if level and self.needs_groups else self


def get_split(split: str | SplitRule | Callable) -> SplitRule:
    """Return a split rule by its name in :data:`SPLITS`, the object, or a function's.

    The function is ``f(weight, n_children, rng)``, which returns the partition.
    """
    if isinstance(split, SplitRule):
        return split
    if callable(split):
        name = getattr(split, "__name__", type(split).__name__)
        return SplitRule(name, _WithoutGroups(split), shared=None)
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(
            f"split must be one of {tuple(SPLITS)}, a SplitRule or a callable, got "
            f"{split!r}."
        )
    return SPLITS[split]


@dataclass(frozen=True)
class _WithoutGroups:
    """A user's function as the `assign` of a rule; a class, so that it pickles."""

    function: Callable

    def __call__(self, weight: np.ndarray, n: int, rng: Generator, *_: Any) -> Any:
        return self.function(weight, n, rng)


def partition(
    weight: Any,
    n_children: int,
    split: str | SplitRule | Callable = "shared",
    *,
    groups: Any = None,
    rng: Generator | int | None = None,
) -> np.ndarray:
    """Partition the input edges of every neuron among its children.

    Parameters
    ----------
    weight : array-like of shape (n_neurons, n_inputs)
        Weights of the layer, one row per neuron.
    n_children : int
        Children per neuron, in [1, n_inputs]; with ``split="groups"`` in
        [1, number of groups].
    split : {"random", "shared", "contiguous", "feature", "groups", "learned"}, \
            SplitRule or callable, default="shared"
        - ``"random"``: a random partition for every neuron;
        - ``"shared"``: one random partition for all neurons;
        - ``"contiguous"``: runs of neighbouring inputs, the same for all neurons;
        - ``"feature"``: inputs that the neurons use alike (near rows of the Gram
          matrix of ``weight``) stay together, the same for all neurons;
        - ``"groups"``: inputs of one group stay together; a random assignment of the
          groups for every neuron;
        - ``"learned"``: every child has all inputs (-1 in the partition), and gradual
          pruning decides which child keeps which; an only child has them as 0;
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
        The child, in [0, n_children), that inherits each edge; -1: all of them.

    Raises
    ------
    ValueError
        If `n_children` is out of range, `split` is unknown, `groups` does not fit, or
        a callable returns something that is no partition.

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
    rule = get_split(split)
    n_inputs = weight.shape[1]
    limit = rule.max_children(n_inputs, groups)
    if not (isinstance(n_children, Integral) and 1 <= n_children <= limit):
        raise ValueError(
            f"n_children must be an integer in [1, {limit}] for split={rule.name!r} of "
            f"{n_inputs} inputs, got {n_children!r}."
        )
    children = rule.assign(weight, n_children, np.random.default_rng(rng), groups)
    if rule.checked:
        return _check_partition(children, weight.shape, n_children)
    return children


def is_shared(children: np.ndarray) -> bool:
    """Tell whether all neurons of a layer have the same partition.

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


def balanced_runs(n_inputs: int, n_children: int) -> np.ndarray:
    """Return 0, 1, ... in runs whose lengths differ by at most one, (n_inputs,)."""
    return np.arange(n_inputs) * n_children // n_inputs


def _random(weight: np.ndarray, n_children: int, rng: Generator, *_: Any) -> np.ndarray:
    row = balanced_runs(weight.shape[1], n_children)
    return rng.permuted(np.tile(row, (len(weight), 1)), axis=1)


def _shared(weight: np.ndarray, n_children: int, rng: Generator, *_: Any) -> np.ndarray:
    row = rng.permutation(balanced_runs(weight.shape[1], n_children))
    return np.tile(row, (len(weight), 1))


def _contiguous(weight: np.ndarray, n_children: int, *_: Any) -> np.ndarray:
    row = balanced_runs(weight.shape[1], n_children)
    return np.tile(row, (len(weight), 1))


def _learned(weight: np.ndarray, n_children: int, *_: Any) -> np.ndarray:
    # An only child needs no pruning to have an input for itself.
    return np.full(weight.shape, -1 if n_children > 1 else 0)


def _groups(
    weight: np.ndarray, n_children: int, rng: Generator, groups: Any
) -> np.ndarray:
    """Assign whole groups, each to the child with the smallest fan-in so far."""
    groups, n_neurons = np.asarray(groups), len(weight)
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


def _feature(
    weight: np.ndarray, n_children: int, rng: Generator, *_: Any
) -> np.ndarray:
    """Cluster the inputs by balanced k-means on the rows of the Gram matrix W'W.

    The squared distance of its rows j and k is (w_j - w_k)' WW' (w_j - w_k), so
    clustered are (WW')^(1/2) w_j: as many coordinates as neurons instead of as inputs.
    """
    wide = np.asarray(weight, dtype=np.float64)
    values, vectors = np.linalg.eigh(wide @ wide.T)
    points = wide.T @ (vectors * np.sqrt(values.clip(min=0)))
    centers = points[rng.choice(len(points), n_children, replace=False)]
    labels = np.full(len(points), -1)
    for _iteration in range(20):
        previous, labels = labels, _assign_balanced(points, centers)
        if (labels == previous).all():
            break
        for child in range(n_children):
            centers[child] = points[labels == child].mean(axis=0)
    return np.tile(labels, (len(weight), 1))


def _assign_balanced(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Assign points to centers of equal capacity, those with most to lose first."""
    n_points, n_centers = len(points), len(centers)
    distance = (
        (points**2).sum(1)[:, None] - 2 * points @ centers.T + (centers**2).sum(1)
    )
    room = np.bincount(balanced_runs(n_points, n_centers), minlength=n_centers).tolist()
    nearest = np.argsort(distance, axis=1, kind="stable")
    two = np.take_along_axis(distance, nearest[:, :2], axis=1)
    regret = two[:, -1] - two[:, 0]
    choices = nearest.tolist()
    labels = np.empty(n_points, dtype=np.intp)
    for point in np.argsort(-regret, kind="stable").tolist():
        labels[point] = center = next(c for c in choices[point] if room[c])
        room[center] -= 1
    return labels


def _check_partition(
    children: Any, shape: tuple[int, ...], n_children: int
) -> np.ndarray:
    """Check what a user's split rule returned."""
    wanted = f"A callable split must return an int array of shape {shape}, the child of"
    try:
        children = np.asarray(children)
    except ValueError as error:
        raise ValueError(
            f"{wanted} each edge; it returned rows of different lengths."
        ) from error
    if children.shape != shape or not np.issubdtype(children.dtype, np.integer):
        raise ValueError(
            f"{wanted} each edge; it returned shape {children.shape} of "
            f"{children.dtype}."
        )
    if children.size and not 0 <= children.min() <= children.max() < n_children:
        raise ValueError(
            f"A callable split must return children in [0, {n_children}); it returned "
            f"values in [{children.min()}, {children.max()}]."
        )
    return children.astype(np.intp)


SPLITS = {
    rule.name: rule
    for rule in (
        SplitRule("random", _random, checked=False),
        SplitRule("shared", _shared, shared=True, checked=False),
        SplitRule("contiguous", _contiguous, True, contiguous=True, checked=False),
        SplitRule("feature", _feature, shared=True, checked=False),
        SplitRule("groups", _groups, needs_groups=True, checked=False),
        SplitRule("learned", _learned, overlapping=True, checked=False),
    )
}
"""The split rules by name."""
