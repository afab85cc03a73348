"""Everything that estimators do gives the same bits on another device as on the CPU."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from pretend_device import NAME
from scipy import sparse
from sklearn.datasets import load_digits

from sklearn_fpe import (
    FPEClassifier,
    FPERegressor,
    FPETransformer,
    load,
    save,
    to_onnx,
)
from sklearn_fpe._engine import _streamed_rows, _views
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

pytestmark = pytest.mark.filterwarnings("ignore:The outgoing weights of the children")

DIGITS, LABELS = load_digits(return_X_y=True)
X, y = DIGITS[:230].astype(np.float32), LABELS[:230]
GROUPS = np.arange(64) % 4


@pytest.fixture(autouse=True)
def device(pretend):
    return pretend


def make(kind=FPEClassifier, **settings):
    common = {"hidden_layer_sizes": (8,), "expansion": 2, "max_iter": 6, "warmup": 2}
    return kind(**{**common, "batch_size": 50, "random_state": 0, **settings})


def on_both(function):
    """Call ``function(device)`` for the CPU and the other device."""
    return function("cpu"), function(NAME)


def outputs(model, X):
    if isinstance(model, FPETransformer):
        return [model.transform(X)]
    if isinstance(model, FPERegressor):
        return [model.predict(X)]
    names = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    return [getattr(model, name)(X) for name in names]


def assert_same(plain, model, X=X):
    assert model.module_.device.type == NAME
    assert model.loss_curve_ == plain.loss_curve_
    assert model.n_nonzero_ == plain.n_nonzero_
    for a, b in zip(outputs(model, X), outputs(plain, X), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())


def pairs():
    """Return all pairs of a split and a prune rule that go together."""
    return [
        pytest.param(split, prune, id=f"{split}-{prune}")
        for split in SPLITS
        for prune in PRUNES
        if (SPLITS[split].shared is not False or not PRUNES[prune].needs_shared)
    ]


@pytest.mark.parametrize(("split", "prune"), pairs())
@pytest.mark.parametrize("skip", [False, True])
def test_every_rule(split, prune, skip):
    if skip and not PRUNES[prune].allows_skip:
        pytest.skip("the rule takes no skip connection")
    settings = {"split": split, "prune": prune, "skip_connection": skip}
    settings["feature_groups"] = GROUPS if SPLITS[split].needs_groups else None

    def fit(device):
        return make(device=device, **settings).fit(X, y)

    try:
        plain = fit("cpu")
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            fit(NAME)
        return
    assert_same(plain, fit(NAME))


SETTINGS = {
    "no hidden layer": {"hidden_layer_sizes": (), "budget": 300, "expansion": 1},
    "two hidden layers": {"hidden_layer_sizes": (8, 6)},
    "three, structured": {"hidden_layer_sizes": (8, 6, 5), "prune": "structured"},
    "expansion 1": {"expansion": 1},
    "many children": {"expansion": 8, "prune": "structured"},
    "early stopping": {"early_stopping": True},
    "by the loss": {"early_stopping": True, "scoring": "loss"},
    "by a scorer": {"early_stopping": True, "scoring": "balanced_accuracy"},
    "refit": {"early_stopping": True, "refit": True},
    "bfloat16": {"precision": "bfloat16"},
    "label smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weight": "balanced"},
    "not standardised": {"standardize": False},
    "constant rate": {"learning_rate": "constant"},
    "all in a batch": {"batch_size": 1000},
    "no warm-up": {"warmup": 0},
    "verbose": {"verbose": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting(name):
    plain, model = on_both(lambda d: make(device=d, **SETTINGS[name]).fit(X, y))
    assert_same(plain, model)
    if model.early_stopping:
        assert model.validation_scores_ == plain.validation_scores_
        assert model.validation_loss_curve_ == plain.validation_loss_curve_
        assert model.best_iter_ == plain.best_iter_


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("prune", ["gradual", "structured"])
def test_every_activation(activation, prune):
    settings = {"activation": activation, "prune": prune}
    assert_same(*on_both(lambda d: make(device=d, **settings).fit(X, y)))


TARGETS = {
    "binary": (FPEClassifier, y % 2),
    "strings": (FPEClassifier, np.array(list("abcdefghij"))[y]),
    "several labels": (FPEClassifier, np.stack([y > 4, y % 2, y % 3 == 0], 1) * 1),
    "regression": (FPERegressor, X @ np.linspace(-1, 1, 64)),
    "two real targets": (FPERegressor, np.stack([X[:, 20], X.sum(1)], axis=1)),
    "transformer": (FPETransformer, y),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_every_kind_of_target(name, early_stopping):
    kind, target = TARGETS[name]

    def fit(device):
        settings = {"device": device, "early_stopping": early_stopping}
        return make(kind, **settings).fit(X, target)

    plain, model = on_both(fit)
    assert_same(plain, model)
    if early_stopping:
        assert model.validation_scores_ == plain.validation_scores_
    if kind is not FPETransformer:
        assert model.score(X, target) == plain.score(X, target)


INPUTS = {
    "float64": X.astype(np.float64) / 3,
    "float16": X.astype(np.float16),
    "int": DIGITS[:230].astype(np.int16),
    "bool": X > 7,
    "columns first": np.asfortranarray(X),
    "backwards": X[::-1],
    "read-only": np.frombuffer(X.tobytes(), np.float32).reshape(X.shape),
    "other byte order": X.astype(">f4"),
    "tensor": torch.from_numpy(X),
    "bfloat16 tensor": torch.from_numpy(X).bfloat16(),
    "far from zero": X.astype(np.float64) + 1e9,
    "sparse": sparse.csr_matrix(X),
    "huge spread": X.astype(np.float64) * 1e200,
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_input(name):
    rows = INPUTS[name]
    plain, model = on_both(lambda d: make(device=d).fit(rows, y))
    assert_same(plain, model, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("where", ["pretend:0", "pretend:1"])
def test_tensors_on_a_device(dtype, where):
    rows = torch.from_numpy(X).to(dtype)
    there, labels = rows.to(where), torch.from_numpy(y).to(where)
    settings = {"early_stopping": True, "scoring": "loss"}
    plain = make(**settings).fit(rows, y)
    model = make(device=NAME, **settings).fit(there, labels)
    assert_same(plain, model, rows)
    for a, b in zip(outputs(model, there), outputs(plain, rows), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.score(there, labels) == plain.score(rows, y)
    # And where the rows are on a device, but the training is not.
    np.testing.assert_array_equal(
        make(**settings).fit(there, labels).predict_proba(X), plain.predict_proba(X)
    )


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Return a memory map that is streamed, in many groups of blocks."""
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    path = tmp_path / "rows.npy"
    np.save(path, DIGITS.astype(np.float32))
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("early_stopping", [False, True])
def test_streamed_rows(mapped, early_stopping, monkeypatch):
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BLOCK", 64)
    monkeypatch.setattr(_streamed_rows, "SHUFFLE_BYTES", 4 * 64 * 64 * 3)
    settings = {"early_stopping": early_stopping, "prune": "structured"}

    def fit(device):
        return make(device=device, **settings).fit(mapped, LABELS)

    assert_same(*on_both(fit), mapped)


def test_weights_and_validation_rows():
    weights = np.linspace(0, 2, 230)
    held = {"X_val": X[:60], "y_val": y[:60], "sample_weight_val": weights[60:120]}

    def fit(device):
        model = make(device=device, early_stopping=True)
        return model.fit(X[60:], y[60:], weights[60:], **held)

    plain, model = on_both(fit)
    assert_same(plain, model)
    assert model.validation_scores_ == plain.validation_scores_


@pytest.mark.parametrize("early_stopping", [False, True])
def test_warm_start(early_stopping):
    def fit(device):
        settings = {"warm_start": True, "early_stopping": early_stopping}
        return make(device=device, **settings).fit(X, y).fit(X[:99], y[:99])

    assert_same(*on_both(fit))


def test_warm_start_on_another_device():
    model = make(warm_start=True).fit(X, y)
    plain = make(warm_start=True).fit(X, y).fit(X, y)
    assert_same(plain, model.set_params(device=NAME).fit(X, y))


@pytest.mark.parametrize("n_calls", [1, 2, 5])
def test_partial_fit(n_calls):
    def fit(device):
        model = make(device=device)
        for call in range(n_calls):
            rows = slice(40 * call, 40 * call + 60)
            model.partial_fit(X[rows], y[rows], classes=np.arange(10))
        return model

    assert_same(*on_both(fit))


def test_memory(tmp_path):
    def fit(device):
        model = make(device=device, memory=tmp_path / device)
        model.fit(X, y)
        return model.set_params(expansion=4).fit(X, y)

    plain, model = on_both(fit)
    assert_same(plain, model)
    rows = torch.from_numpy(X).bfloat16().to(NAME)
    make(device=NAME, memory=tmp_path).fit(rows, y)


def test_pickles_and_files(tmp_path):
    pytest.importorskip("safetensors")
    plain, model = on_both(lambda d: make(device=d, split="random").fit(X, y))
    assert_same(plain, pickle.loads(pickle.dumps(model)))
    assert_same(plain, copy.deepcopy(model))
    save(model.set_params(device="cpu"), tmp_path / "model.fpe")
    loaded = load(tmp_path / "model.fpe")
    np.testing.assert_array_equal(loaded.predict_proba(X), plain.predict_proba(X))
    # A pickle depends on values alone, but for the name of the device.
    parts = [pickle.loads(pickle.dumps(m)).learned_.to_state() for m in (plain, model)]
    assert pickle.dumps(parts[0]) == pickle.dumps(parts[1])


def test_onnx():
    pytest.importorskip("onnx")
    plain, model = on_both(lambda d: make(device=d).fit(X, y))
    assert to_onnx(model) == to_onnx(plain)
