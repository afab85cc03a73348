"""Laws of the activation functions: all that are registered, against a reference."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch.testing import assert_close

from sklearn_fpe import FPEClassifier, to_onnx
from sklearn_fpe._engine._step import has_fast_step
from sklearn_fpe.nn import MLP, Activation, expand
from sklearn_fpe.nn._activation import ACTIVATIONS, get_activation

ALL = list(ACTIVATIONS.values())
values = st.lists(st.floats(-30, 30), min_size=1, max_size=20)

# Written down once more, by other means.
REFERENCE = {
    "identity": lambda x: x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "silu": lambda x: x / (1 + math.exp(-x)),
}

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6)).astype(np.float32)
Y = (X[:, :3].sum(axis=1) > 0).astype(int) + (X[:, 3] > 0.5)
QUICK = {"hidden_layer_sizes": (6, 5), "expansion": 2, "max_iter": 4, "random_state": 0}


def named(activation):
    return activation.name


def test_every_activation_has_a_reference():
    assert ACTIVATIONS.keys() == REFERENCE.keys()
    assert all(activation.name == name for name, activation in ACTIVATIONS.items())


@pytest.mark.parametrize("activation", ALL, ids=named)
@given(numbers=values)
def test_module_and_function_in_place_are_the_reference(activation, numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    expected = torch.tensor([REFERENCE[activation.name](n) for n in numbers])
    expected = expected.double()
    close = {"rtol": 1e-6, "atol": 1e-9}
    module = activation.module()
    assert isinstance(module, torch.nn.Module)
    assert_close(module(x), expected, **close)
    assert_close(activation.apply_(x.clone()), expected, **close)
    # Autograd's path and the path in place are the same function.
    assert_close(activation.apply_(x.clone()), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "activation", [a for a in ALL if a.backward_ is not None], ids=named
)
@given(numbers=values, seed=st.integers(0, 999))
def test_the_derivative_is_that_of_autograd(activation, numbers, seed):
    x = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    output = activation.module()(x)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    gradient = gradient.double()
    output.backward(gradient)
    got = activation.backward_(gradient.clone(), output.detach().clone())
    assert_close(got, x.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ALL, ids=named)
def test_a_registered_activation_pickles_to_itself(activation):
    assert pickle.loads(pickle.dumps(activation)) is activation
    assert copy.deepcopy(activation) is activation
    assert get_activation(activation.name) is activation
    assert get_activation(activation) is activation


@pytest.mark.parametrize("activation", ALL, ids=named)
@pytest.mark.parametrize("kind", ["dense", "magnitude", "structured"])
def test_onnx_computes_what_the_module_computes(activation, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    parameters = {"expansion": 1} if kind == "dense" else {"prune": kind}
    clf = FPEClassifier(**{**QUICK, "activation": activation.name, **parameters})
    model = to_onnx(clf.fit(X, Y))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (proba,) = session.run(["probabilities"], {"X": 3 * X})
    np.testing.assert_allclose(proba, clf.predict_proba(3 * X), atol=1e-5)


@pytest.mark.parametrize("activation", ALL, ids=named)
def test_initial_weights_have_the_gain(activation):
    network = MLP.dense([50, 40, 3], activation, torch.Generator().manual_seed(0))
    bound = math.sqrt(activation.gain / 90)
    largest = float(network.layers[0].weight.detach().abs().max())
    assert 0.95 * bound < largest <= bound
    assert network.activation is activation
    assert has_fast_step(network) == (activation.backward_ is not None)


@pytest.mark.parametrize("name", ["mish", "", None, 3, ["relu"]])
def test_an_unknown_activation_is_an_error(name):
    with pytest.raises(ValueError, match=r"activation must be one of \['gelu'.*got"):
        MLP.dense([2, 3, 1], name)
    with pytest.raises(ValueError, match="activation"):
        FPEClassifier(activation=name).fit(X, Y)


# --------------------------------------------------------------------------------------
# A function of the user's own
# --------------------------------------------------------------------------------------


def softplus_derivative(gradient, output):
    """Multiply by the derivative of softplus: 1 - exp(-output)."""
    return gradient.mul_(output.neg_().expm1_().neg_())


def softplus_onnx(graph, x):
    return graph.add("Softplus", x)


BY_AUTOGRAD = Activation("softplus", torch.nn.Softplus, torch.nn.functional.softplus)
WITH_ALL = Activation(
    "softplus",
    torch.nn.Softplus,
    torch.nn.functional.softplus,
    softplus_derivative,
    softplus_onnx,
)


@pytest.mark.parametrize("activation", [BY_AUTOGRAD, WITH_ALL])
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_an_activation_of_your_own(activation, prune):
    clf = FPEClassifier(**QUICK, prune=prune, activation=activation).fit(X, Y)
    assert clf.n_nonzero_ <= clf.budget_
    z = torch.from_numpy(X)
    for layer in clf.module_.hidden:
        weight, bias = layer.dense_weight(), layer.dense_bias()
        z = torch.nn.functional.softplus(z @ weight.T + bias)
    np.testing.assert_allclose(
        clf.predict_proba(X),
        torch.softmax(clf.module_.layers[-1](z), dim=1).detach().numpy(),
        atol=1e-5,
    )
    for twin in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(twin.predict_proba(X), clf.predict_proba(X))
        assert twin.activation == activation
    cloned = clone(clf)
    assert cloned.activation == activation
    np.testing.assert_array_equal(cloned.fit(X, Y).predict(X), clf.predict(X))
    # Training goes on.
    clf.set_params(warm_start=True).fit(X, Y)


def test_gradients_by_hand_and_by_autograd_train_the_same():
    first, second = (
        FPEClassifier(**QUICK, activation=a).fit(X, Y).predict_proba(X)
        for a in (BY_AUTOGRAD, WITH_ALL)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_a_search_over_activations():
    grid = {"activation": ["relu", WITH_ALL, "gelu"]}
    search = GridSearchCV(FPEClassifier(**QUICK), grid, cv=2, error_score="raise")
    search.fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_an_activation_of_your_own_is_exported_or_refused():
    onnxruntime = pytest.importorskip("onnxruntime")
    clf = FPEClassifier(**QUICK, activation=WITH_ALL).fit(X, Y)
    session = onnxruntime.InferenceSession(
        to_onnx(clf).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (proba,) = session.run(["probabilities"], {"X": X})
    np.testing.assert_allclose(proba, clf.predict_proba(X), atol=1e-5)
    clf = FPEClassifier(**QUICK, activation=BY_AUTOGRAD).fit(X, Y)
    with pytest.raises(ValueError, match=r"'softplus' cannot be exported.*`onnx`"):
        to_onnx(clf)


def test_an_activation_named_like_a_registered_one_stays_itself():
    mine = Activation("relu", torch.nn.Softplus, torch.nn.functional.softplus)
    twin = pickle.loads(pickle.dumps(mine))
    assert twin == mine
    assert twin is not ACTIVATIONS["relu"]
    network, _ = expand(MLP.dense([4, 3, 2], mine), 2, rng=0)
    assert pickle.loads(pickle.dumps(network)).activation == mine
