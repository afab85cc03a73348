"""Calls of estimators to fuzz with: malformed arrays, odd labels and parameters."""

import contextlib
import copy
import datetime
import decimal
import io
import math
import os
import warnings
from functools import cache

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError

from benchmarks._fuzz_files import pick
from sklearn_fpe import (
    FPEClassifier,
    FPERegressor,
    FPETransformer,
    load,
    save,
    to_onnx,
)

DOCUMENTED = (ValueError, TypeError, FloatingPointError)
KINDS = (FPEClassifier, FPERegressor, FPETransformer)
QUICK = {"hidden_layer_sizes": (3,), "expansion": 2, "max_iter": 2, "random_state": 0}
N, N_FEATURES = 12, 5

RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, N_FEATURES))
LABELS = np.arange(N) % 3
REALS = RNG.normal(size=N)

SPECIAL = [0.0, -0.0, 1e-320, 1e-38, 1e30, 3e38, 1e39, 1e308, 2.0**63, -1.0, 0.5]
FINITE = [0.0, -0.0, 1.0, 2.0, 1e-320, 1e-38, 1e-10, 1e5, 1e20, 1e30, 3e38, -3e38]
NOT_FINITE = [math.nan, math.inf, -math.inf]
OBJECTS = [
    *(None, "", "a", "nan", "\0", b"", b"ab", 1j, {}, set(), [], (), object),
    *(pd.NA, pd.NaT, decimal.Decimal("1.5"), datetime.date(2020, 1, 1), True, False),
    *(2**63, -(2**70), np.int64(2), np.float32(0.5), np.bool_(True), np.array([2, 3])),
]
WORDS = [
    "random",
    "structured",
    "balanced",
    "float32",
    "cpu",
    "cosine",
    "shared",
    "auto",
]
DTYPES = ["f2", "f4", ">f8", "g", "i1", "i8", "u8", "?", "c16", "U2", "S2", "O"]
DATES = ["M8[D]", "m8[s]"]
METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function")
PARAMETERS = sorted(set(FPEClassifier().get_params()) - {"memory", "max_iter"})


# --------------------------------------------------------------------------------------
# Odd values
# --------------------------------------------------------------------------------------


def number(rng):
    """Draw a number, seldom an ordinary one."""
    kind = rng.integers(4)
    if kind == 0:
        return pick(rng, SPECIAL + NOT_FINITE)
    if kind == 1:
        return int(rng.integers(-(2**62), 2**62)) * int(2 ** rng.integers(9))
    if kind == 2:
        return float(rng.standard_normal() * 10.0 ** rng.integers(-40, 40))
    return int(rng.integers(-3, 9))


def oddity(rng):
    """Draw something that is no array."""
    return copy.copy(pick(rng, OBJECTS)) if rng.random() < 0.6 else number(rng)


def odd_list(rng):
    """Draw a list, nested or ragged."""
    return [
        [oddity(rng) for _ in range(rng.integers(6))]
        if rng.random() < 0.3
        else oddity(rng)
        for _ in range(pick(rng, [0, 1, 2, N - 1, N, N]))
    ]


def shape(rng):
    """Draw a shape, often one that would do."""
    shapes = [(N,), (N, 1), (N, 2), (N, N_FEATURES), (N_FEATURES, N), (N - 1, 5), ()]
    if rng.random() < 0.7:
        return pick(rng, shapes)
    return tuple(rng.integers(0, N + 1, rng.integers(4)))


def odd_array(rng):
    """Draw an array, a tensor, a matrix, a frame, a list or something else."""
    kind = rng.integers(7)
    if kind == 0:
        return odd_list(rng)
    if kind == 1:
        return oddity(rng)
    values = np.empty(shape(rng), dtype=object)
    for place in range(values.size):
        values.flat[place] = oddity(rng) if rng.random() < 0.05 else number(rng)
    if kind == 2:
        return values
    dtype = pick(rng, DTYPES + DATES)
    # Numbers that a type does not hold become others.
    with (
        contextlib.suppress(TypeError, ValueError, OverflowError),
        np.errstate(all="ignore"),
    ):
        values = values.astype(float).astype(dtype)
    if kind == 3:
        return values
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        if kind == 4:
            return torch.from_numpy(np.ascontiguousarray(values))
        if kind == 5:
            return sparse.csr_array(values)
        return pd.DataFrame(values) if values.ndim == 2 else pd.Series(values)
    return values


def spoiled(rng, array):
    """Return the array with a few odd numbers in it, or something else altogether."""
    kind = rng.integers(4)
    if kind == 0:
        return odd_array(rng)
    if rng.random() < 0.05:
        return np.copysign(3.3e38, array).astype(pick(rng, ["f4", "f8"]))
    if kind == 1:
        # The same values in another form, which may well do.
        dtype = pick(rng, ["f2", "f4", ">f8", "g", "i1", "i8", "u8", "?", "O", "c16"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.asarray(array).astype(dtype)
        return pick(rng, [array, array.tolist(), array[::-1], np.asfortranarray(array)])
    array = np.array(array, dtype=float)
    for place in rng.integers(0, array.size, rng.integers(1, 4)):
        with contextlib.suppress(OverflowError):
            array.flat[place] = pick(rng, FINITE) if kind == 2 else number(rng)
    with np.errstate(over="ignore"):
        array *= pick(rng, [1.0, 1.0, 1.0, 1e-40, 1e20, 1e38])
        return array.astype(pick(rng, ["f8", "f8", "f4"]))


def odd_parameter(rng):
    """Draw a value of a parameter."""
    kind = rng.integers(6)
    if kind == 0:
        return oddity(rng)
    if kind == 1:
        return int(rng.integers(-3, 9))
    if kind == 2:
        return float(rng.uniform(0, 10.0 ** rng.integers(-3, 4)))
    if kind == 3:
        return pick(rng, WORDS)
    if kind == 4:
        values = rng.integers(0, 6, rng.integers(4)).tolist()
        return pick(rng, [values, tuple(values), np.array(values), odd_list(rng)])
    options = [{i: number(rng) for i in range(3)}, np.ndarray, len, lambda *a: 0]
    return pick(rng, options)


# --------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------


def target_of(kind):
    """Return targets that suit an estimator."""
    return REALS if kind is FPERegressor else LABELS


@cache
def _fitted(kind):
    return kind(**QUICK).fit(X, target_of(kind))


def fitted(kind):
    """Return a fitted estimator that may be changed."""
    return copy.deepcopy(_fitted(kind))


@contextlib.contextmanager
def expected_warnings():
    """Ignore what is to be warned of; any other warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # About column vectors, many classes or an expansion that cannot be had.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # scikit-learn looks whether float labels are integers, and adds up infinities.
        warnings.filterwarnings("ignore", "invalid value encountered in (cast|reduce)")
        yield


def values_of(model, rows):
    """Return what a model makes of rows."""
    if isinstance(model, FPETransformer):
        return [model.transform(rows)]
    if isinstance(model, FPERegressor):
        return [model.predict(rows)]
    return [model.predict_proba(rows), model.decision_function(rows)]


def check_model(model):
    """Check a model that came of odd input: on ordinary rows it is an ordinary one."""
    assert model.n_nonzero_ <= model.budget_
    if model.n_features_in_ == N_FEATURES and not hasattr(model, "feature_names_in_"):
        for values in values_or_error(model, X):
            finite = isinstance(values, str) or np.isfinite(values).all()
            assert finite, "not finite, from finite rows"


def check_unfitted_or(model, before):
    """Check that a failed call left a model as it was, or no model at all."""
    try:
        after = values_of(model, X)
    except NotFittedError:
        return
    assert before is not None, "the call failed, and yet there is a model"
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def train(rng, model, method, arguments, *, before=None, errors=DOCUMENTED):
    """Call fit or partial_fit; check the error or the model."""
    try:
        getattr(model, method)(**arguments)
    except errors:
        check_unfitted_or(model, before)
        return f"{method} refused"
    check_model(model)
    return method


def odd_data(rng, kind, method):
    """Draw the arguments of a fit, one or two of them spoiled."""
    sources = {"X": X, "y": target_of(kind), "sample_weight": np.ones(N)}
    arguments = {"X": X, "y": target_of(kind)}
    if method == "partial_fit" and kind is not FPERegressor:
        sources["classes"] = np.arange(3)
    elif method == "fit" and rng.random() < 0.3:
        sources |= {"X_val": X, "y_val": target_of(kind)}
        arguments |= {"X_val": X, "y_val": target_of(kind)}
    for name in rng.choice(list(sources), rng.integers(1, 3), replace=False):
        arguments[str(name)] = spoiled(rng, sources[name])
    return arguments


def call_fit(rng, kind, folder):
    """Fit or go on, on odd arrays, a new estimator or a fitted one."""
    method = pick(rng, ["fit", "partial_fit"])
    early_stopping = method == "fit" and bool(rng.integers(2))
    if rng.random() < 0.7:
        model, before = kind(**QUICK, early_stopping=early_stopping), None
    else:
        model, before = fitted(kind), values_of(_fitted(kind), X)
    return train(rng, model, method, odd_data(rng, kind, method), before=before)


def call_parameters(rng, kind, folder):
    """Fit or go on with odd parameters."""
    names = sorted(set(kind().get_params()) & set(PARAMETERS))
    chosen = rng.choice(names, rng.integers(1, 4), replace=False)
    parameters = {str(name): odd_parameter(rng) for name in chosen}
    model = kind(**{**QUICK, **parameters})
    method = pick(rng, ["fit", "partial_fit"])
    arguments = {"X": X, "y": target_of(kind)}
    return train(rng, model, method, arguments, errors=(*DOCUMENTED, MemoryError))


def call_predict(rng, kind, folder):
    """Predict odd rows."""
    model, rows = fitted(kind), spoiled(rng, X)
    method = "transform" if kind is FPETransformer else "predict"
    if kind is FPEClassifier:
        method = pick(rng, METHODS)
    try:
        values = getattr(model, method)(rows)
    except DOCUMENTED:
        return "predict refused"
    if method == "predict_proba":
        np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=1e-5)
    assert not np.isnan(values).any(), f"{method} gives NaN, of finite rows"
    return "predict"


def call_score(rng, kind, folder):
    """Score odd rows and targets."""
    if kind is FPETransformer:
        kind = FPEClassifier
    sources = {"X": X, "y": target_of(kind), "sample_weight": np.ones(N)}
    arguments = {"X": X, "y": target_of(kind)}
    for name in rng.choice(list(sources), rng.integers(1, 3), replace=False):
        arguments[str(name)] = spoiled(rng, sources[name])
    with warnings.catch_warnings():
        # R² of huge targets overflows in scikit-learn; a row alone has none.
        warnings.simplefilter("ignore")
        try:
            score = fitted(kind).score(**arguments)
        except DOCUMENTED:
            return "score refused"
    assert isinstance(score, float)
    return "score"


def odd_path(rng, folder):
    """Draw a path that does not lead to a model."""
    (folder / "text").write_text("no model")
    (folder / "empty").write_bytes(b"")
    options = [None, 3.5, b"", "", "a\0b", [], object(), folder, folder / "no" / "way"]
    return pick(rng, [*options, "/dev/null", f"{folder}/text/inside", "x" * 300])


def call_save(rng, kind, folder):
    """Save to odd paths, odd estimators, or with odd parameters set afterwards."""
    model, path = fitted(kind), folder / "model"
    choice = rng.integers(4)
    if choice == 0:
        path = odd_path(rng, folder)
    elif choice == 1:
        model = pick(rng, [kind(**QUICK), kind, None, "model", object(), _fitted])
    elif choice == 2:
        with contextlib.suppress(*DOCUMENTED):
            model.fit(**odd_data(rng, kind, "fit"))
    else:
        names = sorted(set(model.get_params()) - {"skorch_callbacks"})
        model.set_params(**{str(rng.choice(names)): odd_parameter(rng)})
    try:
        save(model, path)
    except (*DOCUMENTED, OSError):
        assert not list(folder.glob(".*")), "a file was left behind"
        return "save refused"
    check_loaded(load(path), model)
    return "save"


def values_or_error(model, rows):
    """Return what a model makes of rows, or the message where they are too large."""
    try:
        return values_of(model, rows)
    except ValueError as error:
        if "too large" not in str(error):
            raise
        return [str(error)]


def check_loaded(loaded, model):
    """Check that what was loaded predicts what was saved."""
    n_features = model.n_features_in_
    rows = np.resize(X, (N, n_features))
    if hasattr(model, "feature_names_in_"):
        rows = pd.DataFrame(rows, columns=model.feature_names_in_)
    found, expected = (values_or_error(m, rows) for m in (loaded, model))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def call_load(rng, kind, folder):
    """Load from odd paths."""
    path = pick(rng, [odd_path(rng, folder), folder / "text", folder / "empty", -1])
    try:
        load(path)
    except (ValueError, TypeError, OSError):
        return "load refused"
    raise AssertionError(f"there is no model at {path!r}")


def call_to_onnx(rng, kind, folder):
    """Export models of odd data, and what is no model."""
    model = pick(rng, [kind(**QUICK), kind, None, fitted(kind), fitted(kind)])
    with contextlib.suppress(*DOCUMENTED):
        if isinstance(model, kind) and rng.random() < 0.8:
            model.fit(**odd_data(rng, kind, "fit"))
    try:
        exported = to_onnx(model)
    except DOCUMENTED:
        return "to_onnx refused"
    assert exported.graph.output
    return "to_onnx"


CALLS = (
    *(call_fit, call_fit, call_parameters, call_parameters, call_predict),
    *(call_score, call_save, call_load, call_to_onnx),
)
"""The calls to draw from; some come twice, as they have more to go wrong."""


def run_call(rng, folder):
    """Draw one call and check what it does; return what it did."""
    call, kind = pick(rng, CALLS), pick(rng, KINDS)
    # Verbose models print.
    with expected_warnings(), contextlib.redirect_stdout(io.StringIO()):
        return f"{kind.__name__}: {call(rng, kind, folder)}"


def clean(folder):
    """Remove what a call has left in a folder."""
    for path in folder.iterdir():
        if path.is_file():
            os.unlink(path)
