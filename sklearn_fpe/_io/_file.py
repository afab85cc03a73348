"""The file: JSON and arrays in the safetensors format.

Eight bytes hold the length of a header, the header is JSON, then come the arrays. The
header's metadata has one entry, :data:`KEY`, whose text is JSON again: the version of
the format, that of the package, a checksum, and the model.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import reprlib
import secrets
import stat
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sklearn_fpe._io._checks import (
    Memory,
    ModelFileError,
    choice,
    integer,
    listing,
    record,
)
from sklearn_fpe._io._values import parse_json

KEY = "sklearn_fpe"
"""The entry of the metadata that makes a safetensors file a model file."""

FORMAT_VERSION = 2
"""The format that is written; earlier ones are read, too."""

MAX_HEADER = 2**23
"""Bytes of the longest header that is read; parsing it takes a multiple of that."""

NEW_MODE = 0o666
"""Mode of a new file, of which the process's umask takes away its bits."""

DTYPES = {
    **{"F32": np.float32, "F64": np.float64, "I32": np.int32},
    **{"U8": np.uint8, "BOOL": np.bool_},
}
"""The types of arrays that a model file holds."""

COPIES = {"F32": 3, "F64": 8, "I32": 9, "U8": 2 + 8 * 7, "BOOL": 2 + 6}
"""Bytes of memory for each byte of an array, at the peak of loading.

An array is read, sliced out of the file and copied. Integers become int64, and curves
tuples of Python floats. A byte of type U8 is eight bits of a mask: each becomes a
bool, a float32 and temporarily one more byte. One of type BOOL becomes a bool and a
float32.
"""

BYTES_PER_ARRAY = 2**11
"""Bytes of memory that an array takes beside its values, as an entry of the header."""

BYTES_PER_VALUE = 250
"""Bytes of memory that a value of JSON takes, once it is parsed and used."""


@dataclass
class Content:
    """JSON and arrays of a file, not checked but for its format."""

    model: Any
    arrays: dict
    version: str
    format_version: int
    memory: Memory


def pack(model, arrays, version):
    """Lay a model out as the bytes of a file.

    Parameters
    ----------
    model : dict
        What JSON can hold.
    arrays : dict of ndarrays
        Arrays of the types in :data:`DTYPES`.
    version : str
        Version of the package.
    """
    # safetensors takes an array's memory as it lies.
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    document = {"format_version": FORMAT_VERSION, "version": version, "model": model}
    document["sha256"] = checksum(document, arrays)
    # One entry of metadata only: safetensors writes several in no fixed order.
    return _safetensors().save(arrays, {KEY: json.dumps(document)})


def unpack(data):
    """Return the Content of the bytes of a file."""
    return _read(io.BytesIO(data), len(data))


def read(path):
    """Return the Content of a file."""
    path = os.fspath(path)  # no number: it would be that of an open file
    _check_regular(os.stat(path), path)
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        _check_regular(status, path)
        return _read(file, status.st_size)


def _open_at_once(path, flags):
    # A pipe may have taken the place of the file since it was looked at: opening it
    # must not wait for its other end.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(status, path):
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path!r} must be a regular file.")


def write(path, data):
    """Write a file as a whole or not at all.

    The bytes go to a new file in the same folder, which then takes the place of the
    old one. Its name is drawn at random, because processes on several machines and
    threads of one process may save to one path at the same time. A symbolic link is
    followed, so that it stays a link, and a file that is replaced keeps its mode.

    Parameters
    ----------
    path : str or path-like
        Where to write.
    data : bytes
        The content.
    """
    target = os.path.realpath(os.fsdecode(path))
    mode = _mode_to_keep(target)
    folder = os.path.dirname(target)
    part = os.path.join(folder, f".sklearn_fpe.{secrets.token_hex(8)}.part")
    new_mode = NEW_MODE if mode is None else mode
    file = open(part, "xb", opener=partial(os.open, mode=new_mode))  # noqa: SIM115
    try:
        with file:
            if mode is not None:
                os.chmod(part, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    _sync_folder(folder)


def _mode_to_keep(target):
    """Return the mode of the file that is to be replaced, None if there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"path must name a regular file or none, but {target!r} is a pipe, a "
            f"socket or a device."
        )
    return stat.S_IMODE(status.st_mode)


def _sync_folder(folder):
    """Write the folder's entry of a new file to the disk, where a system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum(document, arrays):
    """Hash a document and its arrays.

    The checksum finds accidents. Whoever alters a file on purpose computes it anew, so
    nothing relies on it: what is read is checked as if there were none.
    """
    arrays = sorted(arrays.items())
    table = [[name, array.dtype.name, array.shape] for name, array in arrays]
    digest = hashlib.sha256()
    encoder = json.JSONEncoder(sort_keys=True, allow_nan=False)
    try:
        # Piece by piece: the text as a whole is several times as long as the file's.
        for piece in encoder.iterencode([document, table]):
            digest.update(piece.encode())
    except RecursionError as error:
        raise ModelFileError("The model's JSON is nested too deeply.") from error
    for _, array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _read(file, size):
    """Read `size` bytes; the arrays only if the header accounts for every byte."""
    parse = _safetensors().load
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ModelFileError(
            f"The file is truncated, or is no model file: of its {size} bytes the "
            f"first 8 say that {length} of header follow."
        )
    if length > MAX_HEADER:
        raise ModelFileError(
            f"The header must have at most {MAX_HEADER} bytes, it has {length}."
        )
    memory = Memory(size)
    header = file.read(length)
    table = _parse(header, "the header", memory)
    document = _document(table, memory)
    n_bytes = size - 8 - length
    _check_table(table, n_bytes, memory)
    file.seek(0)
    data = file.read(size)
    if len(data) != size or not data.startswith(start + header):
        raise ModelFileError("The file changed while it was read.")
    try:
        arrays = parse(data)
    except Exception as error:  # a class of its own, and some of Python's
        raise ModelFileError(f"The arrays are damaged: {error}") from error
    if document.pop("sha256") != checksum(document, arrays):
        raise ModelFileError(
            "The checksum does not fit: the file was damaged or altered after it was "
            "saved."
        )
    return Content(arrays=arrays, memory=memory, **document)


def _parse(text, name, memory):
    """Parse JSON, text or bytes, whose objects fit into memory."""
    signs = [b",", b"[", b"{", b":"] if isinstance(text, bytes) else [*",[{:"]
    n_values = 1 + sum(map(text.count, signs))
    # One character beyond the 16-bit ones makes all of a text four bytes wide, and
    # parsing holds it twice.
    memory.take(8 * len(text) + BYTES_PER_VALUE * n_values, f"The JSON of {name}")
    return parse_json(text, name)


def _document(table, memory):
    """Return the document that stands in the metadata, but for its model checked."""
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ModelFileError(
            f"The file is no model file: its metadata has no entry {KEY!r}."
        )
    document = _parse(text, "the metadata", memory)
    if not isinstance(document, dict) or "format_version" not in document:
        raise ModelFileError("The metadata must say the format_version.")
    found = document["format_version"]
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise ModelFileError(
            f"format_version must be in [1, {FORMAT_VERSION}], those that this version "
            f"of sklearn_fpe reads, got {reprlib.repr(found)}."
        )
    record(document, ("format_version", "version", "sha256", "model"), "The metadata")
    version = document["version"]
    if not isinstance(version, str) or not 0 < len(version) <= 40:
        raise ModelFileError("The version must be a text of 1 to 40 characters.")
    return document


def _check_table(table, n_bytes, memory):
    """Check that arrays of known types fill `n_bytes` and fit into memory."""
    total = 0
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        name = reprlib.repr(name)
        dtype, shape, _ = record(
            entry, ("dtype", "shape", "data_offsets"), f"The entry of {name}"
        )
        choice(dtype, DTYPES, f"The type of {name}")
        for length in listing(shape, f"The shape of {name}", most=3):
            integer(length, f"The shape of {name}", 0, n_bytes)
        n_array = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        memory.take(BYTES_PER_ARRAY + COPIES[dtype] * n_array, f"The array {name}")
        total += n_array
    if total != n_bytes:
        raise ModelFileError(
            f"The file is truncated or too long: {n_bytes} bytes follow the header, "
            f"and its arrays take {total}."
        )


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"Saving and loading models needs safetensors, which cannot be imported "
            f'({error}). Install the extra: pip install "sklearn-fpe[safetensors]"'
        ) from error
    return safetensors.numpy
