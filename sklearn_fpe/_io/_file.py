"""The file: JSON and arrays in the safetensors format.

Eight bytes hold the length of a header, the header is JSON, then come the arrays. The
header's metadata has one entry, :data:`KEY`, whose text is JSON again: the version of
the format, that of the package, a checksum, and the model.
"""

import errno
import hashlib
import io
import json
import math
import os
import reprlib
import secrets
import stat

import numpy as np

from sklearn_fpe._optional import import_optional
from sklearn_fpe._replacing import NEW_MODE, replaced
from sklearn_fpe.nn._state import ModelFileError, choice, listing, record, require

KEY = "sklearn_fpe"
"""The entry of the metadata that makes a safetensors file a model file."""

FORMAT_VERSION = 2
"""The format that is written; earlier ones are read, too."""

MAX_HEADER = 2**23
"""Bytes of the longest header that is read; parsing it takes a multiple of that."""

COPIES = {"F32": 3, "F64": 8, "I32": 9, "U8": 2 + 8 * 7, "BOOL": 2 + 6}
"""Bytes of memory that loading takes for a byte of an array, by type.

An array is read, sliced out of the file and copied. Integers become int64, and curves
tuples of Python floats. A BOOL of a mask, or each of the eight bits of a U8, becomes a
bool and a float32; to spread the bits takes one byte more.
"""

BYTES_PER_ARRAY, BYTES_PER_VALUE = 2**11, 250
"""Bytes of memory that an array takes beside its values, and a value of JSON."""

BYTES_PER_BYTE, SPARE_BYTES = 10, 64 * 10**6
"""Bytes of memory that loading may take for every byte of a file, and on top."""

MAX_DIGITS = 30
"""Characters of the longest number that is parsed; those of a parameter have 20."""


class Memory:
    """The memory that loading a file of `n_bytes` may take, and what is left of it.

    An upper bound of what is about to be made is counted first, so a file that asks for
    far more memory than its bytes allow is refused before any of it is allocated.
    """

    def __init__(self, n_bytes):
        self.n_bytes, self.left = n_bytes, BYTES_PER_BYTE * n_bytes + SPARE_BYTES

    def take(self, n_bytes, name):
        """Count bytes of memory, or raise an error if too few are left."""
        require(
            n_bytes <= self.left,
            f"{name} would take {n_bytes} bytes of memory, but loading a file of "
            f"{self.n_bytes} bytes may take {self.left} more",
        )
        self.left -= n_bytes


def pack(model, arrays, version):
    """Return the bytes of a file of JSON and arrays, saved by a version of the package.

    The arrays are of the types in :data:`COPIES`.
    """
    # safetensors takes an array's memory without regard to its strides.
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    document = {"format_version": FORMAT_VERSION, "version": version, "model": model}
    document["sha256"] = _checksum(document, arrays)
    # One entry of metadata only: safetensors writes several in no fixed order.
    metadata = {KEY: json.dumps(document)}
    return import_optional("safetensors.numpy").save(arrays, metadata)


def write(path, data):
    """Write a file as a whole or not at all.

    The bytes go to a new file in the same folder, which then takes the place of the
    old one. Its name is drawn at random, because processes on several machines and
    threads of one process may save to one path at the same time. A symbolic link is
    followed, so that it stays a link, and a file that is replaced keeps its mode.
    """
    target = os.path.realpath(os.fsdecode(path))
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    else:
        mode = stat.S_IMODE(found)
        if stat.S_ISDIR(found):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        if not stat.S_ISREG(found):
            raise ValueError(
                f"path must name a regular file or none, but {target!r} is a pipe, a "
                f"socket or a device."
            )
    part = f".sklearn_fpe.{secrets.token_hex(8)}.part"
    part = os.path.join(os.path.dirname(target), part)
    with replaced(target, part, NEW_MODE if mode is None else mode) as file:
        if mode is not None:
            os.chmod(part, mode)
        file.write(data)


def read(path):
    """Return the document of a file, its arrays by name, and the memory that is left.

    The model in the document and the values of the arrays are not checked.
    """
    path = os.fspath(path)  # no number: it would be that of an open file
    _check_regular(os.stat(path), path)
    # A pipe may take the place of the file meanwhile: opening it must not wait.
    flags = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda *a: os.open(a[0], a[1] | flags)) as file:
        status = os.fstat(file.fileno())
        _check_regular(status, path)
        return _read(file, status.st_size)


def unpack(data):
    """Read the bytes of a file, see :func:`read`."""
    return _read(io.BytesIO(data), len(data))


def _check_regular(status, path):
    require(stat.S_ISREG(status.st_mode), f"{path!r} must be a regular file")


def _read(file, size):
    """Read `size` bytes; the arrays only if the header accounts for every byte."""
    parse = import_optional("safetensors.numpy").load
    start, memory = file.read(8), Memory(size)
    length = int.from_bytes(start, "little")
    require(
        len(start) == 8 and length <= size - 8,
        f"The file is truncated, or is no model file: of its {size} bytes the first 8 "
        f"say that {length} of header follow",
    )
    fits = length <= MAX_HEADER
    require(fits, f"The header must have at most {MAX_HEADER} bytes", length)
    header = file.read(length)
    # safetensors refuses what is not UTF-8.
    table = _parse(header.decode(errors="replace"), "the header", memory)
    document = _document(table, memory)
    _check_table(table, size - 8 - length, memory)
    file.seek(0)
    data = file.read(size)
    fits = len(data) == size and data.startswith(start + header)
    require(fits, "The file changed while it was read")
    try:
        arrays = parse(data)
    except Exception as error:  # a class of its own, and some of Python's
        raise ModelFileError(
            f"The header or the arrays are damaged: {error}"
        ) from error
    require(
        document.pop("sha256") == _checksum(document, arrays),
        "The checksum does not fit: the file was damaged or altered after it was saved",
    )
    return document, arrays, memory


def _parse(text, name, memory):
    """Parse JSON strictly and within memory.

    No name comes twice in an object, no number is NaN, infinite or long.
    """
    n_values = 1 + sum(map(text.count, ",[{:"))
    # One character beyond the 16-bit ones makes all of a text four bytes wide, and
    # parsing holds it twice.
    memory.take(8 * len(text) + BYTES_PER_VALUE * n_values, f"The JSON of {name}")

    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name comes twice in one object")
        return dict(pairs)

    def number(text, kind=float):
        if len(text) > MAX_DIGITS or not math.isfinite(kind(text)):
            raise ValueError(f"{reprlib.repr(text)} is no number of JSON, or too large")
        return kind(text)

    try:
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_float=number,
            parse_int=lambda text: number(text, int),
            parse_constant=number,
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"The JSON of {name} is damaged: {error}") from error


def _document(table, memory):
    """Take the document out of the metadata; check it but for its model."""
    metadata = table.pop("__metadata__", None) if isinstance(table, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    is_model = isinstance(text, str)
    require(is_model, f"The file is no model file: its metadata has no entry {KEY!r}")
    document = _parse(text, "the metadata", memory)
    found = document.get("format_version") if isinstance(document, dict) else None
    require(
        type(found) is int and 1 <= found <= FORMAT_VERSION,
        f"format_version must be in [1, {FORMAT_VERSION}], those that this version of "
        f"sklearn_fpe reads",
        found,
    )
    fields = ("version", "format_version", "sha256", "model")
    version, *_ = record(document, "The metadata", fields)
    fits = isinstance(version, str) and 0 < len(version) <= 40
    require(fits, "The version must be a text of 1 to 40 characters")
    return document


def _check_table(table, n_bytes, memory):
    """Check that arrays of known types fill `n_bytes` and fit into memory.

    safetensors checks that their shapes fit the places that the table gives them.
    """
    total = 0
    for name, entry in table.items():
        name = f"The array {reprlib.repr(name)}"
        dtype, _, offsets = record(entry, name, ("dtype", "shape", "data_offsets"))
        start, end = listing(offsets, f"{name}: data_offsets", 2, 2)
        fits = type(start) is type(end) is int and 0 <= start <= end <= n_bytes
        require(fits, f"{name}: data_offsets must lie in [0, {n_bytes}]", offsets)
        copies = COPIES[choice(dtype, f"{name}: dtype", COPIES)]
        memory.take(BYTES_PER_ARRAY + copies * (end - start), name)
        total += end - start
    require(
        total == n_bytes,
        f"The file is truncated or too long: {n_bytes} bytes follow the header, and "
        f"its arrays take {total}",
    )


def _checksum(document, arrays):
    """Hash a document and its arrays, to find accidents.

    Whoever alters a file on purpose computes the checksum anew, so what is read is
    checked as if there were none.
    """
    table = [[name, a.dtype.name, a.shape] for name, a in sorted(arrays.items())]
    digest = hashlib.sha256()
    try:
        # Piece by piece: the text as a whole is several times as long as the file's.
        for piece in json.JSONEncoder(sort_keys=True).iterencode([document, table]):
            digest.update(piece.encode())
    except RecursionError as error:
        raise ModelFileError("The model's JSON is nested too deeply.") from error
    for name, *_ in table:
        digest.update(arrays[name].reshape(-1).view(np.uint8))
    return digest.hexdigest()
