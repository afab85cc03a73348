"""Checks of X, y and weights before any training."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from sklearn import get_config
from sklearn.utils import assert_all_finite, check_consistent_length
from sklearn.utils.validation import validate_data

from sklearn_fpe._engine._context import readable_memory_errors
from sklearn_fpe._engine._lazy import LazyArray
from sklearn_fpe._engine._views import View, chunks
from sklearn_fpe._estimators._arrays import (
    LARGEST,
    NUMBERS,
    as_real,
    check_entries,
    check_is_plain,
    check_kind,
    check_mask,
    check_range,
    checked_array,
    to_host,
    types_of,
)

PIECE = 2**22
"""Entries of a tensor that are checked at a time: 46 MB of temporary memory."""


def check_X(estimator, X, *, reset, name="X", values=True):
    """Check X and keep its dtype, because a large X must not be converted whole.

    A tensor stays on its device, and a lazy array in its files. Anything else becomes
    an ndarray or a CSR matrix. The estimator learns the number and the names of the
    columns if `reset`, and checks them otherwise. ``values=False`` leaves the values of
    all but tensors to :func:`check_values`.
    """
    if not (reset or values) and _is_usual(estimator, X):
        return X
    if isinstance(X, LazyArray):
        _check_lazy(estimator, X, name, values)
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return X
    is_tensor = isinstance(X, torch.Tensor)
    if is_tensor:
        with readable_memory_errors(X.device, f"Pass {name} in pieces"):
            X = checked = _check_tensor(X.detach(), name)
    else:
        check_mask(X, name)
        checked = _as_matrix(estimator, X, name, values)
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    if values or is_tensor:
        check_range(checked, name)
    return checked


def _is_usual(estimator, X):
    """Tell whether X is an array that passes every check but that of its values.

    scikit-learn's checks would return it as it is, but take as long as the prediction
    of a single row.
    """
    seen = vars(estimator)
    return (
        type(X) is np.ndarray
        and X.dtype.char in "fd"
        and X.ndim == 2
        and len(X) > 0
        and X.shape[1] == seen.get("n_features_in_")
        and "feature_names_in_" not in seen
    )


def _as_matrix(estimator, X, name, values):
    """Turn anything but a tensor into an array or CSR matrix of real numbers."""
    try:
        X_checked = checked_array(
            X,
            accept_sparse="csr",
            dtype="numeric",
            ensure_all_finite=values,
            estimator=estimator,
            input_name=name,
        )
        if X_checked.dtype.kind == "O":
            # check_array leaves the objects of a list, or of categories, as they are.
            X_checked = as_real(X_checked, name)
            if values:
                assert_all_finite(X_checked, input_name=name)
    except (TypeError, ValueError, OverflowError) as error:
        if getattr(getattr(X, "dtype", None), "kind", None) == "V":
            check_kind(X, name)
        if _has_arrays_as_entries(X):
            raise ValueError(
                f"{name} must be of shape (n_samples, n_features), got a column whose "
                f"entries are arrays: turn it into a matrix by np.stack(column)."
            ) from error
        if isinstance(error, ValueError):
            raise
        kind = ValueError if isinstance(error, OverflowError) else TypeError
        message = f"{name} must hold real numbers, none of them missing: {error}"
        raise kind(message) from error
    check_kind(X_checked, name)
    return X_checked


def _has_arrays_as_entries(X):
    """Tell whether an entry of the first row is an array or a list."""
    try:
        entries = np.asarray(X[:1], dtype=object).flat
    except Exception:  # X may be anything.
        return False
    kinds = (np.ndarray, torch.Tensor, list, tuple)
    return any(isinstance(entry, kinds) for entry in entries)


def check_values(estimator, view, rows, start=0, name="X"):
    """Check the values of an array of rows, the first of which is `start` in a view.

    Rows are checked just before they are used, because a large X is then read once, not
    twice. The message is the one that :func:`check_X` gives for the whole X.
    """
    if rows.dtype.kind != "f":
        return
    is_lazy = isinstance(view.X, LazyArray)
    try:
        if not get_config()["assume_finite"]:
            with np.errstate(over="ignore", invalid="ignore"):
                if not np.isfinite(rows.sum()) and not np.isfinite(rows).all():
                    kind = type(estimator).__name__
                    # The first kind of value in the whole X is named; a lazy X would
                    # have to be read whole for that.
                    for values in (rows,) if is_lazy else (view.X, rows):
                        assert_all_finite(values, estimator_name=kind, input_name=name)
        check_range(rows, name)
    except ValueError as error:
        if not is_lazy:
            raise
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(rows.astype(np.float64)).all(axis=1)
        raise ValueError(
            f"{error} The first such row is {view.place(start + int(bad.argmax()))}."
        ) from error


def _check_lazy(estimator, X, name, values):
    """Check rows in files; they are read once, in pieces, if their values are."""
    if 0 in X.shape:
        raise ValueError(
            f"{name} must be of shape (n_samples, n_features), at least (1, 1), got "
            f"shape {X.shape}."
        )
    check_kind(X, name)
    if values and X.dtype.kind == "f":
        view = View(X, X.file_order())
        for rows in chunks(*view.shape):
            check_values(estimator, view, view.read(rows), rows.start, name)


def _check_tensor(X, name):
    """Check what scikit-learn checks of arrays, without moving the tensor."""
    check_is_plain(X, name)
    is_float = X.is_floating_point()
    if is_float and X.itemsize < 2:
        raise ValueError(
            f"{name} must not be a tensor of dtype {X.dtype}, in which torch cannot "
            f"compute: pass {name}.half(), which holds the same values."
        )
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"{name} must be of shape (n_samples, n_features), at least (1, 1), got a "
            f"tensor of shape {tuple(X.shape)}."
        )
    kind = _what_is_not_finite(X) if is_float else None
    if kind is not None:
        raise ValueError(f"Input {name} contains {kind}.")
    return X


def _what_is_not_finite(X):
    """Return "NaN" or "infinity" for a matrix that holds one, else None.

    A sum needs no temporary memory, and it is finite only if every entry is. The
    entries are looked at, in pieces, only if it is not, because a sum may overflow.
    """
    if X.sum().isfinite():
        return None
    rows = X.split(max(1, PIECE // X.shape[1]))
    pieces = [piece for part in rows for piece in part.split(PIECE, dim=1)]
    found = [torch.stack([p.isnan().any(), p.isinf().any()]) for p in pieces]
    has_nan, has_infinity = torch.stack(found).any(dim=0).tolist()
    return "NaN" if has_nan else "infinity" if has_infinity else None


def predict_dtype(X):
    """Return the precision to predict in: double if that of X is above float32."""
    if isinstance(X, torch.Tensor):
        wide = X.itemsize >= (8 if X.is_floating_point() else 4)
    else:
        wide = np.result_type(X.dtype, np.float32) != np.float32
    return torch.float64 if wide else torch.float32


def check_X_y(estimator, X, y, *, reset, suffix="", y_numeric=False):
    """Check X and y together; see :func:`check_X` and :func:`check_y`."""
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            f"the target y{suffix} is None."
        )
    X = check_X(estimator, X, reset=reset, name="X" + suffix)
    y = check_y(y, numeric=y_numeric, name="y" + suffix, estimator=estimator)
    check_consistent_length(X, y)
    return X, y


def check_y(y, *, numeric, name="y", estimator=None):
    """Check targets of any form; return them as an array, or as a CSR matrix.

    They must be real numbers if `numeric`. Labels may be strings or dates as well, and
    an indicator matrix of labels may be sparse. Integers and booleans keep their type,
    nullable ones included.
    """
    if y is None:
        raise ValueError(f"{name} must be given, got None.")
    y = to_host(y, name)
    if not sparse.issparse(y):
        y = check_entries(y, name, NUMBERS if numeric else NUMBERS + "UOSMm")
    elif y.ndim != 2:
        raise ValueError(
            f"{name} must be an array, or a sparse indicator matrix of shape "
            f"(n_samples, n_labels), got a sparse array of shape {y.shape}."
        )
    y = checked_array(
        y,
        accept_sparse=False if numeric else "csr",
        ensure_2d=False,
        dtype=None,
        input_name=name,
        estimator=estimator,
    )
    if y.dtype.kind == "O" and not all(isinstance(label, str) for label in y.flat):
        raise ValueError(
            f"{name} must hold labels that are all strings, all integers of at most 64 "
            f"bits or all booleans, got objects of type {types_of(y)}."
        )
    return y


def check_classes(classes):
    """Check the classes that partial_fit is told of; return them sorted."""
    if isinstance(classes, Iterable) and not hasattr(classes, "__getitem__"):
        classes = list(classes)  # of a set, for example
    classes = check_y(classes, numeric=False, name="classes")
    if classes.ndim != 1:
        raise ValueError(
            f"classes must be labels of shape (n_classes,), got shape {classes.shape}."
        )
    return np.unique(classes)


def weights_as_array(sample_weight, name="sample_weight"):
    """Return weights as numbers in the computer's memory; none may be missing."""
    weights = to_host(sample_weight, name)
    return weights if sparse.issparse(weights) else check_entries(weights, name)


def check_weights(sample_weight, X, name="sample_weight"):
    """Check sample weights; None is a weight of 1 for every row."""
    shape = (X.shape[0],)
    if sample_weight is None:
        return np.ones(shape)
    weights = weights_as_array(sample_weight, name)
    if weights.shape != shape:
        raise ValueError(
            f"{name} must have one entry per row, shape {shape}, got shape "
            f"{weights.shape}."
        )
    weights = checked_array(weights, ensure_2d=False, dtype=None, input_name=name)
    if (weights < 0).any():
        raise ValueError(f"{name} must not be negative, got {weights.min():g}.")
    if not weights.any():
        raise ValueError(
            f"{name} must have a positive entry, got {len(weights)} zeros."
        )
    check_range(weights, name, LARGEST)
    return weights.astype(np.float64, copy=False)
