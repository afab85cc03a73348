"""Location and scale of columns, and the running statistics they come from."""

import numpy as np

from sklearn_fpe._data import Moments
from sklearn_fpe._persistence._checks import ModelFileError

PARTS = ("weight", "mean", "m2")
"""The attributes of running statistics."""


def describe(holder, name):
    """Return the arrays of an object that has ``mean`` and ``scale``."""
    return {f"{name}.mean": holder.mean, f"{name}.scale": holder.scale}


def rebuild(arrays, name):
    """Return mean and scale, float64 arrays of one shape (n_columns,)."""
    scale = arrays.positive(f"{name}.scale", (None,))
    mean = arrays.real(f"{name}.mean", np.float64, scale.shape)
    with np.errstate(over="ignore"):
        fits = len(mean) and np.isfinite(mean / scale).all()
    if not fits:
        raise ModelFileError(
            f"The array '{name}.mean' must hold numbers that are finite in units of "
            f"'{name}.scale', one or more."
        )
    return mean, scale


def describe_moments(moments, name):
    """Return the arrays of running statistics, none of None."""
    if moments is None:
        return {}
    return {f"{name}.{part}": np.asarray(getattr(moments, part)) for part in PARTS}


def rebuild_moments(arrays, name, n_columns):
    """Return running statistics, or None if there are none."""
    if f"{name}.weight" not in arrays:
        return None
    moments = Moments(n_columns)
    moments.weight = float(arrays.positive(f"{name}.weight", ()))
    moments.mean = arrays.real(f"{name}.mean", np.float64, (n_columns,))
    moments.m2 = arrays.real(f"{name}.m2", np.float64, (n_columns,))
    if (moments.m2 < 0).any():
        raise ModelFileError(f"The array '{name}.m2' must not hold negative numbers.")
    return moments
