"""Parameters and labels in JSON, with the types that JSON lacks.

None, bools, integers, finite floats, texts and lists stand for themselves. An object
with one field stands for the rest: ``{"float": "inf"}``, ``{"tuple": [...]}``,
``{"dict": [[key, value], ...]}`` and ``{"array": {"dtype": name, "values": [...]}}``.
"""

import json
import math
import re
import reprlib

import numpy as np

from sklearn_fpe._io._checks import ModelFileError, choice, integer, listing, record

NUMBERS = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64"),
}
"""The numeric types of arrays; next to them stand "str" and "object"."""

MAX_INTEGER = 2**64 - 1
"""The largest absolute value of an integer."""

MAX_DIGITS = 30
"""Digits of the longest integer that is parsed; those of a parameter have 20."""

MAX_DEPTH = 4
"""Levels of nesting of a parameter."""


class CannotSaveError(ValueError):
    """A value has no form in a model file."""


def parse_json(text, name):
    """Parse JSON strictly: no name twice in an object, no NaN, no infinity."""

    def unique(pairs):
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name comes twice in one object")
        return result

    def finite(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is too large")
        return number

    def short(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"an integer has {len(text)} digits")
        return int(text)

    def no_number(text):
        raise ValueError(f"{text} is no number of JSON")

    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=unique,
            parse_float=finite,
            parse_int=short,
            parse_constant=no_number,
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"The JSON of {name} is damaged: {error}") from error


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
        return {"array": _encode_array(np.asarray(value))}
    return _plain(value)


def _encode_array(array):
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
    code = "a function is code; " if callable(value) else ""
    raise CannotSaveError(
        f"{code}only numbers, texts, lists, tuples, dicts and arrays of them can be "
        f"saved, got {reprlib.repr(value)} of type {type(value).__name__}"
    )


def decode(value, name, memory, depth=0):
    """Turn JSON back into a parameter; `memory` counts what texts take."""
    if depth > MAX_DEPTH:
        raise ModelFileError(f"{name} must not be nested deeper than {MAX_DEPTH}.")

    def inner(entry):
        return decode(entry, name, memory, depth + 1)

    if isinstance(value, list):
        return [inner(v) for v in value]
    if not isinstance(value, dict):
        return _decode_plain(value, name)
    if value.keys() == {"float"}:
        return float(choice(value["float"], ("inf", "-inf"), name))
    if value.keys() == {"tuple"}:
        return tuple(inner(v) for v in listing(value["tuple"], name))
    if value.keys() == {"array"}:
        return _decode_array(value["array"], name, memory)
    (pairs,) = record(value, ["dict"], name)
    pairs = [listing(pair, name, 2, 2) for pair in listing(pairs, name)]
    return {_decode_plain(key, name): inner(entry) for key, entry in pairs}


def _decode_array(value, name, memory):
    dtype, values = record(value, ["dtype", "values"], name)
    for entry in listing(values, name):
        _decode_plain(entry, name)
    if dtype == "object":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    # Nobody has texts of 10**9 characters, and converting digits takes long.
    if isinstance(dtype, str) and re.fullmatch("str[0-9]{1,9}", dtype):
        return _texts(
            values, integer(int(dtype[3:]), f"{name}: length", 1), name, memory
        )
    return _numbers(
        values, np.dtype(choice(dtype, NUMBERS, f"The type of {name}")), name
    )


def _decode_plain(value, name):
    if isinstance(value, list | dict):
        raise ModelFileError(
            f"{name} must be a number or a text, got {reprlib.repr(value)}."
        )
    if isinstance(value, int):
        integer(int(value), name, -MAX_INTEGER, MAX_INTEGER)
    return value


def _numbers(values, dtype, name):
    kind = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except (ValueError, TypeError, OverflowError):
        array = np.array(np.nan)
    if not all(type(v) is kind for v in values) or not np.isfinite(array).all():
        raise ModelFileError(f"{name} must hold numbers that fit the type {dtype}.")
    return array


def _texts(values, length, name, memory):
    # Every entry takes the room of the longest one, four bytes a character.
    memory.take(8 * length * len(values), f"{name}, an array of texts,")
    if not all(isinstance(v, str) and len(v) <= length for v in values):
        raise ModelFileError(f"{name} must hold texts of at most {length} characters.")
    return np.array(values, dtype=f"U{length}")
