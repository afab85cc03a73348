"""Parameters and labels in JSON, with the types that JSON lacks.

None, bools, integers, finite floats, texts and lists stand for themselves. An object
with one field stands for the rest: ``{"float": "inf"}``, ``{"tuple": [...]}``,
``{"dict": [[key, value], ...]}`` and ``{"array": {"dtype": name, "values": [...]}}``.
"""

import math
import re
import reprlib

import numpy as np

from sklearn_fpe._persistence._checks import (
    ModelFileError,
    choice,
    integer,
    listing,
    record,
)

NUMBERS = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64"),
]
"""The numeric types of arrays; next to them stand "str" and "object"."""

MAX_INTEGER = 2**64 - 1
"""The largest absolute value of an integer."""

MAX_DEPTH = 4
"""Levels of nesting of a parameter."""


class CannotSaveError(ValueError):
    """A value has no form in a model file."""


# --------------------------------------------------------------------------------------
# To JSON
# --------------------------------------------------------------------------------------


def encode(value):
    """Turn a parameter into what JSON can hold."""
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    ):
        value = value.item()
    if isinstance(value, float) and math.isinf(value):
        return {"float": str(value)}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(k), encode(v)] for k, v in value.items()]}
    if hasattr(value, "__array__"):
        return {"array": encode_array(np.asarray(value))}
    return _plain(value)


def encode_array(array):
    """Turn a vector of numbers or texts into what JSON can hold."""
    if array.ndim != 1:
        raise CannotSaveError(f"an array must be a vector, got shape {array.shape}")
    if array.dtype.kind == "U":
        # Four bytes a character.
        return {"dtype": f"str{array.dtype.itemsize // 4}", "values": array.tolist()}
    if array.dtype.name not in (*NUMBERS, "object"):
        raise CannotSaveError(f"an array must hold numbers or texts, not {array.dtype}")
    return {"dtype": array.dtype.name, "values": [_plain(v) for v in array.tolist()]}


def _plain(value):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    # Subclasses come back as what they are a kind of.
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise CannotSaveError(
        f"only numbers, texts, lists, tuples, dicts and arrays of them can be saved, "
        f"got {reprlib.repr(value)} of type {type(value).__name__}"
    )


# --------------------------------------------------------------------------------------
# From JSON
# --------------------------------------------------------------------------------------


def decode(value, name, depth=0):
    """Turn JSON back into a parameter."""
    if depth > MAX_DEPTH:
        raise ModelFileError(f"{name} must not be nested deeper than {MAX_DEPTH}.")
    if isinstance(value, list):
        return [decode(v, name, depth + 1) for v in value]
    if not isinstance(value, dict):
        return _decode_plain(value, name)
    if value.keys() == {"float"}:
        return float(choice(value["float"], ("inf", "-inf"), name))
    if value.keys() == {"tuple"}:
        entries = listing(value["tuple"], name)
        return tuple(decode(v, name, depth + 1) for v in entries)
    if value.keys() == {"array"}:
        return decode_array(value["array"], name)
    (pairs,) = record(value, ["dict"], name)
    result = {}
    for pair in listing(pairs, name):
        key, entry = listing(pair, name, 2, 2)
        result[_decode_plain(key, name)] = decode(entry, name, depth + 1)
    return result


def text_bytes(value):
    """Return the bytes of all arrays of texts in JSON, nested as it may be.

    A file needs few bytes to name a long type, and every entry of an array takes the
    room of the longest one, four bytes a character.
    """
    total, left = 0, [value]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(v for v in value if isinstance(v, list | dict))
        elif isinstance(value, dict):
            left.extend(v for v in value.values() if isinstance(v, list | dict))
            values, length = value.get("values"), _text_length(value.get("dtype"))
            if isinstance(values, list) and length is not None:
                total += 4 * length * len(values)
    return total


def _text_length(dtype):
    """Return the length of the texts of an array's type, None for another type."""
    # Nobody has texts of 10**9 characters, and converting digits takes long.
    if isinstance(dtype, str) and re.fullmatch(r"str[0-9]{1,9}", dtype):
        return int(dtype[3:])
    return None


def decode_array(value, name):
    """Turn JSON back into a vector."""
    dtype, values = record(value, ["dtype", "values"], name)
    for entry in listing(values, name):
        _decode_plain(entry, name)
    if dtype == "object":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    if isinstance(dtype, str) and dtype in NUMBERS:
        return _numbers(values, np.dtype(dtype), name)
    length = _text_length(dtype)
    if length is not None:
        return _texts(values, length, name)
    raise ModelFileError(f"The type of {name} is unknown: {reprlib.repr(dtype)}.")


def _decode_plain(value, name):
    if isinstance(value, list | dict):
        raise ModelFileError(
            f"{name} must be a number or a text, got {reprlib.repr(value)}."
        )
    if isinstance(value, int):
        integer(int(value), name, -MAX_INTEGER, MAX_INTEGER)
    return value


def _numbers(values, dtype, name):
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    if not all(type(v) is kinds[dtype.kind] for v in values):
        raise ModelFileError(f"{name} must hold numbers of type {dtype}.")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError as error:
        raise ModelFileError(f"{name} must fit the type {dtype}: {error}") from error
    if not np.isfinite(array).all():
        raise ModelFileError(f"{name} must fit the type {dtype}.")
    return array


def _texts(values, length, name):
    integer(length, f"The length of {name}", 1)
    if not all(isinstance(v, str) and len(v) <= length for v in values):
        raise ModelFileError(f"{name} must hold texts of at most {length} characters.")
    return np.array(values, dtype=f"U{length}")
