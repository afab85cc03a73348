"""Values and forms at the edge of what estimators take."""

import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._estimators import _inputs

QUICK = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 3, "random_state": 0}
ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]
X, Y = make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


def outputs(model, rows):
    if isinstance(model, FPETransformer):
        return model.transform(rows)
    if isinstance(model, FPERegressor):
        return model.predict(rows)
    return model.predict_proba(rows)


# --------------------------------------------------------------------------------------
# Large values
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune", ["magnitude", "structured"])
@pytest.mark.parametrize("value", [3e38, -3e38, 3.4e38])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_rows_near_the_limit_of_float32_have_probabilities(prune, value, form):
    model = FPEClassifier(**QUICK, prune=prune).fit(X, Y)
    rows = np.full((4, 8), value, dtype=np.float32)
    rows[1::2] *= np.resize([1, -1], 8)
    proba = model.predict_proba(form(rows))
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(
        model.predict(form(rows)), model.classes_[proba.argmax(axis=1)]
    )
    assert np.isfinite(FPERegressor(**QUICK).fit(X, Y).predict(form(rows))).all()


def test_rows_that_float64_cannot_predict_are_an_error():
    model = FPERegressor(**QUICK).fit(X, Y * 1e300)
    rows = np.full((2, 8), 1e300)
    with pytest.raises(ValueError, match="too large for float64"):
        model.predict(rows)


# --------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["boolean", "Int64", "UInt8", "Float64", "string"])
def test_nullable_labels_keep_their_kind(dtype):
    pd = pytest.importorskip("pandas")
    y = pd.Series(Y % 2 if dtype == "boolean" else Y).astype(dtype)
    kinds = {"boolean": "b", "Int64": "i", "UInt8": "u", "Float64": "f", "string": "OU"}
    model = FPEClassifier(**QUICK).fit(X, y, X_val=None)
    assert model.classes_.dtype.kind in kinds[dtype]
    assert model.predict(X).dtype == model.classes_.dtype
    assert 0 < model.score(X, y) <= 1


@pytest.mark.parametrize("form", ["Int64", "list", "uint64"])
def test_integers_above_the_precision_of_float64_stay_apart(form):
    pd = pytest.importorskip("pandas")
    ids = np.array([2**53, 2**53 + 1, 2**60 + 1])
    y = {
        "Int64": lambda: pd.Series(ids[Y], dtype="Int64"),
        "list": lambda: ids[Y].tolist(),
        "uint64": lambda: ids[Y].astype(np.uint64),
    }[form]()
    model = FPEClassifier(**QUICK, early_stopping=True)
    model.fit(X, y, X_val=X, y_val=y)
    assert model.classes_.tolist() == ids.tolist()
    plain = FPEClassifier(**QUICK, early_stopping=True)
    plain.fit(X, Y, X_val=X, y_val=Y)
    np.testing.assert_array_equal(ids[plain.predict(X)], model.predict(X))
    partial = FPEClassifier(**QUICK).partial_fit(X, y)
    np.testing.assert_array_equal(partial.partial_fit(X, y).classes_, model.classes_)


# --------------------------------------------------------------------------------------
# Devices
# --------------------------------------------------------------------------------------


class Away(torch.Tensor):
    """A tensor that becomes an array only after it was copied to the host."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert device type tensor to numpy")

    __array__ = numpy


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
def test_targets_and_weights_may_be_on_any_device(kind):
    y, weights = torch.from_numpy(Y).as_subclass(Away), torch.ones(60).as_subclass(Away)
    plain = kind(**QUICK, early_stopping=True).fit(X, Y, X_val=X, y_val=Y)
    model = kind(**QUICK, early_stopping=True).fit(
        X, y, weights, X_val=X, y_val=y, sample_weight_val=weights
    )
    assert model.loss_curve_ == plain.loss_curve_
    assert model.validation_scores_ == plain.validation_scores_
    assert model.score(X, y, weights) == plain.score(X, Y)
    kind(**QUICK).partial_fit(X, y, sample_weight=weights)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_model_of_a_device_that_is_not_there_goes_on_by_the_cpu(kind):
    model = kind(**QUICK).fit(X, Y)
    expected = outputs(model, X)
    data = pickle.dumps(model.set_params(device="cuda:99"))
    with pytest.warns(UserWarning, match="'cuda:99'.* set to device='cpu'"):
        loaded = pickle.loads(data)
    np.testing.assert_array_equal(outputs(loaded, X), expected)
    assert loaded.get_params()["device"] == "cpu"
    loaded.partial_fit(X, Y)
    clone(loaded).fit(X, Y)
    loaded.set_params(warm_start=True).fit(X, Y)
    pickle.loads(pickle.dumps(loaded))  # without a second warning


@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict"])
def test_exhausted_memory_of_a_check_is_a_memory_error(monkeypatch, method):
    model = FPEClassifier(**QUICK).fit(X, Y)

    def fail(X):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(_inputs, "_what_is_not_finite", fail)
    arguments = (torch.from_numpy(X), Y)[: 1 if method == "predict" else 2]
    with pytest.raises(MemoryError, match=r"ran out of memory\. Pass X in pieces"):
        getattr(model, method)(*arguments)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("prune", ["magnitude", "structured", "gradual"])
def test_another_default_device_changes_nothing(kind, prune):
    settings = {**QUICK, "early_stopping": True, "prune": prune}
    expected = outputs(kind(**settings).fit(X, Y), X)
    with torch.device("meta"):
        model = kind(**settings).fit(X, Y)
        found = outputs(pickle.loads(pickle.dumps(model)), X)
        model.set_params(early_stopping=False).partial_fit(X, Y)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_default_device_that_was_set_back_changes_nothing(kind):
    """torch 2.9 cannot tell the default device afterwards."""
    expected = outputs(kind(**QUICK).fit(X, Y), X)

    def compute():
        torch.set_default_device("meta")
        torch.set_default_device(None)
        return outputs(kind(**QUICK).fit(X, Y), X)

    # In a thread of its own, because the default device belongs to the thread.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(compute).result()
    np.testing.assert_array_equal(found, expected)


# --------------------------------------------------------------------------------------
# Attributes and warnings
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_coefficients_have_one_dtype(kind, offset):
    model = kind(**QUICK).fit(X + offset, Y)
    dtypes = {array.dtype for array in [*model.coefs_, *model.intercepts_]}
    assert len(dtypes) == 1


def test_masked_arrays_are_refused_by_name():
    masked = np.ma.masked_array(X, mask=X > 1)
    model = FPEClassifier(**QUICK)
    with pytest.raises(ValueError, match="X must have no masked entries"):
        model.fit(masked, Y)
    with pytest.raises(ValueError, match="y must have no masked entries"):
        model.fit(X, np.ma.masked_array(Y, mask=Y == 1))
    model.fit(np.ma.masked_array(X), Y)  # nothing is masked
    with pytest.raises(ValueError, match="X must have no masked entries"):
        model.predict(masked)


def test_rows_of_different_lengths_from_a_split_name_it():
    split = lambda weight, n_children, rng: [[0], [0, 1]]  # noqa: E731
    with pytest.raises(ValueError, match=r"split must return .* different lengths"):
        FPEClassifier(**QUICK, split=split).fit(X, Y)


def test_warning_of_a_worker_points_at_the_library():
    code = """
    from sklearn.datasets import load_iris
    from sklearn.model_selection import cross_val_score
    from sklearn_fpe import FPEClassifier

    model = FPEClassifier((8,), expansion=9, max_iter=1, random_state=0)
    cross_val_score(model, *load_iris(return_X_y=True), cv=2, n_jobs=2)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in result.stderr.splitlines() if "UserWarning" in line]
    assert lines
    assert all("sklearn_fpe" in line.partition(": UserWarning")[0] for line in lines)


def test_warm_start_takes_some_of_the_classes():
    rows = Y < 2
    model = FPEClassifier(**QUICK, warm_start=True).fit(X, Y)
    model.fit(X[rows], Y[rows])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(X).shape == (60, 3)


def test_score_without_targets_says_so():
    model = FPEClassifier(**QUICK).fit(X, Y)
    with pytest.raises(ValueError, match="y must be given, got None"):
        model.score(X, None)


def test_complex_objects_are_no_weights():
    weights = np.full(len(X), np.complex128(1 + 1j), dtype=object)
    with pytest.raises(ValueError, match="sample_weight must hold real numbers"):
        FPERegressor(**QUICK).fit(X, Y, sample_weight=weights)


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_scores_of_targets_whose_squares_overflow(unit):
    y = X[:, 0] + 0.5 * X[:, 1]
    settings = {**QUICK, "early_stopping": True}
    expected = FPERegressor(**settings).fit(X, y)
    model = FPERegressor(**settings).fit(X, y * unit)
    np.testing.assert_allclose(model.validation_scores_, expected.validation_scores_)
    assert model.score(X, y * unit) == pytest.approx(expected.score(X, y), abs=1e-4)
