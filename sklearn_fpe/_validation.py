"""Checks of parameters and arrays before any training."""

import math
from numbers import Integral

import numpy as np
import torch
from sklearn.utils.validation import validate_data

from sklearn_fpe._compat import check_sample_weight


def check_X(estimator, X, reset):
    """Check X and keep its dtype, so that nothing large is converted whole."""
    X = _from_torch(X)
    X = validate_data(
        estimator, X, reset=reset, accept_sparse="csr", dtype="numeric", order=None
    )
    return _check_range(X)


def check_X_y(estimator, X, y, *, reset, y_numeric=False):
    """Check X and y together; see :func:`check_X`."""
    X, y = validate_data(
        estimator,
        _from_torch(X),
        _from_torch(y),
        reset=reset,
        accept_sparse="csr",
        dtype="numeric",
        multi_output=True,
        y_numeric=y_numeric,
    )
    return _check_range(X), y


def _from_torch(array):
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().numpy()
    return array


def _check_range(X):
    """Check that float32, in which the network computes, can hold X."""
    values = X.data if hasattr(X, "indptr") else X
    if values.dtype == np.float64 and values.size:
        largest = max(values.max(), -values.min())
        if largest > np.finfo(np.float32).max:
            raise ValueError(
                f"Input X contains a value too large for float32: its absolute values "
                f"must be at most {np.finfo(np.float32).max:.3g}, got {largest:.3g}."
            )
    return X


def check_weights(sample_weight, X, name="sample_weight"):
    """Check sample weights; None is a weight of 1 for every row."""
    sample_weight = _from_torch(sample_weight)
    weights = check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    if not weights.any():
        raise ValueError(
            f"{name} must have a positive entry, got {len(weights)} zeros."
        )
    return weights


def resolve_device(device):
    """Turn "auto", a name or a torch.device into a device that is there."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(
            f"device must be 'auto' or a device that is there ({', '.join(there)}), "
            f"got {device!r}."
        ) from error
    return resolved


def resolve_warmup(warmup, max_iter):
    """Turn `warmup`, epochs or a fraction of `max_iter`, into epochs."""
    if isinstance(warmup, Integral):
        if warmup > max_iter:
            raise ValueError(
                f"max_iter must be at least the warm-up: max_iter={max_iter} epochs "
                f"are shorter than warmup={warmup}."
            )
        return int(warmup)
    return round(warmup * max_iter)


def resolve_hidden(hidden_layer_sizes):
    """Turn `hidden_layer_sizes` into a tuple of positive ints."""
    sizes = np.atleast_1d(np.asarray(hidden_layer_sizes, dtype=object)).tolist()
    if not sizes or not all(
        isinstance(h, Integral) and not isinstance(h, bool) and h > 0 for h in sizes
    ):
        raise ValueError(
            f"hidden_layer_sizes must be one or more positive integers, got "
            f"{hidden_layer_sizes!r}."
        )
    return tuple(int(h) for h in sizes)


def resolve_expansion(expansion):
    """Check `expansion`, an int or one int per hidden layer."""
    entries = np.atleast_1d(np.asarray(expansion, dtype=object)).tolist()
    if not entries or not all(
        isinstance(a, Integral) and not isinstance(a, bool) and a >= 1 for a in entries
    ):
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
