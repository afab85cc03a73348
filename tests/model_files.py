"""Small fitted estimators of every kind, and their model files, for several tests."""

import copy

import numpy as np

from benchmarks._fuzz_files import (  # noqa: F401
    CASES,
    CODES,
    N_FEATURES,
    REAL,
    X,
    described_models,
    fitted_models,
    header_of,
    make,
    outputs,
    pack,
    raw_file,
    unpack,
)
from sklearn_fpe import __version__


def check_same(loaded, estimator, rows):
    expectations = outputs(estimator, rows)
    for found, expected in zip(outputs(loaded, rows), expectations, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)


def write(path, model, arrays, version=__version__, format_version=2):
    """Write a file whose checksum fits, whatever it says."""
    path.write_bytes(pack(model, arrays, version, format_version))
    return path


def with_value(model, place, value):
    """Return a copy of JSON with another value at a place."""
    model = copy.deepcopy(model)
    inner = model
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return model
