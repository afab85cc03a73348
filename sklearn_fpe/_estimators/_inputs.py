"""Checks of X, y and weights before any training."""

from collections.abc import Iterable
from contextlib import suppress
from numbers import Integral, Real

import numpy as np
import torch
from scipy import sparse
from sklearn import get_config
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from sklearn_fpe._engine._context import readable_memory_errors
from sklearn_fpe._engine._lazy import LazyArray
from sklearn_fpe._engine._views import View, chunks

LARGEST = float(np.finfo(np.float32).max)
"""Largest float32."""

LARGEST_DOUBLE = float(np.finfo(np.float64).max)
"""Largest float64."""

PIECE = 2**22
"""Entries of a tensor that are checked at a time: 46 MB of temporary memory."""

NUMBERS = "biuf"
"""NumPy's kinds of real numbers: booleans, integers and floats."""


# --------------------------------------------------------------------------------------
# X
# --------------------------------------------------------------------------------------


def check_X(estimator, X, *, reset, name="X", values=True):
    """Check X and keep its dtype, because a large X must not be converted whole.

    Parameters
    ----------
    estimator : BaseEstimator
        Learns or checks the number and the names of the columns.
    X : array-like, sparse matrix or tensor of shape (n_samples, n_features)
        A tensor stays on its device, and a lazy array in its files.
    reset : bool
        Whether the estimator learns the columns.
    name : str, default="X"
        Name of X in messages.
    values : bool, default=True
        Whether to check the values of an array or a sparse matrix. False leaves that
        to :func:`check_values`. The values of a tensor are always checked.

    Returns
    -------
    X : ndarray, LazyArray, CSR matrix or tensor of shape (n_samples, n_features)
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
        _check_mask(X, name)
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
        X_checked = _check_array(
            X,
            accept_sparse="csr",
            dtype="numeric",
            ensure_all_finite=values,
            estimator=estimator,
            input_name=name,
        )
        if X_checked.dtype.kind == "O":
            # check_array leaves the objects of a list, or of categories, as they are.
            X_checked = _as_real(X_checked, name)
            if values:
                assert_all_finite(X_checked, input_name=name)
    except (TypeError, ValueError, OverflowError) as error:
        if getattr(getattr(X, "dtype", None), "kind", None) == "V":
            _check_kind(X, name)
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
    _check_kind(X_checked, name)
    return X_checked


def _check_array(array, **settings):
    """Call scikit-learn's check, whose sum of large finite values may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return check_array(array, **settings)


def _has_arrays_as_entries(X):
    """Tell whether an entry of the first row is an array or a list."""
    try:
        entries = np.asarray(X[:1], dtype=object).flat
    except Exception:  # X may be anything.
        return False
    kinds = (np.ndarray, torch.Tensor, list, tuple)
    return any(isinstance(entry, kinds) for entry in entries)


def check_values(estimator, view, rows, start=0, name="X"):
    """Check the values of some rows of a view just before they are used.

    A large X is then read once, from memory or from a file, instead of twice. The
    message is the one that :func:`check_X` gives for the whole X.

    Parameters
    ----------
    estimator : BaseEstimator
        Named in messages.
    view : View
        All rows.
    rows : ndarray of shape (n_rows, n_features)
        Rows that were read from it.
    start : int, default=0
        Position of the first of `rows` in `view`.
    name : str, default="X"
        Name of X in messages.
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
    _check_kind(X, name)
    if values and X.dtype.kind == "f":
        view = View(X, X.file_order())
        for rows in chunks(*view.shape):
            check_values(estimator, view, view.read(rows), rows.start, name)


def check_range(values, name, limit=LARGEST_DOUBLE):
    """Check that no absolute value is above `limit`.

    By default the largest float64, in which values are standardised.
    """
    values = values.data if sparse.issparse(values) else values
    if _exceeds(values, limit):
        largest = max(values.max(), -values.min())
        raise ValueError(
            f"Input {name} contains a value too large for "
            f"{'float32' if limit <= LARGEST else 'float64'}: its absolute values must "
            f"be at most {limit:.3g}, got {largest:.3g}."
        )


def _exceeds(values, limit):
    if isinstance(values, torch.Tensor):
        is_float = values.is_floating_point()
    else:
        is_float = values.dtype.kind == "f"
    return (
        is_float
        and values.dtype.itemsize > (4 if limit <= LARGEST else 8)
        and 0 not in values.shape
        and (values.max() > limit or values.min() < -limit)
    )


def _check_tensor(X, name):
    """Check what scikit-learn checks of arrays, without moving the tensor."""
    _check_is_plain(X, name)
    if X.is_floating_point() and X.itemsize < 2:
        raise ValueError(
            f"{name} must not be a tensor of dtype {X.dtype}, in which torch cannot "
            f"compute: pass {name}.half(), which holds the same values."
        )
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"{name} must be of shape (n_samples, n_features), at least (1, 1), got a "
            f"tensor of shape {tuple(X.shape)}."
        )
    if X.is_floating_point():
        kind = _what_is_not_finite(X)
        if kind is not None:
            raise ValueError(f"Input {name} contains {kind}.")
    return X


def _check_is_plain(tensor, name):
    """Check that a tensor is a dense array of real numbers."""
    is_plain = not (
        tensor.is_nested
        or tensor.layout != torch.strided
        or tensor.is_complex()
        or tensor.is_quantized
    )
    if not is_plain:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(
            f"{name} must be a dense tensor of real numbers, got layout {layout} and "
            f"dtype {tensor.dtype}."
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} must be a tensor that holds values, got one on the device 'meta'."
        )


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
        wide = torch.promote_types(X.dtype, torch.float32) == torch.float64
        wide |= X.itemsize >= 4 and not X.is_floating_point()
    else:
        wide = np.result_type(X.dtype, np.float32) != np.float32
    return torch.float64 if wide else torch.float32


# --------------------------------------------------------------------------------------
# Targets and weights
# --------------------------------------------------------------------------------------


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
    """Check targets of any form; return them as an array or a CSR matrix.

    Parameters
    ----------
    y : array-like, sparse matrix or tensor, on any device
        Targets.
    numeric : bool
        Whether they must be real numbers. Labels may be strings or dates as well, and
        an indicator matrix of labels may be sparse.
    name : str, default="y"
        Name of the targets in messages.
    estimator : BaseEstimator, default=None
        Named in messages.

    Returns
    -------
    y : ndarray or CSR matrix
        Integers and booleans keep their type, nullable ones included.
    """
    if y is None:
        raise ValueError(f"{name} must be given, got None.")
    y = to_host(y, name)
    if sparse.issparse(y):
        if y.ndim != 2:
            raise ValueError(
                f"{name} must be an array, or a sparse indicator matrix of shape "
                f"(n_samples, n_labels), got a sparse array of shape {y.shape}."
            )
    else:
        _check_none_is_missing(y, name)
        y = _as_real(y, name) if numeric else y
        _check_kind(y, name, NUMBERS if numeric else NUMBERS + "UOSMm")
    y = _check_array(
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
            f"bits or all booleans, got objects of type {_types(y)}."
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


def check_weights(sample_weight, X, name="sample_weight"):
    """Check sample weights; None is a weight of 1 for every row."""
    shape = (X.shape[0],)
    if sample_weight is None:
        return np.ones(shape)
    weights = to_host(sample_weight, name)
    if not sparse.issparse(weights):
        _check_none_is_missing(weights, name)
        weights = _as_real(weights, name)
        _check_kind(weights, name)
    weights = _check_array(weights, ensure_2d=False, dtype=None, input_name=name)
    if weights.shape != shape:
        raise ValueError(
            f"{name} must have one entry per row, shape {shape}, got shape "
            f"{weights.shape}."
        )
    if (weights < 0).any():
        raise ValueError(f"{name} must not be negative, got {weights.min():g}.")
    if not weights.any():
        raise ValueError(
            f"{name} must have a positive entry, got {len(weights)} zeros."
        )
    check_range(weights, name, LARGEST)
    return weights.astype(np.float64, copy=False)


def to_host(array, name="y"):
    """Turn an array-like into an ndarray in the host's memory.

    Tensors come from whatever device they are on. Objects that are all booleans, all
    integers or all real numbers get that dtype, as pandas' nullable columns need it.
    Nothing else is converted: sparse matrices stay as they are, missing values stay
    missing, and None stays None.
    """
    if array is None or sparse.issparse(array):
        return array
    if isinstance(array, torch.Tensor):
        return _tensor_to_host(array, name)
    _check_mask(array, name)
    try:
        values = np.asarray(array)
        if values.dtype.kind in "US" and not hasattr(array, "dtype"):
            # NumPy turns the numbers and NaN in a list of strings into strings.
            objects = np.asarray(array, dtype=object)
            if not all(isinstance(value, (str, bytes)) for value in objects.flat):
                return objects
    except ValueError as error:
        raise ValueError(
            f"{name} must be an array, got a sequence whose entries have different "
            f"lengths: {error}"
        ) from error
    return _from_objects(values) if values.dtype.kind in "OT" else values


def _tensor_to_host(tensor, name):
    _check_is_plain(tensor, name)
    tensor = tensor.detach().cpu().resolve_neg()
    if tensor.is_floating_point() and tensor.dtype not in (
        *(torch.float16, torch.float32, torch.float64),
    ):
        tensor = tensor.float()  # NumPy has neither bfloat16 nor float8
    return tensor.numpy()


def _from_objects(values):
    """Give objects that are all numbers of one kind their own dtype."""
    values = values.astype(object, copy=False)
    kinds = {type(value) for value in values.flat}
    for kind, dtype in (
        (bool, bool),
        (Integral, np.int64),
        (Integral, np.uint64),
    ):
        if kinds and all(issubclass(k, (np.bool_, kind)) for k in kinds):
            with suppress(OverflowError):
                return values.astype(dtype)
    # As floats, integers of more than 64 bits would not stay distinct.
    is_real = all(issubclass(k, (np.bool_, Real)) for k in kinds)
    is_float = any(issubclass(k, (float, np.floating)) for k in kinds)
    return values.astype(np.float64) if is_real and is_float else values


def _as_real(values, name):
    """Turn objects such as decimals, but not strings, into float64."""
    if values.dtype.kind != "O":
        return values
    try:
        refused = (str, bytes, complex, np.complexfloating)
        if not any(isinstance(value, refused) for value in values.flat):
            return values.astype(np.float64)
    except (TypeError, ValueError):
        pass
    except OverflowError as error:
        raise ValueError(f"{name} must hold numbers of float64: {error}.") from error
    raise ValueError(
        f"{name} must hold real numbers, got objects of type {_types(values)}."
    )


def _types(values):
    return " and ".join(sorted({type(value).__name__ for value in values.flat}))


def _check_kind(values, name, kinds=NUMBERS):
    """Check the kind of an array's dtype."""
    kind = values.dtype.kind
    if kind in kinds:
        return
    hint = ""
    if kind in "Mm":
        hint = " Turn dates and durations into numbers of a unit, such as days."
    labels = "" if kinds == NUMBERS else " or labels"
    raise ValueError(
        f"{name} must hold real numbers{labels}, got dtype {values.dtype}.{hint}"
    )


def _check_none_is_missing(values, name):
    """Check that no entry is None, NaT, NaN among objects, or pandas.NA."""
    if values.dtype.kind in "Mm":
        missing = np.isnat(values).ravel()
    elif values.dtype.kind == "O":
        missing = np.fromiter(map(_is_missing, values.flat), dtype=bool)
    else:
        return  # NaN among floats is found by check_array.
    if missing.any():
        first = int(missing.argmax())
        raise ValueError(
            f"Input {name} contains NaN or another missing value: {name} must have a "
            f"value in every row, got {values.flat[first]!r} as entry {first}, and "
            f"{missing.sum()} missing in all. Leave these rows out."
        )


def _is_missing(value):
    if value is None or type(value).__name__ == "NAType":  # without importing pandas
        return True
    # NaN and NaT are not equal to themselves. Sequences are not missing.
    return not hasattr(value, "__len__") and bool(value != value)


def _check_mask(array, name):
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError(
            f"{name} must have no masked entries, because a mask would be ignored, "
            f"got {np.ma.count_masked(array)}: leave their rows out, or fill them by "
            f"{name}.filled(...)."
        )
