"""Checks of what a file says; each names what must hold and what was found."""

import math
import reprlib

import numpy as np

BYTES_PER_BYTE, SPARE_BYTES = 10, 64 * 10**6
"""Bytes of memory that loading may take for every byte of a file, and on top."""

MAX_MESSAGE = 400
"""Characters of the longest message, because a file may hold values of any length."""


class ModelFileError(ValueError):
    """A model file is truncated, altered, hostile or of another format.

    :func:`sklearn_fpe.load` raises it, and nothing else, for a file that is no sound
    model; errors of the file system stay the ``OSError`` they are.
    """

    def __init__(self, message):
        message = str(message)
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 100]} ... {message[-90:]}"
        super().__init__(message)


class Memory:
    """The memory that loading one file may take, and what is left of it.

    Whatever is about to be made in memory is counted first, so a file whose bytes ask
    for far more memory is refused before any of it is allocated. What is counted is an
    upper bound, and nothing is given back.

    Parameters
    ----------
    n_bytes : int
        Size of the file.
    """

    def __init__(self, n_bytes):
        self.n_bytes = n_bytes
        self.limit = self.left = BYTES_PER_BYTE * n_bytes + SPARE_BYTES

    def take(self, n_bytes, name):
        """Count bytes of memory, or raise an error if too few are left."""
        require(
            n_bytes <= self.left,
            f"{name} would take {n_bytes} bytes of memory, but of the {self.limit} "
            f"that loading a file of {self.n_bytes} bytes may take {self.left} are "
            f"left.",
        )
        self.left -= n_bytes


def require(holds, message):
    """Raise an error if a condition does not hold."""
    if not holds:
        raise ModelFileError(message)


def record(value, keys, name):
    """Check an object that has just these fields; return their values."""
    found = list(value) if isinstance(value, dict) else value
    require(
        isinstance(value, dict) and value.keys() == set(keys),
        f"{name} must have the fields {', '.join(keys)}; got {reprlib.repr(found)}.",
    )
    return [value[key] for key in keys]


def listing(value, name, least=0, most=2**31):
    """Check a list; return it."""
    found = len(value) if isinstance(value, list) else reprlib.repr(value)
    require(
        isinstance(value, list) and least <= len(value) <= most,
        f"{name} must be a list of {least} to {most} entries, got {found}.",
    )
    return value


def integer(value, name, least, most=2**53):
    """Check an integer in [least, most]; return it."""
    require(
        type(value) is int and least <= value <= most,
        f"{name} must be an integer in [{least}, {most}], got {reprlib.repr(value)}.",
    )
    return value


def integers(value, name, least, most=2**31, length=None):
    """Check a list of integers in [least, most]; return it as a tuple."""
    given = (0, 2**31) if length is None else (length, length)
    return tuple(integer(v, name, least, most) for v in listing(value, name, *given))


def choice(value, options, name):
    """Check one of some texts; return it."""
    require(
        isinstance(value, str) and value in options,
        f"{name} must be one of {', '.join(options)}; got {reprlib.repr(value)}.",
    )
    return value


class Arrays:
    """The arrays of a file, each taken once, of the type and shape it must have.

    Parameters
    ----------
    arrays : dict of ndarrays
        The arrays by name.
    """

    def __init__(self, arrays):
        self._arrays = dict(arrays)
        self._parts = []

    def __contains__(self, name):
        return name in self._arrays

    def within(self, start):
        """Return the arrays whose names have a start, without it.

        They count as taken here.
        """
        inner = {n: a for n, a in self._arrays.items() if n.startswith(start)}
        for name in inner:
            del self._arrays[name]
        self._parts.append(
            Arrays({name.removeprefix(start): array for name, array in inner.items()})
        )
        return self._parts[-1]

    def take(self, name, dtype, shape):
        """Return an array, which may be read-only; None in `shape`: any length."""
        require(name in self, f"The array {name!r} is missing.")
        array = self._arrays.pop(name)
        fits = array.ndim == len(shape) and all(
            wanted in (None, size)
            for wanted, size in zip(shape, array.shape, strict=True)
        )
        require(
            array.dtype == dtype and fits,
            f"The array {name!r} must be {np.dtype(dtype)} of shape {tuple(shape)}, "
            f"got {array.dtype} of shape {array.shape}.",
        )
        return array

    def real(self, name, dtype, shape):
        """Return an array of finite numbers."""
        array = self.take(name, dtype, shape)
        finite = np.isfinite(array).all()
        require(finite, f"The array {name!r} must hold finite numbers.")
        return array

    def positive(self, name, shape):
        """Return an array of float64 above zero, whose inverse is finite."""
        array = self.real(name, np.float64, shape)
        with np.errstate(divide="ignore", over="ignore"):
            fits = (array > 0).all() and np.isfinite(1 / array).all()
        require(fits, f"The array {name!r} must hold numbers above zero.")
        return array

    def index(self, name, shape, n):
        """Return an array of int32 in [0, n)."""
        array = self.take(name, np.int32, shape)
        fits = not array.size or 0 <= array.min() <= array.max() < n
        require(fits, f"The array {name!r} must hold numbers in [0, {n}).")
        return array

    def mask(self, name, shape):
        """Return an array of bool that is stored as bits or as bytes."""
        if name in self and self._arrays[name].dtype.kind == "b":
            mask = self.take(name, np.bool_, shape)
            fits = mask.view(np.uint8).max(initial=0) <= 1
            require(fits, f"The array {name!r} must hold zeros and ones.")
            return mask.copy()
        n_bits = math.prod(shape)
        # The length is checked before the bits are spread out.
        bits = np.unpackbits(self.take(name, np.uint8, (-(-n_bits // 8),)))
        ends = not bits[n_bits:].any()
        require(ends, f"The array {name!r} must end in zero bits.")
        return bits[:n_bits].reshape(shape).view(bool)

    def close(self):
        """Check that nothing is left over."""
        for part in self._parts:
            part.close()
        left = reprlib.repr(list(self._arrays))
        require(not self._arrays, f"The file holds arrays of no use: {left}.")
