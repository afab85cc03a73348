"""First layers of models, as the measures and displays read them.

A model is a fitted estimator with ``coefs_`` (scikit-learn's own networks too), a
network of :mod:`sklearn_fpe.nn`, or an array.
"""

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

_NO_NEURONS = "without a hidden layer there are no neurons to look at"


def first_layer_weight(model):
    """Return the weights of the first layer, float64 (n_units, n_inputs)."""
    weight = model
    if _is_network(model):
        weight = _to_numpy(_first_hidden(model).dense_weight())
    elif isinstance(model, BaseEstimator):
        weight = _first_coef(model).T
    if sparse.issparse(weight):
        weight = weight.toarray()
    # One memory layout, so that equal weights give equal bits whatever holds them.
    weight = np.ascontiguousarray(weight, dtype=np.float64)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            "Weights must have shape (n_neurons, n_inputs), both at least 1, got "
            f"{weight.shape}."
        )
    if not np.isfinite(weight).all():
        raise ValueError("Weights must be finite, got NaN or infinity.")
    return weight


def first_layer_units(model):
    """Return which inputs each unit of the first layer sees, and whose child it is.

    An input is seen, bool (n_units, n_inputs), where the connection was kept, also if
    its weight is zero. The parents are int (n_units,); in a dense network a unit is its
    own parent.
    """
    if _is_network(model):
        seen = _to_numpy(_first_hidden(model).dense_mask())
        return seen, _to_numpy(model.parents[0])
    coef = _first_coef(model)
    seen = np.full(coef.shape[::-1], not sparse.issparse(coef))
    if sparse.issparse(coef):
        coef = coef.tocoo()
        seen[coef.col, coef.row] = True
    network = getattr(model, "module_", None)
    if network is None:
        return seen, np.arange(len(seen))
    return seen, _to_numpy(network.parents[0])


def children_units(children):
    """Turn a partition (n_neurons, n_inputs) into what its children see.

    As :func:`first_layer_units`; inputs marked -1 are seen by no child.
    """
    children = np.asarray(children)
    if children.ndim != 2 or not np.issubdtype(children.dtype, np.integer):
        raise ValueError(
            "children must be an int array of shape (n_neurons, n_inputs), got shape "
            f"{children.shape} of {children.dtype}."
        )
    n_neurons, n_inputs = children.shape
    n_children = children.max(initial=0) + 1
    seen = children[:, None, :] == np.arange(n_children)[:, None]
    return seen.reshape(-1, n_inputs), np.repeat(np.arange(n_neurons), n_children)


def _first_hidden(network):
    if not network.hidden:
        raise ValueError(f"The network is linear: {_NO_NEURONS}.")
    return network.hidden[0]


def _is_network(model):
    return hasattr(model, "hidden") and hasattr(model, "parents")


def _first_coef(estimator):
    """Return the first of ``coefs_``, dense or sparse, (n_inputs, n_units)."""
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(
            "A model must be a fitted estimator, a network of sklearn_fpe.nn or an "
            f"array, got {type(estimator).__name__}."
        )
    check_is_fitted(estimator)
    if len(getattr(estimator, "estimators_", ())) > 1:
        raise ValueError(
            f"This {type(estimator).__name__} has several networks: give one of its "
            f"estimators_."
        )
    if not hasattr(estimator, "coefs_"):
        raise TypeError(
            f"{type(estimator).__name__} has no coefs_: it is no network. Of a "
            "pipeline, give the last step."
        )
    if hasattr(estimator, "module_") and not estimator.module_.parents:
        raise ValueError(f"{type(estimator).__name__} is linear: {_NO_NEURONS}.")
    return estimator.coefs_[0]


def _to_numpy(tensor):
    return tensor.cpu().numpy() if hasattr(tensor, "cpu") else np.asarray(tensor)
