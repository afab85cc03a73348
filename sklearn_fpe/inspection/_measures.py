"""Measures of interference between features that share neurons."""

import numpy as np
from scipy.special import comb

from sklearn_fpe.inspection._first_layer import (
    children_units,
    first_layer_units,
    first_layer_weight,
)


def feature_capacity(model):
    r"""Share of each input feature's direction that no other feature uses.

    With :math:`w_i` the column of the first layer's weights W that reads input
    :math:`i`,

    .. math:: C_i = \frac{(w_i \cdot w_i)^2}{\sum_j (w_i \cdot w_j)^2}.

    One means that no other input is read along :math:`w_i`; each of m inputs that are
    read alike has 1/m. The capacities add up to at most the rank of W.

    Parameters
    ----------
    model : estimator, MLP or array-like of shape (n_neurons, n_inputs)
        Fitted estimator with ``coefs_``, network of :mod:`sklearn_fpe.nn`, or weights,
        a NumPy array or a SciPy sparse one. The neurons of an expanded network are
        the children.

    Returns
    -------
    capacity : ndarray of float64 of shape (n_inputs,)
        Capacity of each input, in [0, 1]. Zero for an input that no neuron reads.

    Notes
    -----
    The weights are those that act on X as it is given. The capacities depend on the
    unit of a single input, but not on the unit of all inputs or on a rotation of the
    neurons.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    A. Scherlis, K. Sachan, A. S. Jermyn, J. Benton, B. Shlegeris, "Polysemanticity and
    capacity in neural networks", arXiv:2210.01892.

    Examples
    --------
    >>> from sklearn_fpe.inspection import feature_capacity
    >>> feature_capacity([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    array([0.5, 0.5, 1. ])
    """
    weight = first_layer_weight(model)
    norm = np.linalg.norm(_scaled(weight, axis=0), axis=0)
    direction = _scaled(weight, axis=0) / np.where(norm, norm, 1)
    # sum_j (u_i . w_j)^2 = u_i' (W W') u_i: as many products as neurons, not inputs.
    weight = _scaled(weight, axis=None)
    own = np.einsum("ni,ni->i", weight, direction) ** 2
    total = np.einsum("ni,ni->i", direction, (weight @ weight.T) @ direction)
    return np.divide(own, total, out=np.zeros_like(own), where=total > 0).clip(max=1)


def mean_cosine_similarity(model, *, absolute=True):
    r"""Mean cosine similarity between neurons, over all pairs of them.

    With :math:`v_a` the weights of neuron a, a row of the first layer's weights,

    .. math:: \frac{2}{n (n - 1)} \sum_{a < b} \frac{|v_a \cdot v_b|}{|v_a| |v_b|}.

    Neurons that read disjoint inputs, such as two children of one parent, have none.

    Parameters
    ----------
    model : estimator, MLP or array-like of shape (n_neurons, n_inputs)
        See :func:`feature_capacity`.
    absolute : bool, default=True
        Whether neurons that read the same inputs with opposite signs count as alike.
        False: their cosine is negative, and pairs cancel in the mean.

    Returns
    -------
    similarity : float
        In [0, 1], or in [-1, 1] with ``absolute=False``. Neurons whose weights are all
        zero are left out; NaN if fewer than two neurons remain.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn_fpe.inspection import mean_cosine_similarity
    >>> mean_cosine_similarity([[1, 1, 1, 1], [-2, -2, -2, -2], [0, 0, 0, 0]])
    1.0
    """
    cosines = pairwise_cosines(model)
    if absolute:
        cosines = np.abs(cosines)
    return float(cosines.mean()) if cosines.size else float("nan")


def pairwise_cosines(model):
    """Return the cosine of each pair of neurons that have weights, (n_pairs,)."""
    weight = first_layer_weight(model)
    weight = _scaled(weight[weight.any(axis=1)], axis=1)
    direction = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    pairs = np.triu_indices(len(direction), k=1)
    return (direction @ direction.T)[pairs].clip(-1, 1)


def shared_inputs(model):
    """Share of a parent's inputs that more than one of its children reads.

    Zero for a partition. A learned split lets siblings share inputs.

    Parameters
    ----------
    model : estimator, MLP or int array of shape (n_neurons, n_inputs)
        Fitted estimator, network of :mod:`sklearn_fpe.nn`, or partition, see
        :func:`clause_collisions`. An input is read where the connection was kept.

    Returns
    -------
    share : float
        Mean over the parents of the first hidden layer, in [0, 1]: of the inputs that
        any child reads, those that two or more read. Parents whose children read no
        input are left out; NaN if none remain.

    Examples
    --------
    >>> from sklearn_fpe import FPEClassifier
    >>> from sklearn_fpe.datasets import make_dnf
    >>> from sklearn_fpe.inspection import shared_inputs
    >>> X, y, _ = make_dnf(500, n_clauses=4, clause_size=3, random_state=0)
    >>> model = FPEClassifier((4,), expansion=2, split="shared", prune="magnitude")
    >>> shared_inputs(model.set_params(max_iter=2).fit(X, y))
    0.0
    >>> model.set_params(split="learned", prune="gradual")
    FPEClassifier(...)
    >>> shared_inputs(model.fit(X, y)) > 0
    True
    """
    seen, parents = _units(model)
    _, parent = np.unique(parents, return_inverse=True)
    n_readers = np.zeros((parent.max(initial=-1) + 1, seen.shape[1]), dtype=int)
    np.add.at(n_readers, parent, seen)
    n_read, n_shared = (n_readers > 0).sum(axis=1), (n_readers > 1).sum(axis=1)
    if not n_read.any():
        return float("nan")
    return float((n_shared[n_read > 0] / n_read[n_read > 0]).mean())


def clause_collisions(model, clauses):
    """Count the pairs of clauses that lie wholly in the same child, per neuron.

    Two clauses that one child reads are summed by it before they are told apart: they
    collide. A neuron that is not split holds all of them.

    Parameters
    ----------
    model : int array of shape (n_neurons, n_inputs), estimator or MLP
        Partition, the child of its neuron that reads each input (-1: none does), or a
        fitted estimator or a network of :mod:`sklearn_fpe.nn`. In these an input is
        read where the connection was kept, whatever its weight.
    clauses : DNF or sequence of int arrays
        The clauses; each is the array of its variables, columns of X.

    Returns
    -------
    collisions : float
        Mean over the neurons, those that read no input left out; in
        [0, n_clauses (n_clauses - 1) / 2] where children are disjoint.

    See Also
    --------
    expected_collisions : What to expect of a random partition.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.inspection import clause_collisions
    >>> children = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1]])
    >>> clause_collisions(children, [[0, 1], [2, 3], [4, 5]])
    0.5
    """
    inside, parents = _clauses_inside(model, clauses)
    held = inside.sum(axis=1)
    return float((held * (held - 1) // 2).sum() / len(np.unique(parents)))


def clause_coverage(model, clauses):
    """Share of the clauses that lie wholly in some child of some neuron.

    Parameters
    ----------
    model : int array of shape (n_neurons, n_inputs), estimator or MLP
        See :func:`clause_collisions`.
    clauses : DNF or sequence of int arrays
        The clauses; each is the array of its variables, columns of X.

    Returns
    -------
    coverage : float
        In [0, 1].

    See Also
    --------
    expected_coverage : What to expect of a random partition.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.inspection import clause_coverage
    >>> children = np.array([[0, 1, 0, 1], [0, 0, 1, 0]])
    >>> clause_coverage(children, [[0, 1], [2, 3]])
    0.5
    """
    inside, _ = _clauses_inside(model, clauses)
    return float(inside.any(axis=0).mean())


def expected_collisions(expansion, clause_size, n_clauses=2, *, n_inputs=None):
    r"""Compute the expected collisions per neuron if inputs are split at random.

    If every input goes to one of :math:`\alpha` children independently of the others, n
    disjoint clauses of k literals have :math:`\binom{n}{2} \alpha^{-(2k - 1)}`
    collisions, because 2k - 1 inputs of a pair have to follow the first one.

    Parameters
    ----------
    expansion : int or array-like of int
        Children per neuron, :math:`\alpha \ge 1`.
    clause_size : int
        Literals per clause, k.
    n_clauses : int, default=2
        Number of clauses; no two share a variable.
    n_inputs : int, default=None
        Number of inputs, if they go to children of equal size (up to one input), where
        fewer clauses collide: the count is then hypergeometric. None: independent
        inputs, the formula above.

    Returns
    -------
    collisions : float64 or ndarray of float64 of the shape of `expansion`
        Expected value of :func:`clause_collisions`.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn_fpe.inspection import expected_collisions
    >>> expected_collisions([1, 2, 4], clause_size=2)
    array([1.      , 0.125   , 0.015625])
    """
    pairs = n_clauses * (n_clauses - 1) // 2
    return pairs * _p_same_child(expansion, 2 * clause_size, n_inputs)


def expected_coverage(expansion, clause_size, n_neurons=1, *, n_inputs=None):
    r"""Compute the expected coverage if each neuron splits its inputs at random.

    A clause of k literals lies in one child of a neuron with probability
    :math:`p = \alpha^{-(k - 1)}`, and in a child of any of n neurons with probability
    :math:`1 - (1 - p)^n`.

    Parameters
    ----------
    expansion : int or array-like of int
        Children per neuron, :math:`\alpha \ge 1`.
    clause_size : int
        Literals per clause, k.
    n_neurons : int, default=1
        Neurons that split independently of each other; 1 for a shared partition.
    n_inputs : int, default=None
        See :func:`expected_collisions`.

    Returns
    -------
    coverage : float64 or ndarray of float64 of the shape of `expansion`
        Expected value of :func:`clause_coverage`.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn_fpe.inspection import expected_coverage
    >>> expected_coverage([1, 2, 4], clause_size=2, n_neurons=2)
    array([1.    , 0.75  , 0.4375])
    """
    return 1 - (1 - _p_same_child(expansion, clause_size, n_inputs)) ** n_neurons


def _p_same_child(expansion, n_drawn, n_inputs):
    """Probability that `n_drawn` inputs all go to the same child."""
    alpha = np.asarray(expansion)
    if (alpha < 1).any():
        raise ValueError(f"expansion must be at least 1, got {expansion}.")
    if n_drawn < 1:
        raise ValueError("clause_size must be at least 1.")
    if n_inputs is None:
        return alpha ** (1.0 - n_drawn)
    if n_inputs < n_drawn:
        raise ValueError(
            f"n_inputs must be at least {n_drawn}, the literals that are to lie in the "
            f"same child, got {n_inputs}."
        )
    size, n_larger = np.divmod(n_inputs, alpha)
    ways = (alpha - n_larger) * comb(size, n_drawn) + n_larger * comb(size + 1, n_drawn)
    return ways / comb(n_inputs, n_drawn)


def _units(model):
    """Return the inputs that each child reads, and its parent."""
    is_array = isinstance(model, (np.ndarray, list, tuple))
    return children_units(model) if is_array else first_layer_units(model)


def _clauses_inside(model, clauses):
    """Return which clauses each child holds, (n_units, n_clauses), and its parent."""
    seen, parents = _units(model)
    reads = seen.any(axis=1)
    seen, parents = seen[reads], parents[reads]
    n_inputs = seen.shape[1]
    clauses = [np.asarray(c) for c in getattr(clauses, "variables", clauses)]
    for variables in clauses:
        if not variables.size or variables.min() < 0 or variables.max() >= n_inputs:
            raise ValueError(
                f"clauses must hold columns in [0, {n_inputs}), one or more each, got "
                f"{variables.tolist()}."
            )
    return np.column_stack([seen[:, v].all(axis=1) for v in clauses]), parents


def _scaled(weight, axis):
    """Scale by the largest magnitude, so that squares neither vanish nor overflow."""
    largest = np.abs(weight).max(axis=axis, keepdims=True, initial=0)
    return weight / np.where(largest > 0, largest, 1)
