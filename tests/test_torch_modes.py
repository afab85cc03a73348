"""Whatever mode of torch the caller is in, results are the same."""

import contextlib

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification

from sklearn_fpe import FPEClassifier
from sklearn_fpe.nn import MLP

X, y = make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)
X = X.astype(np.float32)


def make_model(**params):
    model = FPEClassifier(
        (6,), expansion=2, max_iter=4, warmup=2, random_state=0, warm_start=True
    )
    return model.set_params(**params)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_training_is_the_same_in_every_mode(mode, prune):
    plain = make_model(prune=prune).fit(X, y)
    with MODES[mode]():
        model = make_model(prune=prune).fit(X, y)
        inside = model.predict_proba(X)
    np.testing.assert_array_equal(inside, plain.predict_proba(X))
    for step in ("fit", "partial_fit", "partial_fit"):
        getattr(plain, step)(X, y)
        with MODES[mode]():
            getattr(model, step)(X, y)
    # And on, outside of the mode.
    expected = plain.partial_fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(model.partial_fit(X, y).predict_proba(X), expected)


def test_predictions_are_arrays_whatever_the_default_device():
    model = make_model().fit(X, y)
    expected = model.predict_proba(X)
    with torch.device("meta"):
        np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_a_network_in_double_precision_goes_on():
    model = make_model().fit(X, y)
    model.module_.double()
    assert np.isfinite(model.fit(X, y).predict_proba(X)).all()


def test_a_network_without_hidden_layers():
    network = MLP.dense([4, 2])
    x = torch.ones(3, 4)
    assert torch.equal(network(x), network.layers[0](x))
    assert torch.equal(network.transform(x), x)
