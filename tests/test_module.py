"""A network as a torch module: export, tracing, hooks, and attribution."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from sklearn_fpe import FPEClassifier
from sklearn_fpe.nn import MLP, Affine, BlockLinear, DenseLinear, MaskedLinear, expand
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._layers import MIN_COLUMN_MAJOR_ROWS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

KINDS = [
    ("dense", "magnitude"),
    *[
        (split, prune)
        for split, rule in SPLITS.items()
        for prune, pruning in PRUNES.items()
        if pruning.at_once and not rule.overlapping
        if rule.shared or not pruning.needs_shared
    ],
]
BATCHES = [1, 2, MIN_COLUMN_MAJOR_ROWS - 1, MIN_COLUMN_MAJOR_ROWS, 50]
seeds = st.integers(0, 999)


def make_network(split, prune, activation="relu", hidden=(9, 6), seed=0, folded=False):
    """Make a network of 14 inputs and 3 outputs, dense or expanded."""
    widths = [14, *hidden, 3]
    generator = torch.Generator().manual_seed(seed)
    network = MLP.dense(widths, activation, generator)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.normal_(generator=generator)
    if split != "dense":
        groups = np.arange(14) // 2 if split == "groups" else None
        options = {"prune": prune, "groups": groups, "rng": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network, _ = expand(network, 3, split, **options)
    if folded:
        mean = np.linspace(0, 5e3, 14)
        network.fold_input(Affine(mean, np.linspace(0.5, 2, 14)))
        assert network.input_mean is not None
    return network.eval()


def rows(n_rows, seed=0):
    return torch.randn(n_rows, 14, generator=torch.Generator().manual_seed(seed))


close = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(9,), (9, 6), (5, 4, 3)])
@pytest.mark.parametrize(("split", "prune"), KINDS)
def test_sequential_is_the_network(split, prune, hidden, activation):
    network = make_network(split, prune, activation, hidden)
    state = torch.get_rng_state()
    sequential = network.to_sequential()
    assert torch.equal(torch.get_rng_state(), state)
    kinds = [nn.Linear, type(ACTIVATIONS[activation].module())]
    assert [type(m) for m in sequential] == (kinds * (len(hidden) + 1))[:-1]
    assert not sequential.training
    x = rows(20)
    assert_close(sequential(x), network(x), **close)
    for linear, layer in zip(sequential[::2], network.layers, strict=True):
        assert linear.weight.shape == (linear.out_features, linear.in_features)
        assert (linear.weight[~layer.dense_mask()] == 0).all()
    n_nonzero = sum(int(torch.count_nonzero(m.weight)) for m in sequential[::2])
    assert n_nonzero <= network.n_nonzero
    # The copies are the caller's.
    before = network(x).clone()
    with torch.no_grad():
        for p in sequential.parameters():
            p.add_(1.0)
    assert torch.equal(network(x), before)


def test_sequential_takes_the_input_that_the_network_takes():
    network = make_network("shared", "magnitude", folded=True)
    x = torch.linspace(0, 5e3, 14) + rows(20)
    with torch.no_grad():
        expected = network(x.double())
    assert_close(
        network.to_sequential().double()(x.double()), expected, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("split", "prune"), KINDS)
def test_export_has_a_free_number_of_rows(split, prune, folded):
    network = make_network(split, prune, folded=folded)
    n = torch.export.Dim("n")
    program = torch.export.export(network, (rows(5),), dynamic_shapes=({0: n},))
    exported = program.module()
    for n_rows in BATCHES:
        x = rows(n_rows)
        assert_close(exported(x), network(x), **close)
    (constraint,) = program.range_constraints.values()
    assert constraint.upper > 2**31
    assert constraint.lower <= 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_exported(activation):
    network = make_network("shared", "magnitude", activation)
    with torch.no_grad():
        program = torch.export.export(
            network, (rows(5),), dynamic_shapes=({0: torch.export.Dim("n")},)
        )
    for n_rows in BATCHES:
        assert_close(program.module()(rows(n_rows)), network(rows(n_rows)), **close)


# torch 2.14 says that tracing will go.
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("n_traced", [1, 40])
@pytest.mark.parametrize(("split", "prune"), KINDS)
def test_a_trace_takes_other_numbers_of_rows(split, prune, n_traced, recorded):
    network = make_network(split, prune)
    with torch.set_grad_enabled(recorded):
        # A warning of the tracer tells of a choice that was made for this size.
        traced = torch.jit.trace(network, rows(n_traced))
    for n_rows in BATCHES:
        assert_close(traced(rows(n_rows)), network(rows(n_rows)), **close)


@pytest.mark.parametrize(
    ("split", "prune", "kinds"),
    [
        ("dense", "magnitude", [DenseLinear, DenseLinear]),
        ("random", "magnitude", [MaskedLinear, MaskedLinear]),
        ("shared", "magnitude", [BlockLinear, MaskedLinear]),
        ("contiguous", "structured", [BlockLinear, DenseLinear]),
    ],
)
def test_print_tells_what_the_network_is(split, prune, kinds):
    network = make_network(split, prune, hidden=(9,))
    assert [type(layer) for layer in network.layers] == kinds
    text = repr(network)
    assert "ReLU" in text
    assert "in_features=14" in text
    assert "out_features=3" in text
    assert ("blocks=3 of" in text) == (BlockLinear in kinds)
    assert ("density=" in text) == (split != "dense")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("split", "prune"), KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hooks_on_activations_fire(split, prune, activation, recorded):
    network = make_network(split, prune, activation)
    x = rows(20)
    seen = []
    for module in network.activations:
        module.register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0].clone(), output))
        )
    with torch.set_grad_enabled(recorded):
        outputs = network(x)
    assert len(seen) == len(network.activations)
    z = x
    for layer, (before, after) in zip(network.layers, seen, strict=False):
        assert_close(before, layer(z), **close)
        assert_close(after, ACTIVATIONS[activation].module()(before), **close)
        z = after
    assert_close(outputs, network.layers[-1](z), **close)


def test_a_hook_may_replace_activations():
    network = make_network("shared", "magnitude")
    module = network.activations[1]
    module.register_forward_hook(lambda m, i, output: torch.zeros_like(output))
    with torch.no_grad():
        outputs = network(rows(4))
    expected = network.layers[-1].dense_bias().expand(4, -1)
    assert_close(outputs, expected, **close)


@given(st.sampled_from(KINDS), st.sampled_from(sorted(ACTIVATIONS)), seeds)
def test_gradients_with_respect_to_inputs(kind, activation, seed):
    network = make_network(*kind, activation, seed=seed).double()
    x = rows(3, seed).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    sequential = network.to_sequential()
    (expected,) = torch.autograd.grad(sequential(x).square().sum(), x)
    assert_close(gradient, expected, rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------------------------------
# Attribution
# --------------------------------------------------------------------------------------

# DeepLIFT's rule for these functions is exact: attributions add up.
LIFTED = ["relu", "logistic", "tanh"]


def fitted(split, prune, activation):
    rng = np.random.default_rng(0)
    X = rng.normal(3, 2, size=(60, 14)).astype(np.float32)
    y = rng.permutation(np.arange(60) % 3)
    groups = np.arange(14) // 2 if split == "groups" else None
    options = {"expansion": 1} if split == "dense" else {"split": split, "prune": prune}
    clf = FPEClassifier(
        (9, 6),
        **{"expansion": 3, **options},
        activation=activation,
        feature_groups=groups,
        max_iter=4,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clf.fit(X, y).module_, torch.from_numpy(X)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", LIFTED)
@pytest.mark.parametrize("as_sequential", [False, True])
@pytest.mark.parametrize(("split", "prune"), KINDS)
def test_deep_lift_of_captum_adds_up(split, prune, as_sequential, activation):
    attr = pytest.importorskip("captum.attr")
    network, X = fitted(split, prune, activation)
    module = network.to_sequential() if as_sequential else network
    x, baseline = X[:20], X[40:].mean(dim=0, keepdim=True)
    for target in range(3):
        values, delta = attr.DeepLift(module).attribute(
            x, baseline, target=target, return_convergence_delta=True
        )
        assert delta.abs().max() < 1e-3
        with torch.no_grad():
            difference = (module(x) - module(baseline))[:, target]
        assert_close(values.sum(1), difference, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", LIFTED)
@pytest.mark.parametrize("as_sequential", [False, True])
@pytest.mark.parametrize(("split", "prune"), KINDS)
def test_deep_explainer_of_shap_adds_up(split, prune, as_sequential, activation):
    shap = pytest.importorskip("shap")
    network, X = fitted(split, prune, activation)
    module = network.to_sequential() if as_sequential else network
    explainer = shap.DeepExplainer(module, X[:20])
    # It checks itself that values add up to the outputs.
    values = explainer.shap_values(X[20:40], check_additivity=True)
    with torch.no_grad():
        outputs = module(X[20:40]) - module(X[:20]).mean(dim=0)
    np.testing.assert_allclose(values.sum(axis=1), outputs, rtol=1e-3, atol=1e-3)
