"""Checks of stored states, from which the ``from_state`` of a class makes objects.

Each function checks a part of a state and returns it. Its error names the part, what
must hold and what was found.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

MAX_MESSAGE = 400
"""Characters of the longest message, because a file may hold values of any length."""


class ModelFileError(ValueError):
    """A model file is truncated, altered, hostile or of another format.

    :func:`sklearn_fpe.load` raises it, and nothing else, for a file that is no sound
    model. Errors of the file system are an ``OSError``.
    """

    def __init__(self, message: object) -> None:
        message = str(message)
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 100]} ... {message[-90:]}"
        super().__init__(message)


def require(holds: Any, message: str, *found: Any) -> None:
    """Raise an error if a condition does not hold; it ends with what was found."""
    if not holds:
        raise ModelFileError(", got ".join([message, *map(reprlib.repr, found)]) + ".")


def record(
    value: Any, name: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[Any]:
    """Return the values of a dict of just these fields, None for those it lacks."""
    found = value if isinstance(value, dict) else {}
    missing = [key for key in needed if key not in found]
    others = [key for key in found if key not in (*needed, *optional)]
    if found is not value or missing or others:
        text = f"{name} must have the fields {', '.join(needed)}"
        text += f"; missing: {', '.join(missing)}" * bool(missing)
        text += f"; of no use: {reprlib.repr(others)}" * bool(others)
        require(False, text)
    return [found.get(key) for key in (*needed, *optional)]


def flag(value: Any, name: str) -> bool:
    """Check a bool."""
    require(type(value) is bool, f"{name} must be a bool", value)
    return value


def integer(value: Any, name: str, least: int = 0, most: int = 2**53) -> int:
    """Check an integer in [least, most]."""
    fits = type(value) is int and least <= value <= most
    require(fits, f"{name} must be an integer in [{least}, {most}]", value)
    return value


def choice(value: Any, name: str, options: Collection[str]) -> str:
    """Check one of some texts."""
    fits = isinstance(value, str) and value in options
    require(fits, f"{name} must be one of {', '.join(options)}", value)
    return value


def listing(value: Any, name: str, least: int = 0, most: int = 2**31) -> list | tuple:
    """Check a list or tuple of `least` to `most` entries."""
    found = len(value) if isinstance(value, list | tuple) else value
    fits = isinstance(value, list | tuple) and least <= len(value) <= most
    require(fits, f"{name} must be a list of {least} to {most} entries", found)
    return value


def sizes(value: Any, name: str, length: int | None = None) -> tuple[int, ...]:
    """Check a list of positive integers."""
    limits = () if length is None else (length, length)
    return tuple(integer(n, name, 1, 2**31) for n in listing(value, name, *limits))


def array(
    value: Any, name: str, dtype: type, shape: Sequence[int | None]
) -> np.ndarray:
    """Check the type and the shape of an array, None for any length.

    Indices may be of any integer type.
    """
    require(isinstance(value, np.ndarray), f"The array {name} is missing", value)
    fits = issubclass(value.dtype.type, dtype) and value.ndim == len(shape)
    for wanted, size in zip(shape, value.shape, strict=False):
        fits &= wanted in (None, size)
    if not fits:
        text = f"The array {name} must be {dtype.__name__} of shape {tuple(shape)}"
        require(False, text, value.dtype, value.shape)
    return value


def above_zero(value: Any, name: str, shape: Sequence[int | None]) -> np.ndarray:
    """Check an array of double precision above zero, whose inverse is finite."""
    value = array(value, name, np.float64, shape)
    with np.errstate(divide="ignore", over="ignore"):
        fits = (value > 0).all() and np.isfinite(1 / value).all()
    require(fits, f"The array {name} must hold numbers above zero")
    return value


def index(value: Any, name: str, shape: Sequence[int | None], n: int) -> np.ndarray:
    """Check an array of integers in [0, n)."""
    value = array(value, name, np.integer, shape)
    fits = not value.size or 0 <= value.min() <= value.max() < n
    require(fits, f"The array {name} must hold numbers in [0, {n})")
    return value


def unpack_mask(value: Any, name: str, shape: Sequence[int]) -> np.ndarray:
    """Return a new array of bool that is stored as bits, padded to bytes, or as it is.

    The length is checked before the bits are spread out.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        array(value, name, np.bool_, shape)
        fits = value.view(np.uint8).max(initial=0) <= 1
        require(fits, f"The array {name} must hold zeros and ones")
        return value.copy()
    n_bits = math.prod(shape)
    bits = np.unpackbits(array(value, name, np.uint8, (-(-n_bits // 8),)))
    require(not bits[n_bits:].any(), f"The array {name} must end in zero bits")
    return bits[:n_bits].reshape(shape).view(np.bool_)
