"""Bad input: which error, that it says what to do, and that nothing is trained."""

import re

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import NotFittedError
from torch.nn import Tanh

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _device
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe.nn import Activation

QUICK = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 2, "random_state": 0}
ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]


@pytest.fixture(autouse=True)
def epochs(monkeypatch):
    """The epochs that were trained: none, where an error is expected."""
    trained = []
    real = Trainer.run_epoch
    monkeypatch.setattr(
        Trainer, "run_epoch", lambda *args: trained.append(1) or real(*args)
    )
    return trained


def problem():
    return make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


def independent(weight, n_children, rng):
    return rng.integers(0, n_children, weight.shape)


# What is given, and what the message says of it: the parameter, what must hold, what
# was given.
PARAMETERS = [
    ({"expansion": 0}, ["'expansion'", "Interval|[1, inf)", "Got 0"]),
    ({"expansion": -3}, ["'expansion'", "Got -3"]),
    ({"expansion": 2.5}, ["'expansion'", "Got 2.5"]),
    ({"expansion": None}, ["'expansion'", "Got None"]),
    ({"expansion": True}, ["expansion must be an integer of at least 1", "True"]),
    ({"expansion": "two"}, ["'expansion'", "an int in the range", "'two'"]),
    ({"expansion": [2.0]}, ["expansion must be an integer of at least 1", "[2.0]"]),
    ({"expansion": []}, ["expansion must be an integer of at least 1", "[]"]),
    (
        {"expansion": [2, 2]},
        ["expansion must be", "one entry per hidden layer", "[2, 2]"],
    ),
    ({"expansion": [0]}, ["expansion must be an integer of at least 1", "[0]"]),
    ({"hidden_layer_sizes": (True,)}, ["hidden_layer_sizes must be", "(True,)"]),
    ({"hidden_layer_sizes": (0,)}, ["hidden_layer_sizes must be", "(0,)"]),
    ({"hidden_layer_sizes": (3.5,)}, ["hidden_layer_sizes must be", "(3.5,)"]),
    ({"hidden_layer_sizes": "wide"}, ["'hidden_layer_sizes'", "'wide'"]),
    ({"hidden_layer_sizes": -4}, ["'hidden_layer_sizes'", "Got -4"]),
    ({"split": "halves"}, ["'split'", "'contiguous'", "'halves'"]),
    ({"split": 3}, ["'split'", "Got 3"]),
    ({"split": "groups"}, ['split="groups" needs feature_groups', "got None"]),
    (
        {"split": "groups", "feature_groups": ["a"] * 7},
        ["feature_groups must have one label per column", "(8,)", "(7,)"],
    ),
    (
        {"split": "groups", "feature_groups": [["a"], ["b", "c"]]},
        ["feature_groups must have one label per column", "(8,)", "ragged"],
    ),
    (
        {"split": lambda weight, n_children, rng: np.zeros((2, 2), int)},
        ["split", "(6, 8)", "(2, 2)"],
    ),
    (
        {"split": lambda weight, n_children, rng: np.full(weight.shape, n_children)},
        ["split", "2"],
    ),
    (
        {"split": "random", "prune": "structured"},
        ['prune="structured" needs a partition that all neurons', "'random'"],
    ),
    (
        {"split": independent, "prune": "structured"},
        ['prune="structured" needs a partition that all neurons'],
    ),
    ({"prune": "smallest"}, ["'prune'", "'magnitude'", "'smallest'"]),
    ({"budget": 0}, ["'budget'", "Got 0"]),
    ({"budget": 1.5}, ["'budget'", "Got 1.5"]),
    ({"budget": 1}, ["budget must be in [", "got 1"]),
    ({"budget": 10**6}, ["budget must be in [", "got 1000000"]),
    ({"device": "cuda:99"}, ["device must be 'auto' or a device that is there", "cpu"]),
    ({"device": "gpu"}, ["device must be 'auto' or a device that is there", "'gpu'"]),
    ({"device": "meta"}, ["device must be 'auto' or a device that is there", "'meta'"]),
    ({"device": "hpu"}, ["device must be 'auto' or a device that is there", "'hpu'"]),
    ({"device": 0}, ["'device'", "Got 0"]),
    (
        {"warmup": 3},
        ["max_iter must be at least the warm-up", "max_iter=2", "warmup=3"],
    ),
    ({"warmup": -1}, ["'warmup'", "Got -1"]),
    ({"warmup": 1.5}, ["'warmup'", "Got 1.5"]),
    ({"max_iter": 0}, ["'max_iter'", "Got 0"]),
    ({"activation": "swish"}, ["'activation'", "'relu'", "'gelu'", "'swish'"]),
    ({"batch_size": 0}, ["'batch_size'", "Got 0"]),
    ({"batch_size": "all"}, ["'batch_size'", "'auto'", "'all'"]),
    ({"learning_rate": "step"}, ["'learning_rate'", "'cosine'", "'step'"]),
    ({"learning_rate_init": 0.0}, ["'learning_rate_init'", "Got 0.0"]),
    ({"learning_rate_init": np.nan}, ["'learning_rate_init'", "Got nan"]),
    ({"weight_decay": -1.0}, ["'weight_decay'", "Got -1.0"]),
    ({"validation_fraction": 1.0}, ["'validation_fraction'", "Got 1.0"]),
    ({"n_iter_no_change": 0}, ["'n_iter_no_change'", "Got 0"]),
    ({"tol": -1.0}, ["'tol'", "Got -1.0"]),
    ({"precision": "float16"}, ["'precision'", "'bfloat16'", "'float16'"]),
    ({"skorch_callbacks": "print"}, ["'skorch_callbacks'", "'print'"]),
    ({"skorch_callbacks": [{}]}, ["skorch_callbacks must hold", "got {}"]),
    ({"random_state": "luck"}, ["'random_state'", "'luck'"]),
    ({"standardize": "yes"}, ["'standardize'", "'yes'"]),
    ({"memory": 3}, ["'memory'", "Got 3"]),
    (
        {"memory": "cache", "random_state": None},
        ["memory needs an integer random_state", "None"],
    ),
    (
        {"memory": "cache", "activation": Activation("mine", Tanh, lambda x: x)},
        ["memory needs an activation that can be pickled", "'mine'"],
    ),
    (
        {"memory": "cache", "skorch_callbacks": [object()]},
        ["skorch_callbacks must be None with memory"],
    ),
]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize(("settings", "parts"), PARAMETERS)
def test_parameters(kind, settings, parts, epochs):
    X, y = problem()
    model = kind(**{**QUICK, **settings})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        model.fit(X, y)
    message = str(error.value)
    for part in parts:
        assert any(p in message for p in part.split("|")), message
    assert not epochs
    with pytest.raises(NotFittedError):
        _use(model, X)


def _use(model, X):
    return model.transform(X) if isinstance(model, FPETransformer) else model.predict(X)


def _changed(change):
    X, y = problem()
    return change(X, y)


DATA = [
    (lambda X, y: (_put(X, np.nan), y), "Input X contains NaN"),
    (lambda X, y: (_put(X, np.inf), y), "Input X contains infinity"),
    (lambda X, y: (_beyond(X), y), "Input X contains (infinity|a value too large)"),
    (lambda X, y: (sparse.csr_array(_put(X, np.nan)), y), "Input X contains NaN"),
    (lambda X, y: (sparse.csr_array(_put(X, -np.inf)), y), "contains infinity"),
    (lambda X, y: (X + 1j, y), "Complex data not supported"),
    (lambda X, y: (X[:0], y[:0]), r"Found array with 0 sample\(s\)"),
    (lambda X, y: (X[:, :0], y), r"Found array with 0 feature\(s\)"),
    (lambda X, y: (X[0], y), "Expected 2D array, got 1D array"),
    (lambda X, y: (X[None], y), "dim 3"),
    (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
    (lambda X, y: (X, None), "requires y to be passed, but the target y is None"),
    (lambda X, y: (X.astype(str), y), "dtype='numeric' is not compatible"),
    (lambda X, y: (X.astype("M8[s]"), y), "X must hold real numbers, got .* dates"),
    (lambda X, y: (X.astype("m8[s]"), y), "X must hold real numbers, got .* dates"),
    (lambda X, y: (np.zeros((60, 2), "f8,i4"), y), "X must hold real numbers"),
    (lambda X, y: ([[10**400]] * 60, y), "X must hold numbers of float64"),
    (lambda X, y: ([[None, 1.0]] * 60, y), "Input X contains NaN"),
    (lambda X, y: ([[1.0], [1.0, 2.0]] * 30, y), "inhomogeneous"),
]


def _put(X, value):
    X[3, 2] = value
    return X


def _beyond(X):
    """Return values that float64 cannot hold; infinity where longdouble is float64."""
    with np.errstate(over="ignore"):
        return np.asarray(X, dtype=np.longdouble) * np.longdouble(1e308) * 1e9


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("change", "message"), DATA)
def test_data(kind, method, change, message, epochs):
    model = kind(**QUICK)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(*_changed(change))
    assert not epochs
    assert not hasattr(model, "module_")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: np.zeros(60), "y must hold at least two classes, got 1 class"),
        (lambda y: ["one"] * 60, "y must hold at least two classes, got 1 class"),
        (lambda y: y + 0.5, "Unknown label type: continuous"),
        (lambda y: np.where(y == 1, np.nan, y), "Input y contains NaN"),
        (lambda y: np.c_[y, y], r"y must be labels .* got multiclass-multioutput"),
        (lambda y: [[1], [2, 3]] * 30, "inhomogeneous|sequence"),
        (lambda y: y[:, None, None], "dim 3"),
        (lambda y: y + 1j, "y must hold real numbers or labels, got dtype complex128"),
        (lambda y: np.zeros(60, "f8,i4"), "y must hold real numbers or labels"),
        (lambda y: [1, "a"] * 30, "y must hold labels that .* of type int and str"),
        (lambda y: [{1}, {2}] * 30, "y must hold labels that .* of type set"),
        (lambda y: [2**70, 2**70 + 1] * 30, "integers of at most 64 bits"),
        (lambda y: 2 * np.eye(3)[y] - 1, r"y must be a 0/1 indicator matrix .*\[-1"),
        (lambda y: sparse.csr_array(2 * np.eye(3)[y]), "y must be a 0/1 indicator"),
    ],
)
@pytest.mark.parametrize("kind", [FPEClassifier, FPETransformer])
def test_labels(kind, change, message, epochs):
    X, y = problem()
    with pytest.raises(ValueError, match=message):
        kind(**QUICK).fit(X, change(y))
    assert not epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: _put(y[:, None] * np.ones(4), np.nan), "Input y contains NaN"),
        (lambda y: _put(y[:, None] * np.ones(4), np.inf), "Input y contains infinity"),
        (lambda y: _beyond(y), "Input y contains (infinity|a value too large)"),
        (lambda y: ["low"] * 60, "y must hold real numbers, got dtype <U3"),
        (lambda y: ["1.5"] * 60, "y must hold real numbers, got dtype <U3"),
        (lambda y: np.array(["1.5"] * 60, object), "objects of type str"),
        (lambda y: [[1.0], [2.0, 3.0]] * 30, "y must be an array, got a sequence"),
        (lambda y: y + 1j, "y must hold real numbers, got dtype complex128"),
        (lambda y: [10**400] * 60, "y must hold numbers of float64"),
        (lambda y: np.zeros(60, "f8,i4"), "y must hold real numbers, got dtype"),
        (lambda y: y[:, None, None], "dim 3"),
    ],
)
def test_real_targets(change, message, epochs):
    X, y = make_regression(60, 8, random_state=0)
    with pytest.raises(ValueError, match=message):
        FPERegressor(**QUICK).fit(X, change(y))
    assert not epochs


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_use_before_fit(kind):
    X, _ = problem()
    model = kind(**QUICK)
    for name in ("coefs_", "intercepts_", "n_nonzero_"):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        _use(model, X)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_prediction_of_bad_rows(kind):
    X, y = problem()
    model = kind(**QUICK).fit(X, y)
    for bad, message in [
        (_put(X.copy(), np.nan), "Input X contains NaN"),
        (_beyond(X), "Input X contains (infinity|a value too large for float64)"),
        (X[:, :5], "X has 5 features, but .* is expecting 8 features"),
        (X[0], "Expected 2D array, got 1D array"),
    ]:
        with pytest.raises(ValueError, match=message):
            _use(model, bad)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (np.asarray, np.float16),
        (np.asarray, np.float32),
        (np.asarray, np.float64),
        (sparse.csr_array, np.float32),
    ],
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([np.nan], "contains NaN"),
        ([np.inf], "contains infinity"),
        ([np.inf, -np.inf], "contains infinity"),
    ],
)
def test_bad_values_are_found_in_any_piece(monkeypatch, form, dtype, values, message):
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    monkeypatch.setattr(_device, "PREDICTION_BYTES", 8 * X.shape[1] * 16)
    bad = X.astype(dtype)
    assert np.isfinite(model.predict_proba(form(bad))).all()
    bad[-1, : len(values)] = values
    with pytest.raises(ValueError, match=f"Input X {message}"):
        model.predict(form(bad))


def test_values_that_add_up_to_infinity_are_an_error():
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    entries = np.full(2, 3e38, dtype=np.float32), (np.zeros(2, int), np.zeros(2, int))
    twice = sparse.coo_array(entries, shape=(1, X.shape[1]))
    with pytest.raises(ValueError, match="contains infinity"):
        model.predict(twice)


def test_a_large_sum_is_no_error():
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    large = np.full((3, X.shape[1]), 6e4, dtype=np.float16)
    assert np.isfinite(model.predict_proba(large)).all()


def test_parameter_error_leaves_an_earlier_model_alone():
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    expected = model.predict_proba(X)
    for settings in ({"expansion": 0}, {"device": "gpu"}, {"warmup": 9}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            model.set_params(**{**QUICK, **settings}).fit(X, y)
        model.set_params(warmup=0.1, device="auto", **QUICK)
        np.testing.assert_array_equal(model.predict_proba(X), expected)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_failed_fit_leaves_an_earlier_model_alone(kind):
    X, y = problem()
    model = kind(**QUICK).fit(X, y)
    expected, attributes = _use(model, X), vars(model).copy()
    with pytest.raises(ValueError, match="NaN"):
        model.fit(_put(X[:, :6].copy(), np.nan), y)
    np.testing.assert_array_equal(_use(model, X), expected)
    assert vars(model) == attributes


def test_range_of_the_budget_is_that_which_can_be_had(epochs):
    X, y = problem()
    at_once = {**QUICK, "prune": "magnitude"}
    with pytest.raises(ValueError, match="budget must be in") as error:
        FPEClassifier(**at_once, budget=10**6).fit(X, y)
    low, high = map(int, re.search(r"\[(\d+), (\d+)\]", str(error.value)).groups())
    assert FPEClassifier(**at_once, budget=high).fit(X, y).n_nonzero_ == high
    with pytest.warns(UserWarning, match="is not possible"):
        model = FPEClassifier(**at_once, budget=low).fit(X, y)
    assert model.n_nonzero_ == low
    epochs.clear()
    for budget in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"got {budget}"):
            FPEClassifier(**at_once, budget=budget).fit(X, y)
    assert not epochs


@pytest.mark.parametrize(
    ("settings", "n_features", "message"),
    [
        ({"expansion": 9}, 8, r"expansion=\(9,\) is not possible with 8 inputs"),
        ({"expansion": 2}, 1, r"expansion=\(2,\) is not possible with 1 inputs"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_warnings_point_at_the_line_that_fits(settings, n_features, message, method):
    X, y = problem()
    model = FPEClassifier(**{**QUICK, **settings})
    with pytest.warns(UserWarning, match=message) as record:
        getattr(model, method)(X[:, :n_features], y)
    assert [warning.filename for warning in record] == [__file__]
