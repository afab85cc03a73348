"""Parameters and labels in JSON, with the types that JSON lacks.

None, bools, integers, finite floats, texts and lists stand for themselves. An object
with one field stands for the rest: ``{"float": "inf"}``, ``{"tuple": [...]}``,
``{"dict": [[key, value], ...]}`` and ``{"array": {"dtype": name, "values": [...]}}``.
"""

import math
import re
import reprlib

import numpy as np

from sklearn_fpe.nn._state import choice, integer, listing, record, require

DTYPES = re.compile("bool|u?int(8|16|32|64)|float(16|32|64)|object|str[1-9][0-9]{0,8}")
"""The types of arrays; that of texts has their greatest length."""

MAX_INTEGER = 2**64 - 1
"""The largest absolute value of an integer."""

MAX_DEPTH = 4
"""Levels of nesting of a parameter."""


def cannot_save(name, reason):
    """Return the error of a parameter, or of labels, without a form in a file."""
    if name == "classes":
        return ValueError(f"The class labels cannot be saved: {reason}.")
    return ValueError(
        f"The parameter {name} cannot be saved: {reason}. Give it another value by "
        f"set_params, which leaves alone what was learned, or use joblib."
    )


def encode(value, name):
    """Turn a parameter into what JSON can hold."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, list):
        return [encode(v, name) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(v, name) for v in value]}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[_encode_plain(k, name), encode(v, name)] for k, v in pairs]}
    if isinstance(value, float) and math.isinf(value):
        return {"float": str(value)}
    if not hasattr(value, "__array__"):
        return _encode_plain(value, name)
    array = np.asarray(value)
    dtype = array.dtype.name
    if array.dtype.kind == "U":
        dtype = f"str{array.dtype.itemsize // 4}"  # four bytes a character
    if array.ndim != 1:
        raise cannot_save(name, f"an array must be a vector, got shape {array.shape}")
    values = [_encode_plain(v, name) for v in array.tolist()]
    return {"array": {"dtype": dtype, "values": values}}


def _encode_plain(value, name):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    # Subclasses come back as what they are a kind of.
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    code = "a function is code; " if callable(value) else ""
    raise cannot_save(
        name,
        f"{code}only numbers, texts, lists, tuples, dicts and arrays of them can be "
        f"saved, got {reprlib.repr(value)} of type {type(value).__name__}",
    )


def decode(value, name, memory, depth=0):
    """Turn JSON back into a parameter; `memory` counts what texts take."""
    require(depth <= MAX_DEPTH, f"{name} must not be nested deeper than {MAX_DEPTH}")

    def inner(values):
        return [decode(v, name, memory, depth + 1) for v in listing(values, name)]

    if isinstance(value, list):
        return inner(value)
    if not isinstance(value, dict):
        return _decode_plain(value, name)
    if value.keys() == {"float"}:
        return float(choice(value["float"], name, ("inf", "-inf")))
    if value.keys() == {"tuple"}:
        return tuple(inner(value["tuple"]))
    if value.keys() == {"array"}:
        return _decode_array(value["array"], name, memory)
    (pairs,) = record(value, name, ["dict"])
    pairs = [listing(pair, name, 2, 2) for pair in listing(pairs, name)]
    keys = [_decode_plain(key, name) for key, _ in pairs]
    return dict(zip(keys, inner([entry for _, entry in pairs]), strict=True))


def _decode_plain(value, name):
    is_plain = value is None or isinstance(value, bool | int | float | str)
    require(is_plain, f"{name} must be a number or a text", value)
    if isinstance(value, int):
        integer(int(value), name, -MAX_INTEGER, MAX_INTEGER)
    return value


def _decode_array(value, name, memory):
    dtype, values = record(value, name, ("dtype", "values"))
    for entry in listing(values, name):
        _decode_plain(entry, name)
    is_known = isinstance(dtype, str) and DTYPES.fullmatch(dtype)
    require(is_known, f"The type of {name} must be one of numbers or texts", dtype)
    if dtype.startswith("str"):
        # Every entry takes the room of the longest one, four bytes a character.
        memory.take(8 * int(dtype[3:]) * len(values), f"{name}, an array of texts,")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype.replace("str", "U"))
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0)
    # NumPy reads texts as numbers, rounds, and cuts what is too long.
    found = array.tolist()
    fits = found == values and [*map(type, found)] == [*map(type, values)]
    require(fits, f"{name} must hold values that fit the type {dtype}", values)
    return array
