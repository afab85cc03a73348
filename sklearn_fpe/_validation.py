"""Checks of parameters and arrays before any training."""

import math
import sys
from numbers import Integral

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.validation import check_memory, validate_data
from skorch.callbacks import Callback

LARGEST = float(np.finfo(np.float32).max)


# --------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------


def check_X(estimator, X, *, reset, name="X", values=True):
    """Check X and keep its dtype, so that nothing large is converted whole.

    A tensor stays a tensor, where it is. With ``values=False`` the values of an array
    or a sparse matrix are left to :func:`check_values`.
    """
    options = {"accept_sparse": "csr", "dtype": "numeric", "ensure_all_finite": values}
    if isinstance(X, torch.Tensor):
        checked = _check_tensor(X.detach(), name)
        validate_data(estimator, checked, reset=reset, skip_check_array=True)
    elif name == "X":
        checked = validate_data(estimator, X, reset=reset, **options)
    else:
        checked = check_array(X, estimator=estimator, input_name=name, **options)
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    if values or isinstance(X, torch.Tensor):
        check_range(checked.data if hasattr(checked, "indptr") else checked, name)
    return checked


def check_values(estimator, X, rows):
    """Check the values of some rows of X, an array, just before they are used.

    So a large X is read from memory, or from a file, once instead of twice. An error
    says of X what :func:`check_X` says of it.
    """
    if rows.dtype.kind != "f":
        return
    if not get_config()["assume_finite"]:
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(rows.sum()) and not np.isfinite(rows).all():
                name = type(estimator).__name__
                for values in (X, rows):
                    assert_all_finite(values, estimator_name=name, input_name="X")
    if _above_single(rows):
        check_range(X.data if hasattr(X, "indptr") else X, "X")


def check_X_y(estimator, X, y, *, reset, suffix="", y_numeric=False):
    """Check X and y together; see :func:`check_X`."""
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            f"the target y{suffix} is None."
        )
    X = check_X(estimator, X, reset=reset, name="X" + suffix)
    y = check_array(
        _to_host(y),
        accept_sparse=False if y_numeric else "csr",
        ensure_2d=False,
        dtype=None,
        input_name="y" + suffix,
        estimator=estimator,
    )
    if y_numeric and y.dtype.kind == "O":
        y = y.astype(np.float64)
    check_consistent_length(X, y)
    return X, y


def check_weights(sample_weight, X, name="sample_weight"):
    """Check sample weights; None is a weight of 1 for every row."""
    shape = (X.shape[0],)
    if sample_weight is None:
        return np.ones(shape)
    weights = check_array(
        _to_host(sample_weight), ensure_2d=False, dtype=np.float64, input_name=name
    )
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
    check_range(weights, name)
    return weights


def check_range(values, name):
    """Check that float32, in which training computes, can hold the values."""
    if _above_single(values):
        largest = max(values.max(), -values.min())
        raise ValueError(
            f"Input {name} contains a value too large for float32: its absolute "
            f"values must be at most {LARGEST:.3g}, got {largest:.3g}."
        )


def _above_single(values):
    if isinstance(values, torch.Tensor):
        wide = values.dtype == torch.float64
    else:
        wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
    return (
        wide
        and 0 not in values.shape
        and (values.max() > LARGEST or values.min() < -LARGEST)
    )


def _check_tensor(X, name):
    """Check what scikit-learn checks of arrays, without moving the tensor."""
    if X.layout != torch.strided or X.is_complex() or X.is_quantized:
        raise ValueError(
            f"{name} must be a dense tensor of real numbers, got layout {X.layout} and "
            f"dtype {X.dtype}."
        )
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"{name} must be of shape (n_samples, n_features), at least (1, 1), got a "
            f"tensor of shape {tuple(X.shape)}."
        )
    if X.is_floating_point() and not torch.isfinite(X).all():
        kind = "NaN" if torch.isnan(X).any() else "infinity"
        raise ValueError(f"Input {name} contains {kind}.")
    return X


def _to_host(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        # NumPy has no bfloat16.
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array


def predict_dtype(X):
    """Return the precision to predict in: double if that of X is above float32."""
    if isinstance(X, torch.Tensor):
        wide = torch.promote_types(X.dtype, torch.float32) == torch.float64
        wide |= X.dtype in (torch.int32, torch.int64)
    else:
        wide = np.result_type(X.dtype, np.float32) != np.float32
    return torch.float64 if wide else torch.float32


# --------------------------------------------------------------------------------------
# Parameters
# --------------------------------------------------------------------------------------


def resolve_device(device):
    """Turn "auto", a name or a torch.device into a device that is there."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        # Double precision is needed where the standardisation is folded.
        torch.zeros(1, dtype=torch.float64, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(
            f"device must be 'auto' or a device that is there ({', '.join(there)}), "
            f"got {device!r}."
        ) from error
    return resolved


def resolve_warmup(warmup, max_iter):
    """Turn `warmup`, epochs or a fraction of `max_iter`, into epochs."""
    return int(warmup) if isinstance(warmup, Integral) else round(warmup * max_iter)


def check_schedule(n_warmup, max_iter):
    """Check that the warm-up fits into the epochs of a fit."""
    if n_warmup > max_iter:
        raise ValueError(
            f"max_iter must be at least the warm-up: max_iter={max_iter} epochs are "
            f"shorter than warmup={n_warmup}."
        )


def resolve_hidden(hidden_layer_sizes):
    """Turn `hidden_layer_sizes` into a tuple of positive ints."""
    sizes = _entries(hidden_layer_sizes)
    if not sizes or not all(_is_positive(h) for h in sizes):
        raise ValueError(
            f"hidden_layer_sizes must be one or more positive integers, got "
            f"{hidden_layer_sizes!r}."
        )
    return tuple(int(h) for h in sizes)


def resolve_expansion(expansion):
    """Check `expansion`, an int or one int per hidden layer."""
    entries = _entries(expansion)
    if not entries or not all(_is_positive(a) for a in entries):
        raise ValueError(
            f"expansion must be an integer of at least 1, or one such integer per "
            f"hidden layer, got {expansion!r}."
        )
    return int(expansion) if np.ndim(expansion) == 0 else [int(a) for a in entries]


def resolve_batch_size(batch_size, n_samples):
    """Turn `batch_size` into rows; "auto" aims at some 16 batches of 16 to 256."""
    if isinstance(batch_size, str):
        return min(n_samples, 2 ** round(math.log2(min(256, max(16, n_samples / 16)))))
    return min(n_samples, int(batch_size))


def check_cache(estimator):
    """Check that a warm-up can be taken from a cache in place of running it."""
    check_memory(estimator.memory)
    if not isinstance(estimator.random_state, Integral):
        raise ValueError(
            f"memory needs an integer random_state, so that a cached warm-up is the "
            f"one that would be run, got {estimator.random_state!r}."
        )
    if estimator.skorch_callbacks:
        raise ValueError(
            "skorch_callbacks must be None with memory: a warm-up from the cache would "
            "not call them."
        )


def check_groups(feature_groups, n_features):
    """Check the group labels that ``split="groups"`` needs."""
    if feature_groups is None:
        raise ValueError(
            'split="groups" needs feature_groups, one label per column of X, got None.'
        )
    try:
        shape = np.shape(feature_groups)
    except ValueError:
        shape = "that is ragged"
    if shape != (n_features,):
        raise ValueError(
            f"feature_groups must have one label per column of X, shape "
            f"({n_features},), got shape {shape}."
        )


def check_unchanged(made_with, estimator):
    """Check that parameters which shaped the network are as they were then."""
    for name, before in made_with.items():
        now = getattr(estimator, name)
        if _entries(now) != _entries(before):
            raise ValueError(
                f"{name} must stay {before!r} to go on with the network that was made "
                f"with it, by warm_start or partial_fit, got {now!r}. Fit a clone "
                f"to start anew."
            )


def _entries(value):
    """Return a parameter that may be a scalar or a sequence as a list."""
    return np.atleast_1d(np.asarray(value, dtype=object)).tolist()


def _is_positive(value):
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


# --------------------------------------------------------------------------------------
# Warnings
# --------------------------------------------------------------------------------------


def stack_level():
    """Return the stacklevel at which a warning points at the user's line.

    It is that of a ``warnings.warn`` in the function that calls this.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_library(frame):
        frame, level = frame.f_back, level + 1
    return level


def _is_library(frame):
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("sklearn_fpe", "sklearn", "joblib")


def check_skorch_callbacks(callbacks):
    """Check that a list holds skorch callbacks, plain or as (name, callback)."""
    for entry in callbacks or ():
        callback = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, Callback):
            raise ValueError(
                f"skorch_callbacks must hold skorch.callbacks.Callback instances or "
                f"classes, or pairs of a name and one of these, got {entry!r}."
            )
