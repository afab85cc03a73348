"""Training with matrix products in bfloat16."""

import threading

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss, mean_squared_error

from sklearn_fpe import FPEClassifier, FPERegressor

CONFIGURATIONS = {
    "dense": {"expansion": 1},
    "default": {},
    "structured": {"prune": "structured"},
    "independent": {"split": "random"},
    "deep": {"hidden_layer_sizes": (16, 12), "expansion": 2},
    "gelu": {"activation": "gelu"},
}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900], y[:900]


def make(kind=FPEClassifier, **settings):
    common = {"hidden_layer_sizes": (16,), "max_iter": 20, "random_state": 0}
    return kind(**common | settings)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_bfloat16_learns(name, digits):
    X, y = digits
    settings = CONFIGURATIONS[name]
    plain = make(**settings).fit(X, y)
    model = make(**settings, precision="bfloat16").fit(X, y)
    assert model.loss_curve_ != plain.loss_curve_
    assert model.score(X, y) >= plain.score(X, y) - 0.01
    assert model.module_.layers[0].weight.dtype.itemsize == 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_is_that_of_the_network_that_is_returned(precision, digits):
    # The last rates are next to nothing, so the last epoch changes no weight.
    X, y = digits
    model = make(precision=precision, max_iter=30).fit(X, y)
    loss = log_loss(y, model.predict_proba(X))
    assert model.loss_curve_[-1] == pytest.approx(loss, rel=0.05, abs=2e-3)


def test_loss_of_a_regressor_in_bfloat16(digits):
    X, y = digits
    y = X @ np.linspace(-1, 1, 64) / 50
    model = make(FPERegressor, precision="bfloat16", max_iter=30).fit(X, y)
    loss = mean_squared_error(y, model.predict(X)) / y.var() / 2
    assert model.loss_curve_[-1] == pytest.approx(loss, rel=0.2, abs=1e-3)
    assert model.score(X, y) > 0.95


def test_validation_loss_in_bfloat16_is_that_of_the_network(digits):
    X, y = digits
    held = {"X_val": X[700:], "y_val": y[700:]}
    model = make(precision="bfloat16", early_stopping=True, scoring="loss")
    model.fit(X[:700], y[:700], **held)
    loss = log_loss(y[700:], model.predict_proba(X[700:]))
    assert -model.best_validation_score_ == pytest.approx(loss, rel=1e-4)


def test_partial_fit_in_bfloat16_learns(digits):
    X, y = digits
    scores = []
    for precision in ("float32", "bfloat16"):
        model = make(precision=precision, warmup=3)
        for _ in range(12):
            model.partial_fit(X, y)
        scores.append(model.score(X, y))
    assert scores[1] >= scores[0] - 0.02


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fits_in_threads_give_the_bits_of_one_alone(precision, digits):
    X, y = digits
    expected = make(precision=precision, max_iter=6).fit(X, y).predict_proba(X)
    found = [None] * 4

    def work(number):
        model = make(precision=precision, max_iter=6).fit(X, y)
        found[number] = model.predict_proba(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result, expected)
