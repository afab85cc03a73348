"""Malformed input gives documented errors or a model whose answers are finite."""

import datetime
import decimal
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import sparse

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

DOCUMENTED = (ValueError, TypeError, FloatingPointError)
QUICK = {"hidden_layer_sizes": (3,), "expansion": 2, "max_iter": 2, "random_state": 0}
ESTIMATORS = {
    FPEClassifier: {},
    FPERegressor: {},
    FPETransformer: {},
}
N = 12

RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5))
LABELS = np.arange(N) % 3
REALS = RNG.normal(size=N)

NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e-38, 1e30, 3e38, 1e39, 1e308, 2.0**63]),
    st.integers(-(2**70), 2**70),
    st.booleans(),
)
ODDITIES = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.sampled_from([pd.NA, pd.NaT, decimal.Decimal("1.5"), datetime.date(2020, 1, 1)]),
    st.builds(dict),
    st.builds(set),
    st.builds(object),
)
DTYPES = st.sampled_from(
    ["f2", "f4", ">f8", "g", "i1", "i8", "u8", "?", "c16", "U2", "S2", "M8[D]", "m8[s]"]
)


def odd_arrays():
    shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=N)
    rows = st.sampled_from([(N,), (N, 1), (N, 5), (5, N)])
    dense = arrays(DTYPES, st.one_of(shapes, rows))
    return st.one_of(
        dense,
        arrays(object, rows, elements=ODDITIES, fill=NUMBERS),
        st.lists(st.one_of(ODDITIES, st.lists(ODDITIES, max_size=5)), max_size=N),
        ODDITIES,
        arrays(float, rows, elements=NUMBERS.filter(lambda v: abs(v) < 1e300)).map(
            torch.from_numpy
        ),
        arrays("f8", (N, 5)).map(sparse.csr_array),
        arrays("f8", (N, 5)).map(pd.DataFrame),
        # Not of dates: pandas itself refuses those that are far away.
        arrays(DTYPES.filter(lambda name: name[0] != "M"), (N,)).map(pd.Series),
    )


@st.composite
def spoiled(draw, array):
    """Return the array with a few odd numbers in it, or something else altogether."""
    if draw(st.booleans()):
        return draw(odd_arrays())
    array = np.array(array, dtype=float)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, array.size - 1))
        array.flat[place] = draw(st.floats() | st.floats(1e20, 1e40))
    with np.errstate(over="ignore"):
        return array * draw(st.sampled_from([1.0, 1e-40, 1e-10, 1e20, 1e37]))


@st.composite
def calls(draw, names):
    """Draw the arguments of a fit, one or two of them spoiled."""
    arguments = {"X": X, "y": None, "sample_weight": None}
    wrong = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    sources = {"X": X, "y": LABELS, "sample_weight": np.ones(N)}
    for name in wrong:
        arguments[name] = draw(spoiled(sources[name]))
    return arguments, "y" in wrong


def outputs(model):
    if isinstance(model, FPEClassifier):
        return [model.predict_proba(X), model.decision_function(X)]
    return [
        model.transform(X) if isinstance(model, FPETransformer) else model.predict(X)
    ]


def check(model, method="fit", **arguments):
    """Fit, and check the error or the model."""
    with warnings.catch_warnings():
        # About column vectors, many classes or an expansion that cannot be had.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # scikit-learn looks whether float labels are integers, and adds up infinities.
        warnings.filterwarnings("ignore", "invalid value encountered in (cast|reduce)")
        try:
            getattr(model, method)(**arguments)
        except DOCUMENTED:
            assert not hasattr(model, "module_")
            return
    assert model.n_nonzero_ <= model.budget_
    if model.n_features_in_ == X.shape[1] and not hasattr(model, "feature_names_in_"):
        for output in outputs(model):
            assert np.isfinite(output).all()


@settings(
    max_examples=180,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@pytest.mark.parametrize("kind", ESTIMATORS)
@given(data=st.data())
def test_arrays(kind, data):
    arguments, y_is_spoiled = data.draw(calls(["X", "y", "sample_weight"]))
    if not y_is_spoiled:
        arguments["y"] = REALS if kind is FPERegressor else LABELS
    method = data.draw(st.sampled_from(["fit", "partial_fit"]))
    early_stopping = method == "fit" and data.draw(st.booleans())
    check(kind(**QUICK, early_stopping=early_stopping), method, **arguments)


PARAMETERS = sorted(set(FPEClassifier().get_params()) - {"memory", "max_iter"})
VALUES = st.one_of(
    ODDITIES,
    st.integers(-3, 9),
    st.floats(0, 1e3),
    st.lists(ODDITIES, max_size=4),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(["random", "structured", "balanced", "float32", "cpu", "cosine"]),
    st.dictionaries(st.integers(0, 3), NUMBERS, max_size=3),
    st.sampled_from([np.ndarray, np.int64(2), np.array([2, 3]), print, lambda *a: 0]),
)


@settings(max_examples=180, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(PARAMETERS), VALUES, min_size=1, max_size=3),
    st.sampled_from(["fit", "partial_fit"]),
)
def test_parameters(parameters, method):
    model = FPEClassifier(**{**QUICK, **parameters})
    check(model, method, X=X, y=LABELS)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_rows_to_predict(data):
    model = FPEClassifier(**QUICK).fit(X, LABELS)
    rows = data.draw(spoiled(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("ignore", "invalid value encountered in reduce")
        try:
            proba = model.predict_proba(rows)
        except DOCUMENTED:
            return
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-5)
