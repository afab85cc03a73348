"""Laws of the network."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sklearn_fpe.nn import MLP, DenseLinear, expand
from sklearn_fpe.nn._mlp import ACTIVATIONS

seeds = st.integers(0, 2**32 - 1)


@st.composite
def networks(draw):
    """Draw a network, dense or expanded, with biases that are not zero."""
    n_hidden = draw(st.integers(1, 3))
    widths = [draw(st.integers(1, 8)) for _ in range(n_hidden + 2)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    network = MLP.dense(widths, activation, generator)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.normal_(generator=generator)
    if draw(st.booleans()):
        split = draw(st.sampled_from(["random", "shared", "contiguous", "feature"]))
        prune = draw(st.sampled_from(["magnitude", "structured"]))
        if split == "random":
            prune = "magnitude"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of expansions that cannot be had
            network, _ = expand(
                network, draw(st.integers(1, 4)), split, prune=prune, rng=0
            )
    return network


def inputs(network, seed, n_rows=5):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n_rows, network.layers[0].in_features)))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), seeds)
def test_dense_is_drawn_after_glorot_from_the_generator_alone(widths, seed):
    state = torch.get_rng_state()
    for activation, gain in [("relu", 6), ("logistic", 2)]:
        first, second = (
            MLP.dense(widths, activation, torch.Generator().manual_seed(seed))
            for _ in range(2)
        )
        MLP.dense(widths, activation)
        for layer, same, n_in, n_out in zip(
            first.layers, second.layers, widths[:-1], widths[1:], strict=True
        ):
            assert isinstance(layer, DenseLinear)
            assert layer.weight.shape == (n_out, n_in)
            assert layer.weight.abs().max() <= math.sqrt(gain / (n_in + n_out))
            assert not layer.bias.any()
            assert torch.equal(layer.weight, same.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_dense_without_a_generator_is_drawn_anew():
    first, second = (MLP.dense([5, 4, 3]).layers[0].weight for _ in range(2))
    assert not torch.equal(first, second)


@given(networks(), seeds)
def test_forward_is_layer_after_layer(network, seed):
    x = inputs(network, seed)
    functions = {
        "identity": lambda z: z,
        "logistic": torch.special.expit,
        "tanh": torch.tanh,
        "relu": lambda z: z.clamp(min=0),
    }
    z = x
    for layer in network.hidden:
        weight, bias = layer.dense_weight().double(), layer.unit_bias().double()
        z = functions[network.activation](z @ weight.T + bias)
    close = {"rtol": 1e-10, "atol": 1e-10}
    assert_close(network.transform(x), z, **close)
    assert_close(network(x), network.layers[-1](z), **close)
    assert network(x.float()).dtype == torch.float32


@given(networks(), seeds)
def test_center_is_subtracted_first_gathered_or_not(network, seed):
    x = inputs(network, seed)
    center = torch.arange(x.shape[1], dtype=torch.float32)
    expected = network(x - center)
    network.center = center
    assert torch.equal(network(x), expected)
    if network.gathers:
        gathered = network(network.gather(x), gathered=True)
        assert_close(gathered, expected, rtol=1e-10, atol=1e-10)


@given(networks())
def test_parents_and_n_nonzero(network):
    assert network.n_nonzero == sum(layer.n_nonzero for layer in network.layers)
    assert len(network.parents) == len(network.hidden) == len(network.layers) - 1
    for layer, parents in zip(network.hidden, network.parents, strict=True):
        assert parents.shape == (layer.out_features,)


@given(networks(), seeds, st.sampled_from([0.0, 1.0, 500.0, 2e3, 1e6]))
def test_folding_is_exact_to_rounding_with_far_off_means(network, seed, offset):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    scale = torch.from_numpy(rng.uniform(0.01, 10, n))
    mean = torch.from_numpy(rng.choice([-1, 0, 1], n)) * offset * scale
    # float32 holds x to 1e-7 of the mean: what it holds is taken as it is.
    x = (mean + scale * inputs(network, seed)).float()
    expected = copy.deepcopy(network).double()((x.double() - mean) / scale)
    network.fold_input(mean, scale)
    far = mean.abs() > 1e3 * scale
    assert (network.center is not None) == bool(far.any())
    if far.any():
        assert torch.equal(network.center != 0, far)
        assert network.center.dtype == torch.float32
    # A mean of 500 scales costs 500 times the precision of single numbers.
    tolerance = 5e-6 * (max(1.0, offset) if offset <= 1e3 else 1.0)
    assert_close(network(x).double(), expected, rtol=tolerance, atol=tolerance)


@given(networks(), seeds, st.sampled_from([0.0, 10.0, 1e5]))
def test_unfolding_is_the_inverse_of_folding(network, seed, offset):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    scale = torch.from_numpy(rng.uniform(0.01, 10, n))
    mean = torch.from_numpy(rng.choice([-1, 0, 1], n)) * offset * scale
    x = inputs(network, seed)
    expected = network(x)
    network.fold_input(mean, scale)
    network.unfold_input(mean, scale)
    assert network.center is None
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@given(networks(), seeds, st.sampled_from([10.0, 1e5]))
def test_folding_and_unfolding_compose(network, seed, offset):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    scale, other_scale = torch.from_numpy(rng.uniform(0.1, 10, (2, n)))
    mean, other_mean = torch.from_numpy(rng.normal(size=(2, n))) * offset
    x = inputs(network, seed)
    expected = copy.deepcopy(network).double()(x)
    network.double()
    network.fold_input(mean, scale)
    network.fold_input(other_mean, other_scale)
    raw = other_mean + other_scale * (mean + scale * x)
    assert_close(network(raw), expected, rtol=1e-6, atol=1e-6)
    # Other statistics express the same function in other coordinates.
    network.unfold_input(mean, scale)
    assert_close(network((raw - mean) / scale), expected, rtol=1e-6, atol=1e-6)


@given(networks(), seeds)
def test_a_change_of_scale_keeps_the_function(network, seed):
    rng = np.random.default_rng(seed)
    n_in, n_out = network.layers[0].in_features, network.layers[-1].out_features
    scales, output_scales = (
        torch.from_numpy(rng.uniform(0.1, 10, (2, n))) for n in (n_in, n_out)
    )
    means, output_means = (
        torch.from_numpy(rng.normal(size=(2, n))) for n in (n_in, n_out)
    )
    x = inputs(network, seed)
    network.double()
    before = network((x - means[0]) / scales[0]) * output_scales[0] + output_means[0]
    network.change_input_scale(means[0], scales[0], means[1], scales[1])
    network.change_output_scale(
        output_means[0], output_scales[0], output_means[1], output_scales[1]
    )
    after = network((x - means[1]) / scales[1]) * output_scales[1] + output_means[1]
    assert_close(after, before, rtol=1e-9, atol=1e-9)


@given(networks(), st.sampled_from([0, 1, 5, 40]), seeds)
def test_prediction_in_place_gives_the_same(network, n_rows, seed):
    x = inputs(network, seed, n_rows)
    before = x.clone()
    expected = network(x), network.transform(x)
    with torch.no_grad():
        assert torch.equal(network(x), expected[0])
        assert torch.equal(network.transform(x), expected[1])
    assert torch.equal(x, before)


@given(networks(), seeds)
def test_pickle_and_deepcopy_give_the_same_network(network, seed):
    n = network.layers[0].in_features
    network.fold_input(torch.full((n,), 5e3), torch.ones(n, dtype=torch.float64))
    x = inputs(network, seed)
    for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(twin(x), network(x))
        assert twin.n_nonzero == network.n_nonzero
        assert twin.activation == network.activation
        for ours, theirs in zip(twin.parents, network.parents, strict=True):
            assert torch.equal(ours, theirs)


def test_activation_must_be_known():
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'gelu'"):
        MLP.dense([2, 3, 1], "gelu")
