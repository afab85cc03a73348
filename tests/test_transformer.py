"""FPETransformer: hidden activations as features."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

QUICK = {"expansion": 2, "max_iter": 4, "random_state": 0}


def problem():
    return make_classification(
        120, 12, n_informative=6, n_classes=3, class_sep=2.0, random_state=0
    )


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh), ("logistic", expit)],
)
def test_output_is_the_last_hidden_layer(activation, function):
    X, y = problem()
    model = FPETransformer((6, 5), activation=activation, **QUICK)
    hidden = X
    model.fit(X, y)
    for coef, intercept in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        hidden = function(hidden @ coef.toarray() + intercept)
    transformed = model.transform(X)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed, hidden, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_is_the_hidden_layer_of_the_predictor(task):
    X, y = problem()
    predictor = FPEClassifier if task == "classification" else FPERegressor
    predictor = predictor((6,), **QUICK).fit(X, y)
    hidden = FPETransformer((6,), task=task, **QUICK).fit(X, y)
    assert hidden.loss_curve_ == predictor.loss_curve_
    outputs = (
        hidden.transform(X) @ predictor.coefs_[-1].toarray() + predictor.intercepts_[-1]
    )
    if task == "classification":
        expected = predictor.decision_function(X)
    else:
        expected = predictor.predict(X)[:, None]
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_one_column_per_kept_child_with_a_name():
    X, y = problem()
    model = FPETransformer((6,), **QUICK).fit(X, y)
    names = model.get_feature_names_out()
    n_children = model.coefs_[0].shape[1]
    assert 6 < n_children <= 12
    assert model.transform(X).shape == (len(X), n_children)
    np.testing.assert_array_equal(
        names, [f"fpetransformer{i}" for i in range(n_children)]
    )


def test_fit_transform_is_fit_then_transform():
    X, y = problem()
    model = FPETransformer((6,), **QUICK)
    first = model.fit_transform(X, y)
    np.testing.assert_array_equal(first, model.fit(X, y).transform(X))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(library):
    module = pytest.importorskip(library)
    X, y = problem()
    frame = module.DataFrame({f"column {i}": X[:, i] for i in range(12)})
    model = FPETransformer((6,), **QUICK).set_output(transform=library).fit(frame, y)
    output = model.transform(frame)
    assert isinstance(output, module.DataFrame)
    assert list(output.columns) == list(model.get_feature_names_out())
    np.testing.assert_array_equal(
        output.to_numpy(), FPETransformer((6,), **QUICK).fit(X, y).transform(X)
    )


def test_hidden_units_serve_a_linear_model():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    model = make_pipeline(
        StandardScaler(),
        FPETransformer((8,), expansion=4, max_iter=12, random_state=0),
        LogisticRegression(C=0.1),
    )
    assert model.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.7


def test_regression_serves_a_linear_model():
    X, y = make_regression(150, 8, n_targets=2, random_state=0)
    hidden = FPETransformer((16,), task="regression", **QUICK)
    model = make_pipeline(hidden, Ridge()).fit(X, y)
    assert model.score(X, y) > 0.7


def test_strings_and_class_weight():
    X, y = problem()
    labels = np.array(["a", "b", "c"])[y]
    model = FPETransformer((6,), class_weight={"a": 5.0}, **QUICK).fit(X, labels)
    other = FPETransformer((6,), **QUICK).fit(X, labels)
    assert not np.array_equal(model.transform(X), other.transform(X))
    with pytest.raises(ValueError, match='class_weight must be None for task="regress'):
        model.set_params(task="regression").fit(X, y)
