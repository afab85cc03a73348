"""The file: JSON and arrays in the safetensors format.

Eight bytes hold the length of a header, the header is JSON, then come the arrays. The
header's metadata has one entry, :data:`KEY`, whose text is JSON again: the version of
the format, that of the package, a checksum, and the model.
"""

import hashlib
import io
import json
import math
import os
import reprlib
import stat
from pathlib import Path

import numpy as np

from sklearn_fpe._persistence._checks import (
    ModelFileError,
    choice,
    integer,
    listing,
    parse_json,
    record,
)

KEY = "sklearn_fpe"
"""The entry of the metadata that makes a safetensors file a model file."""

FORMAT_VERSION = 1
"""Raised when the meaning of what a file says changes."""

MAX_HEADER = 2**23
"""Bytes of the longest header that is read; parsing it takes a multiple of that."""

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "U8": np.uint8}
"""The types of arrays that a model file holds."""


def pack(model, arrays, version):
    """Lay a model out as bytes.

    Parameters
    ----------
    model : dict
        What JSON can hold.
    arrays : dict of ndarrays
        Arrays of the types in :data:`DTYPES`.
    version : str
        Version of the package.

    Returns
    -------
    data : bytes
        The content of a file.
    """
    # safetensors takes an array's memory as it lies.
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    document = {"format_version": FORMAT_VERSION, "version": version, "model": model}
    document["sha256"] = checksum(document, arrays)
    # One entry of metadata only: safetensors writes several in no fixed order.
    return _safetensors().save(arrays, {KEY: json.dumps(document)})


def unpack(data):
    """Read what :func:`pack` made.

    Returns
    -------
    model : object
        What stood in JSON, not checked.
    arrays : dict of ndarrays
        Arrays of the types in :data:`DTYPES`, not checked further.
    version : str
        Version of the package that saved it.
    """
    return _read(io.BytesIO(data), len(data))


def read(path):
    """Read a file; see :func:`unpack`."""
    # Asked before it is opened: opening a pipe would wait for its other end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelFileError(f"{os.fspath(path)!r} must be a regular file.")
    with open(path, "rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size)


def write(path, data):
    """Write a file as a whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def checksum(document, arrays):
    """Hash a document, all but its checksum, and its arrays.

    The checksum finds accidents. Whoever alters a file on purpose computes it anew, so
    nothing relies on it: what is read is checked as if there were none.
    """
    document = {key: value for key, value in document.items() if key != "sha256"}
    arrays = sorted(arrays.items())
    table = [[name, array.dtype.name, array.shape] for name, array in arrays]
    try:
        text = json.dumps([document, table], sort_keys=True, allow_nan=False)
    except RecursionError as error:
        raise ModelFileError("The model's JSON is nested too deeply.") from error
    digest = hashlib.sha256(text.encode())
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
    header = file.read(length)
    table = parse_json(header, "the header")
    document = _document(table)
    n_bytes = size - 8 - length
    _check_table(table, n_bytes)
    data = b"".join([start, header, file.read(n_bytes)])
    if len(data) != size:
        raise ModelFileError("The file became shorter while it was read.")
    try:
        arrays = parse(data)
    except Exception as error:  # a class of its own, and some of Python's
        raise ModelFileError(f"The arrays are damaged: {error}") from error
    if document["sha256"] != checksum(document, arrays):
        raise ModelFileError(
            "The checksum does not fit: the file was damaged or altered after it was "
            "saved."
        )
    return document["model"], arrays, document["version"]


def _document(table):
    """Return the document that stands in the metadata, but for its model checked."""
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ModelFileError(
            f"The file is no model file: its metadata has no entry {KEY!r}."
        )
    document = parse_json(text, "the metadata")
    if not isinstance(document, dict) or "format_version" not in document:
        raise ModelFileError("The metadata must say the format_version.")
    found = document["format_version"]
    if type(found) is not int or found != FORMAT_VERSION:
        raise ModelFileError(
            f"format_version must be {FORMAT_VERSION}, the one that this version of "
            f"sklearn_fpe reads, got {reprlib.repr(found)}."
        )
    record(document, ("format_version", "version", "sha256", "model"), "The metadata")
    version = document["version"]
    if not isinstance(version, str) or not 0 < len(version) <= 40:
        raise ModelFileError("The version must be a text of 1 to 40 characters.")
    return document


def _check_table(table, n_bytes):
    """Check that arrays of known types fill `n_bytes`."""
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
        total += math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
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
