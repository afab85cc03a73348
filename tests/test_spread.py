"""Columns and targets of any spread that float64 holds."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_regression

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _views

LEARN = {
    "hidden_layer_sizes": (8,),
    "expansion": 2,
    "max_iter": 40,
    "random_state": 0,
}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((240, 12))
Y = 2 * X[:, 0] + X[:, 1]
LABELS = (Y > 0).astype(int)

FORMS = {
    "array": np.asarray,
    "Fortran": np.asfortranarray,
    "tensor": torch.from_numpy,
    "sparse": sparse.csr_array,
    "list": np.ndarray.tolist,
}
SCALES = [1e-31, 1e-300, 1e-310, 1e39, 1e300, 1e307]


def explained(model, rows, y, unit):
    """Return R² in a unit in which squares do not overflow."""
    residuals = (model.predict(rows) - y) / unit
    return 1 - np.square(residuals).mean() / (y / unit).var()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_any_spread(scale, form):
    rows = FORMS[form](X * scale)
    plain = FPEClassifier(**LEARN).fit(X, LABELS)
    model = FPEClassifier(**LEARN).fit(rows, LABELS)
    assert model.score(rows, LABELS) >= plain.score(X, LABELS) - 0.01
    assert model.score(rows, LABELS) > 0.97
    hidden = model.hidden_activations(rows)
    np.testing.assert_allclose(hidden, plain.hidden_activations(X), atol=2e-2)


@pytest.mark.parametrize("scale", SCALES)
def test_targets_of_any_spread(scale):
    model = FPERegressor(**LEARN).fit(X, Y * scale)
    assert explained(model, X, Y * scale, scale) > 0.97
    # In single precision, too, where the units may be out of its range.
    single = X.astype(np.float32)
    assert explained(model, single, Y * scale, scale) > 0.97


@pytest.mark.parametrize("offset", [1e3, -1e9, 1e12])
def test_spread_that_is_small_beside_the_mean(offset):
    model = FPERegressor(**LEARN).fit(X, Y + offset)
    assert explained(model, X, Y + offset, 1.0) > 0.97
    assert explained(model, X.astype(np.float32), Y + offset, 1.0) > 0.97
    several = np.column_stack([Y, Y + offset])
    model = FPERegressor(**LEARN).fit(X, several)
    assert model.score(X, several) > 0.97
    model = FPEClassifier(**LEARN).fit(X + offset, LABELS)
    assert model.score(X + offset, LABELS) > 0.97


def test_columns_of_very_different_spread():
    units = 10.0 ** np.linspace(-300, 300, 12)
    model = FPERegressor(**LEARN).fit(X * units, Y)
    assert model.score(X * units, Y) > 0.97
    model = FPERegressor(**LEARN)
    for _ in range(60):
        model.partial_fit(X * units, Y * 1e200)
    assert explained(model, X * units, Y * 1e200, 1e200) > 0.9


def test_without_standardisation_values_are_taken_as_they_are():
    settings = {**LEARN, "standardize": False}
    expected = FPERegressor(**settings).fit(X, Y).predict(X)
    model = FPERegressor(**settings).fit(X, Y * 1e-200)
    np.testing.assert_allclose(model.predict(X) * 1e200, expected, rtol=1e-4, atol=1e-4)


def test_streamed_columns_of_small_spread(tmp_path, monkeypatch):
    path = tmp_path / "X.npy"
    np.save(path, X * 1e-31)
    expected = FPERegressor(**LEARN).fit(X, Y)
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    model = FPERegressor(**LEARN).fit(np.load(path, mmap_mode="r"), Y)
    assert model.score(X * 1e-31, Y) > expected.score(X, Y) - 0.02


def test_early_stopping_on_targets_of_small_spread():
    model = FPERegressor(**LEARN, early_stopping=True).fit(X, Y * 1e-31)
    assert model.best_validation_score_ > 0.9


# --------------------------------------------------------------------------------------
# What cannot be learned
# --------------------------------------------------------------------------------------


def rounding(mean=1e6):
    """Return a column whose values differ in their last digits only."""
    return mean + mean * np.finfo(float).eps * (np.arange(len(X)) % 3)


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_column_that_differs_by_rounding_is_named(kind):
    pd = pytest.importorskip("pandas")
    rows = X.copy()
    rows[:, 3] = rounding()
    message = "values of X in column {} differ in the last digits"
    with pytest.warns(UserWarning, match=message.format(3)) as record:
        kind(**LEARN).fit(rows, LABELS)
    assert [warning.filename for warning in record] == [__file__]
    frame = pd.DataFrame(rows, columns=list("abcdefghijkl"))
    with pytest.warns(UserWarning, match=message.format("d")):
        kind(**LEARN).fit(frame, LABELS)


def test_target_that_differs_by_rounding_is_named():
    with pytest.warns(UserWarning, match="values of y in column 0 differ in the last"):
        model = FPERegressor(**LEARN, learning_rate_init=0.05).fit(X, rounding())
    np.testing.assert_allclose(model.predict(X), 1e6, rtol=1e-10)
    with pytest.warns(UserWarning, match="values of y in column 1 differ in the last"):
        model = FPERegressor(**LEARN).fit(X, np.column_stack([Y, rounding()]))
    assert model.predict(X)[:, 0].std() > 1


def test_partial_fit_names_a_column_once_when_statistics_are_frozen():
    rows = X.copy()
    rows[:, 3] = rounding()
    model = FPEClassifier(**LEARN, warmup=2)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(5):
            model.partial_fit(rows, LABELS)
    assert [str(w.message)[:35] for w in record] == [
        "The values of X in column 3 differ "
    ]
    assert record[0].filename == __file__


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e12, 1e-31, 1e300])
def test_constant_target_is_predicted_exactly(constant):
    y = np.full(len(X), constant)
    model = FPERegressor(**{**LEARN, "max_iter": 4}).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), y)
    # X is beyond what float32 holds exactly, and the constant is not.
    single = model.predict(X.astype(np.float32))
    np.testing.assert_allclose(single, y, rtol=1e-7)
    both = np.column_stack([Y, y])
    model = FPERegressor(**{**LEARN, "max_iter": 4}).fit(X, both)
    np.testing.assert_array_equal(model.predict(X)[:, 1], y)


@pytest.mark.parametrize("form", ["array", "tensor", "sparse"])
def test_spread_that_float64_cannot_hold_is_an_error_that_names_it(form):
    rows = X.copy()
    rows[:2, 3] = 1.7e308, -1.7e308
    with pytest.raises(ValueError, match=r"column of X must fit float64.* column 3"):
        FPEClassifier(**LEARN).fit(FORMS[form](rows), LABELS)
    with pytest.raises(ValueError, match=r"column of y must fit float64.* column 0"):
        FPERegressor(**LEARN).fit(FORMS[form](X), rows[:, 3])
    with pytest.raises(ValueError, match=r"column of y must fit float64.* column 1"):
        FPERegressor(**LEARN).fit(X, np.column_stack([Y, rows[:, 3]]))


def test_predictions_keep_their_precision_in_ordinary_units():
    X, y = make_regression(60, 8, random_state=0)
    model = FPERegressor(**{**LEARN, "max_iter": 3}).fit(X, y)
    assert model.predict(X.astype(np.float32)).dtype == np.float32
    assert model.predict(X).dtype == np.float64
