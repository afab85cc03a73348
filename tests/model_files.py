"""Small fitted estimators of every kind, and their model files, for several tests."""

import copy
from functools import cache

import numpy as np

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer, __version__
from sklearn_fpe._persistence import _estimator, _file

N_ROWS, N_FEATURES = 50, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_FEATURES))
CODES = np.arange(N_ROWS) % 3
REAL = X @ RNG.normal(size=(N_FEATURES, 2)) + 40
INDICATOR = np.stack([CODES > 0, X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)


def make(kind=FPEClassifier, **parameters):
    defaults = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 2}
    return kind(**{**defaults, "device": "cpu", "random_state": 0, **parameters})


def outputs(estimator, X):
    """Everything that an estimator computes of X."""
    names = ("predict", "predict_proba", "decision_function", "transform")
    return [getattr(estimator, n)(X) for n in names if hasattr(estimator, n)]


def check_same(loaded, estimator, X):
    for found, expected in zip(outputs(loaded, X), outputs(estimator, X), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)


CASES = {
    "binary": (make(activation="tanh"), CODES > 0),
    "multiclass": (make(split="random", class_weight="balanced"), CODES),
    "multilabel": (make(prune="structured", activation="logistic"), INDICATOR),
    "dense": (make(expansion=1, activation="identity"), CODES),
    "raw": (make(standardize=False, class_weight={0: 1.0, 1: 2, 2: 0.5}), CODES),
    "stopped": (make(early_stopping=True, validation_fraction=0.2), CODES),
    "one target": (make(FPERegressor, prune="structured"), REAL[:, 0]),
    "targets": (make(FPERegressor, early_stopping=True), REAL),
    "features": (make(FPETransformer, hidden_layer_sizes=(8, 5)), CODES),
    "real features": (make(FPETransformer, task="regression"), REAL),
}


@cache
def fitted_models():
    """The fitted estimators, by name; none is to be changed."""
    return {name: copy.deepcopy(e).fit(X, y) for name, (e, y) in CASES.items()}


@cache
def described_models():
    """What their files hold, JSON and arrays; none is to be changed."""
    return {name: _estimator.describe(e) for name, e in fitted_models().items()}


def write(path, model, arrays, version=__version__):
    """Write a file whose checksum fits, whatever it says."""
    path.write_bytes(_file.pack(model, arrays, version))
    return path


def with_value(model, place, value):
    """Return a copy of JSON with another value at a place."""
    model = copy.deepcopy(model)
    inner = model
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return model
