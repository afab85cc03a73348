"""Weights of classes, as weights of rows or of the entries of an indicator matrix."""

from numbers import Real

import numpy as np

from sklearn_fpe._estimators import _together


def weigh_rows(class_weight, classes, y, weights, world):
    """Multiply the weights of rows by those of their labels.

    ``"balanced"`` counts the rows of all processes of a world.
    """
    if not isinstance(class_weight, (dict, str)):
        raise ValueError(
            f"class_weight must be a dict from label to weight, 'balanced' or None "
            f"for labels of shape (n_samples,), got {class_weight!r}."
        )
    used = weights > 0
    labels = y[used]
    present = np.unique(labels)
    if isinstance(class_weight, dict):
        of_class = _of_labels(class_weight, classes)
    else:
        # One process counts the classes in y only, as scikit-learn does.
        classes = present if world.size == 1 else classes
        codes = np.searchsorted(classes, labels)
        of_class = _together.balanced_weights(world, classes, codes, weights[used])
    product = np.zeros(len(y))
    product[used] = of_class[np.searchsorted(classes, labels)]
    if not product.any():
        raise ValueError(
            f"class_weight must be positive for a class in y, got {class_weight!r} for "
            f"{present}."
        )
    with np.errstate(over="ignore"):
        product *= weights
        total = product.sum()
    if not np.isfinite(total):
        raise ValueError(
            f"class_weight times sample_weight must have a finite sum, got "
            f"{class_weight!r} and weights of up to {weights.max():g}."
        )
    return product


def _of_labels(class_weight, classes):
    """Return the weights that a dict gives to classes, 1 to those it does not name.

    scikit-learn's ``compute_class_weight`` would look up the number 1 for the label
    "1", and takes no dates.
    """
    _check_numbers(class_weight)
    others = [label for label in classes if label not in class_weight]
    if others and len(classes) - len(others) < len(class_weight):
        raise ValueError(
            f"The classes, {np.array(others).tolist()}, are not in class_weight, got "
            f"{class_weight!r}."
        )
    return np.array([float(class_weight.get(label, 1)) for label in classes])


def weights_by_column(class_weight, y, weights, world):
    """Return the weights of the entries 0 and 1 of an indicator matrix, (n_labels, 2).

    ``"balanced"`` counts every row, of all processes of a world, as often as the
    weights of the rows say.
    """
    n_labels = y.shape[1]
    table = np.ones((n_labels, 2))
    if isinstance(class_weight, str):
        counts = np.stack([weights @ (y == 0), weights @ (y == 1)], axis=1)
        counts = world.total(counts, "frequencies of labels")
        total = world.total(weights.sum(), "sums of weights")
        # The weight is 1 where a column holds one class only, as it is for labels.
        both = (counts > 0).all(axis=1)
        table[both] = total / (2 * counts[both])
        return table
    is_list = not isinstance(class_weight, dict)
    columns = dict(enumerate(class_weight)) if is_list else class_weight
    is_complete = len(columns) == n_labels or not is_list
    if not is_complete or not all(isinstance(d, dict) for d in columns.values()):
        raise ValueError(
            f"class_weight must be 'balanced', a list of {n_labels} dicts from 0 and 1 "
            f"to weights, one for each column of a multi-label y, or a dict from "
            f"columns to such dicts, got {class_weight!r}."
        )
    for column, of_column in columns.items():
        if column not in range(n_labels):
            raise ValueError(
                f"class_weight must name columns of y from 0 to {n_labels - 1}, got "
                f"{column!r}."
            )
        _check_numbers(of_column)
        for entry, weight in of_column.items():
            if entry not in (0, 1):
                raise ValueError(
                    f"class_weight must map 0 and 1 to weights in every column of a "
                    f"multi-label y, got the key {entry!r} in column {column}."
                )
            table[int(column), int(entry)] = weight
    if not table[np.arange(n_labels), y.astype(np.intp)][weights > 0].any():
        raise ValueError(
            f"class_weight must be positive for an entry of y, got {class_weight!r}."
        )
    return table


def _check_numbers(weights):
    """Check a dict from classes to weights."""
    for label, weight in weights.items():
        if not isinstance(weight, Real):
            raise ValueError(
                f"class_weight must map every label to a number, got {weight!r} for "
                f"{label!r}."
            )
        if not 0 <= weight < np.inf:
            raise ValueError(
                f"class_weight must be finite and not negative, got {weight!r} for "
                f"{label!r}."
            )
