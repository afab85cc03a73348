"""Array-likes of any library as NumPy arrays, and checks of their values."""

import sys
from contextlib import suppress
from numbers import Integral, Real

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_array

LARGEST = float(np.finfo(np.float32).max)
"""Largest float32."""

NUMBERS = "biuf"
"""NumPy's kinds of real numbers: booleans, integers and floats."""


def checked_array(array, **settings):
    """Call scikit-learn's check, whose sum of large finite values may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return check_array(array, **settings)


def to_host(array, name="y"):
    """Turn an array-like into an ndarray in the host's memory.

    Tensors come from whatever device they are on. Objects that are all booleans, all
    integers or all real numbers get that dtype, because pandas' nullable columns become
    objects. Sparse matrices, missing values and None stay as they are.
    """
    if array is None or sparse.issparse(array):
        return array
    if isinstance(array, torch.Tensor):
        check_is_plain(array, name)
        tensor = array.detach().cpu().resolve_neg()
        is_known = tensor.dtype in (torch.float16, torch.float32, torch.float64)
        if tensor.is_floating_point() and not is_known:
            tensor = tensor.float()  # NumPy has neither bfloat16 nor float8
        return tensor.numpy()
    check_mask(array, name)
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


def _from_objects(values):
    """Give objects that are all numbers of one kind their own dtype."""
    values = values.astype(object, copy=False)
    kinds = {type(value) for value in values.flat}
    for kind, dtype in ((bool, bool), (Integral, np.int64), (Integral, np.uint64)):
        if kinds and all(issubclass(k, (np.bool_, kind)) for k in kinds):
            with suppress(OverflowError):
                return values.astype(dtype)
    # As floats, integers of more than 64 bits would not stay distinct.
    is_real = all(issubclass(k, (np.bool_, Real)) for k in kinds)
    is_float = any(issubclass(k, (float, np.floating)) for k in kinds)
    return values.astype(np.float64) if is_real and is_float else values


def as_real(values, name):
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
        f"{name} must hold real numbers, got objects of type {types_of(values)}."
    )


def types_of(values):
    """Return the names of the types of objects, for messages."""
    return " and ".join(sorted({type(value).__name__ for value in values.flat}))


def check_kind(values, name, kinds=NUMBERS):
    """Check the kind of an array's dtype."""
    if values.dtype.kind in kinds:
        return
    hint = ""
    if values.dtype.kind in "Mm":
        hint = " Turn dates and durations into numbers of a unit, such as days."
    labels = "" if kinds == NUMBERS else " or labels"
    raise ValueError(
        f"{name} must hold real numbers{labels}, got dtype {values.dtype}.{hint}"
    )


def check_entries(values, name, kinds=NUMBERS):
    """Check that no entry is missing, and the dtype; turn objects into numbers."""
    _check_none_is_missing(values, name)
    values = as_real(values, name) if kinds == NUMBERS else values
    check_kind(values, name, kinds)
    return values


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


def check_mask(array, name):
    """Check that a masked array has no masked entry."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError(
            f"{name} must have no masked entries, because a mask would be ignored, "
            f"got {np.ma.count_masked(array)}: leave their rows out, or fill them by "
            f"{name}.filled(...)."
        )


def check_is_plain(tensor, name):
    """Check that a tensor is a dense array of real numbers."""
    is_strided = not tensor.is_nested and tensor.layout == torch.strided
    if not is_strided or tensor.is_complex() or tensor.is_quantized:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(
            f"{name} must be a dense tensor of real numbers, got layout {layout} and "
            f"dtype {tensor.dtype}."
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} must be a tensor that holds values, got one on the device 'meta'."
        )


def check_range(values, name, limit=sys.float_info.max):
    """Check that no absolute value is above `limit`.

    By default the largest float64, because values are standardised in float64.
    """
    values = values.data if sparse.issparse(values) else values
    if isinstance(values, torch.Tensor):
        is_float = values.is_floating_point()
    else:
        is_float = values.dtype.kind == "f"
    is_single = limit <= LARGEST
    if not is_float or values.dtype.itemsize <= (4 if is_single else 8):
        return  # cannot hold more
    if 0 not in values.shape and (values.max() > limit or values.min() < -limit):
        largest = max(values.max(), -values.min())
        raise ValueError(
            f"Input {name} contains a value too large for "
            f"{'float32' if is_single else 'float64'}: its absolute values must be at "
            f"most {limit:.3g}, got {largest:.3g}."
        )
