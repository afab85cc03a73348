"""Laws of ``learning_rate_init="auto"`` and ``weight_decay="auto"``."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._estimators._resolution import default_decay, default_rate
from sklearn_fpe.nn import Shape

QUICK = {"expansion": 2, "warmup": 0, "max_iter": 4, "random_state": 0}


def explicit(n_inputs, n_rows, units=32, constant=False):
    """Return what the documentation says; `units` are those of the narrowest layer."""
    decay = n_inputs / 60 * math.sqrt(n_inputs / n_rows) * min(1, units / 32)
    return {
        "learning_rate_init": min(0.1, max(0.01, 6.4 / n_inputs))
        / (5 if constant else 1),
        "weight_decay": float(f"{min(3.0, decay):.2g}"),
    }


def data(n_rows, n_inputs, seed=0):
    """Return rows and labels that depend on them."""
    X = np.random.default_rng(seed).normal(size=(n_rows, n_inputs)).astype(np.float32)
    return X, (X[:, 0] * X[:, -1] > 0).astype(int)


def outputs(model, X):
    """Return the raw outputs of a model."""
    if hasattr(model, "transform"):
        return model.transform(X)
    return model.predict_proba(X) if hasattr(model, "classes_") else model.predict(X)


@pytest.mark.parametrize("estimator", [FPEClassifier, FPERegressor])
@pytest.mark.parametrize(
    ("hidden", "skip", "units"),
    [
        ((4,), False, 8),
        ((20,), False, 32),
        ((20, 3), False, 6),
        ((4,), True, 32),
        ((4, 3), True, 32),
        ((), False, 32),
    ],
)
@pytest.mark.parametrize("n_inputs", [3, 100, 2000])
def test_a_fit_takes_the_documented_values(estimator, hidden, skip, units, n_inputs):
    X, y = data(90, n_inputs)
    kind = {"hidden_layer_sizes": hidden, "skip_connection": skip, **QUICK}
    values = explicit(n_inputs, len(X), units)
    found = outputs(estimator(**kind).fit(X, y), X)
    np.testing.assert_array_equal(
        found, outputs(estimator(**kind, **values).fit(X, y), X)
    )
    for name, value in values.items():  # and both of them count
        other = estimator(**kind, **values | {name: 1.5 * value}).fit(X, y)
        assert not np.array_equal(found, outputs(other, X))


def test_the_transformer_takes_the_documented_values():
    X, y = data(90, 5)
    values = explicit(5, len(X), units=8)
    np.testing.assert_array_equal(
        FPETransformer((4,), **QUICK).fit(X, y).transform(X),
        FPETransformer((4,), **values, **QUICK).fit(X, y).transform(X),
    )


@pytest.mark.parametrize("hidden", [(4,), (20,), (9, 30)])
def test_the_warm_up_takes_the_decay_of_the_parents(hidden):
    X, y = data(90, 40)
    model = {"hidden_layer_sizes": hidden, **QUICK, "warmup": 1.0}
    found = FPEClassifier(**model).fit(X, y).loss_curve_
    values = explicit(40, len(X), units=min(hidden))
    assert found == FPEClassifier(**model, **values).fit(X, y).loss_curve_
    other = values | {"weight_decay": 1.5 * values["weight_decay"]}
    assert found != FPEClassifier(**model, **other).fit(X, y).loss_curve_


def test_a_constant_rate_is_a_fifth():
    X, y = data(90, 40)
    model = {"hidden_layer_sizes": (4,), "learning_rate": "constant", **QUICK}
    found = FPEClassifier(**model).fit(X, y)
    same = FPEClassifier(**model, **explicit(40, len(X), 8, constant=True)).fit(X, y)
    np.testing.assert_array_equal(outputs(found, X), outputs(same, X))


def test_only_rows_that_are_trained_on_count():
    X, y = data(120, 30)
    weights = np.r_[np.ones(90), np.zeros(30)]
    kind = {"hidden_layer_sizes": (4,), "skip_connection": True, **QUICK}
    held = {"early_stopping": True, "validation_fraction": 1 / 3}
    for own, arguments, n_rows in [({}, (weights,), 90), (held, (), 80)]:
        found = FPEClassifier(**kind, **own).fit(X, y, *arguments)
        values = explicit(30, n_rows)
        same = FPEClassifier(**kind, **own, **values).fit(X, y, *arguments)
        np.testing.assert_array_equal(outputs(found, X), outputs(same, X))


def test_partial_fit_does_not_depend_on_the_size_of_a_piece():
    X, y = data(90, 30)
    kind = {"hidden_layer_sizes": (4,), "skip_connection": True, **QUICK}
    found, same = (
        FPEClassifier(**kind, **values)
        for values in ({}, explicit(30, 10_000, constant=True))
    )
    for part in (slice(0, 40), slice(40, 90)):
        for model in (found, same):
            model.partial_fit(X[part], y[part], classes=[0, 1])
    np.testing.assert_array_equal(outputs(found, X), outputs(same, X))


@given(
    st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 10**9), st.booleans()
)
@settings(max_examples=200)
def test_ranges_and_order(n_inputs, n_rows, more, skip):
    shape = Shape(n_inputs, (4,), 3, (2,), skip=skip)
    assert 0.01 <= default_rate(shape) <= 0.1
    assert default_rate(shape, is_constant=True) < default_rate(shape)
    decay = default_decay(shape, n_rows)
    assert 0 < decay <= 3
    assert default_decay(shape, n_rows + more) <= decay
    wider = Shape(n_inputs + 1, (4,), 3, (2,), skip=skip)
    assert default_decay(wider, n_rows) >= decay
    assert default_rate(wider) <= default_rate(shape)
    for units in (2, 15, 40):
        split = Shape(n_inputs, (units // 2, 50), 3, (2, 1), skip=skip)
        assert default_decay(split, n_rows) <= default_decay(
            Shape(n_inputs, (), 3, ()), n_rows
        )


@pytest.mark.parametrize("name", ["learning_rate_init", "weight_decay"])
@pytest.mark.parametrize("value", ["scale", -1.0, None])
def test_other_values_are_refused(name, value):
    X, y = data(20, 3)
    with pytest.raises(ValueError, match=f"'{name}' parameter of FPEClassifier"):
        FPEClassifier(**{name: value}).fit(X, y)
