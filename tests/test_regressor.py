"""FPERegressor: what it learns and in which units it answers."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_friedman1, make_regression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from sklearn_fpe import FPERegressor

LEARN = {
    "hidden_layer_sizes": (8,),
    "expansion": 2,
    "max_iter": 15,
    "learning_rate_init": 0.03,
    "random_state": 0,
}


def problem(n_targets=1, n_samples=150, seed=0):
    X, y = make_regression(
        n_samples, 8, n_informative=8, n_targets=n_targets, random_state=seed
    )
    return X, y


@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_nonlinear_function_is_learned(prune):
    X, y = make_friedman1(400, random_state=0)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    model = FPERegressor(prune=prune, **{**LEARN, "hidden_layer_sizes": (16,)})
    assert model.fit(X_train, y_train).score(X_test, y_test) > 0.75
    assert model.n_nonzero_ <= model.budget_
    assert model.out_activation_ == "identity"


def test_real_data_is_learned():
    X, y = load_diabetes(return_X_y=True)
    model = FPERegressor((8,), expansion=2, max_iter=5, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.4


def test_several_outputs():
    X, Y = problem(n_targets=3)
    model = FPERegressor(**LEARN).fit(X, Y)
    assert model.n_outputs_ == 3
    assert model.predict(X).shape == Y.shape
    assert (r2_score(Y, model.predict(X), multioutput="raw_values") > 0.8).all()
    # Each output is in its own units: the small one is learned as well.
    Y = Y * [1e-6, 1.0, 1e6]
    model.fit(X, Y)
    assert (r2_score(Y, model.predict(X), multioutput="raw_values") > 0.8).all()


@pytest.mark.parametrize(("shift", "factor"), [(0, 1e-8), (1e6, 1.0), (-3e9, 1e7)])
def test_units_of_the_target_are_no_matter(shift, factor):
    X, y = problem()
    plain = FPERegressor(**LEARN).fit(X, y)
    other = FPERegressor(**LEARN).fit(X, shift + factor * y)
    np.testing.assert_allclose(
        (other.predict(X) - shift) / factor, plain.predict(X), atol=0.05 * y.std()
    )


@pytest.mark.parametrize("value", [0.0, 3.3, -1e7])
def test_constant_target_is_predicted(value):
    X, _ = problem()
    model = FPERegressor((8,), expansion=2, max_iter=3, random_state=0)
    model.fit(X, np.full(len(X), value))
    assert np.isfinite(model.predict(X)).all()
    np.testing.assert_allclose(model.predict(X), value, rtol=1e-12)
    assert np.isfinite(model.loss_curve_).all()


def test_constant_output_beside_a_varying_one():
    X, y = problem()
    model = FPERegressor(**LEARN).fit(X, np.column_stack([y, np.ones_like(y)]))
    assert r2_score(y, model.predict(X)[:, 0]) > 0.8
    np.testing.assert_allclose(model.predict(X)[:, 1], 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float32),
        (np.int64, np.float64),
        (np.int8, np.float32),
    ],
)
@pytest.mark.parametrize("n_targets", [1, 2])
def test_precision_of_predictions_is_that_of_the_input(dtype, expected, n_targets):
    X, y = problem(n_targets=n_targets)
    X = (10 * X).astype(dtype)
    model = FPERegressor((8,), expansion=2, max_iter=2, random_state=0).fit(X, y)
    assert model.predict(X).dtype == expected
    assert model.predict(X).shape == y.shape


def test_column_vector_becomes_one_dimensional_with_a_warning():
    X, y = problem()
    model = FPERegressor((8,), expansion=2, max_iter=2, random_state=0)
    expected = model.fit(X, y).predict(X)
    with pytest.warns(match="A column-vector y was passed"):
        model.fit(X, y[:, None])
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_coefficients_answer_in_units_of_the_target(n_targets):
    X, y = problem(n_targets=n_targets)
    X, y = 5 + 0.1 * X, 100 + 10 * y
    model = FPERegressor((6, 5), expansion=2, max_iter=3, random_state=0).fit(X, y)
    hidden = X
    for coef, intercept in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        hidden = np.maximum(hidden @ coef.toarray() + intercept, 0)
    outputs = hidden @ model.coefs_[-1].toarray() + model.intercepts_[-1]
    np.testing.assert_allclose(
        outputs, model.predict(X).reshape(len(X), -1), rtol=1e-6, atol=1e-6
    )
    assert sum(c.nnz for c in model.coefs_) + sum(map(len, model.intercepts_)) == (
        model.n_nonzero_
    )


def test_integer_targets():
    X, y = problem()
    y = np.round(y).astype(np.int32)
    model = FPERegressor(**LEARN).fit(X, y)
    assert model.score(X, y) > 0.8


def test_a_single_row_can_be_fitted():
    model = FPERegressor((4,), expansion=1, max_iter=2, random_state=0)
    model.fit([[1.0, 2.0, 3.0]], [7.0])
    np.testing.assert_allclose(model.predict([[1.0, 2.0, 3.0]]), [7.0], rtol=1e-12)


def test_score_of_float32_targets_warns_of_nothing():
    X = np.linspace(0, 1, 60, dtype=np.float32).reshape(30, 2)
    model = FPERegressor((4,), max_iter=3, random_state=0).fit(X, X[:, 0])
    expected = model.score(X, X[:, 0].astype(float))
    assert model.score(X, X[:, 0]) == pytest.approx(expected, rel=1e-4)
