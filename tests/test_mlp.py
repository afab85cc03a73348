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
from numpy.testing import assert_allclose, assert_array_equal
from torch.testing import assert_close

from sklearn_fpe.nn import MLP, Affine, BlockLinear, DenseLinear, MaskedLinear, expand
from sklearn_fpe.nn._activation import ACTIVATIONS

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
        "gelu": lambda z: z * torch.special.ndtr(z),
        "silu": lambda z: z * torch.special.expit(z),
    }
    z = x
    for layer in network.hidden:
        weight, bias = layer.dense_weight().double(), layer.dense_bias().double()
        z = functions[network.activation.name](z @ weight.T + bias)
    close = {"rtol": 1e-10, "atol": 1e-10}
    assert_close(network.transform(x), z, **close)
    assert_close(network(x), network.layers[-1](z), **close)
    assert network(x.float()).dtype == torch.float32


@given(networks(), seeds)
def test_the_input_is_mapped_first(network, seed):
    x = inputs(network, seed)
    rng = np.random.default_rng(seed)
    affine = Affine(np.arange(x.shape[1]) * 1.0, rng.uniform(0.1, 10, x.shape[1]))
    expected = network(torch.from_numpy(affine(x.numpy())))
    network.input_mean, network.input_scale = affine.tensors("cpu")
    assert torch.equal(network(x), expected)
    assert_array_equal(network.input_affine.mean, affine.mean)
    assert_array_equal(network.input_affine.scale, affine.scale)
    with pytest.raises(TypeError, match=r"floating-point dtype, got torch\.int64"):
        network(x.long())


@given(networks(), seeds)
def test_an_arranged_network_acts_on_arranged_columns(network, seed):
    x = inputs(network, seed)
    expected = network(x)
    twin = network.arranged()
    assert not twin.reorders_columns
    assert (twin is network) == (not network.reorders_columns)
    assert_close(twin(network.arrange(x)), expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        assert ours is theirs
    assert twin.training == network.training
    assert twin.n_nonzero == network.n_nonzero
    # The network itself is left alone.
    assert torch.equal(network(x), expected)


@given(networks(), seeds)
def test_a_layer_can_be_made_maskable(network, seed):
    x = inputs(network, seed)
    expected, parameters = network(x), list(network.parameters())
    for level, before in enumerate(list(network.layers)):
        layer = network.masked(level)
        assert layer is network.layers[level]
        assert isinstance(layer, MaskedLinear | BlockLinear)
        assert (layer is before) == (not isinstance(before, DenseLinear))
    assert torch.equal(network(x), expected)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


@given(networks())
def test_parents_and_n_nonzero(network):
    assert network.n_nonzero == sum(layer.n_nonzero for layer in network.layers)
    assert len(network.parents) == len(network.hidden) == len(network.layers) - 1
    for layer, parents in zip(network.hidden, network.parents, strict=True):
        assert parents.shape == (layer.out_features,)


def far_off(rng, n, offset, low=0.01):
    """Draw location and scale of columns, some `offset` scales from zero."""
    scale = rng.uniform(low, 10, n)
    return Affine(rng.choice([-1, 0, 1], n) * offset * scale, scale)


@given(networks(), seeds, st.sampled_from([0.0, 1.0, 500.0, 2e3, 1e6, 1e14]))
def test_folding_is_exact_to_rounding_with_far_off_means(network, seed, offset):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    affine = far_off(rng, n, offset)
    x = affine.undo(inputs(network, seed).numpy())
    expected = copy.deepcopy(network).double()(torch.from_numpy(affine(x)))
    network.fold_input(affine)
    far = np.abs(affine.mean) > 1e3 * affine.scale
    assert (network.input_mean is not None) == bool(far.any())
    if far.any():
        # Only columns that single precision would lose keep their map.
        stays = network.input_affine
        assert_array_equal(stays.mean, np.where(far, affine.mean, 0))
        assert_array_equal(stays.scale, np.where(far, affine.scale, 1))
        assert network.input_mean.dtype == network.input_scale.dtype == torch.float64
    # A mean of 500 scales costs 500 times the precision of single numbers.
    tolerance = 5e-6 * (max(1.0, offset) if offset <= 1e3 else 1.0)
    got = network(torch.from_numpy(x))
    assert_close(got, expected, rtol=tolerance, atol=tolerance)


@given(networks(), seeds, st.sampled_from([1e-300, 1e-20, 1.0, 1e20, 1e300]))
def test_folding_takes_every_scale(network, seed, size):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    affine = far_off(rng, n, 100.0)
    affine = Affine(affine.mean * size, affine.scale * size)
    z = inputs(network, seed)
    expected = copy.deepcopy(network).double()(z)
    network.fold_input(affine)
    got = network(torch.from_numpy(affine.undo(z.numpy())))
    assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert all(p.isfinite().all() for p in network.parameters())
    network.unfold_input(affine)
    assert network.input_mean is network.input_scale is None
    assert_close(network(z), expected, rtol=1e-3, atol=1e-3)


@given(networks(), seeds, st.sampled_from([0.0, 10.0, 1e5]))
def test_unfolding_is_the_inverse_of_folding(network, seed, offset):
    rng = np.random.default_rng(seed)
    affine = far_off(rng, network.layers[0].in_features, offset)
    x = inputs(network, seed)
    expected = network(x)
    network.fold_input(affine)
    network.unfold_input(affine)
    assert network.input_mean is network.input_scale is None
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@given(networks(), seeds, st.sampled_from([10.0, 1e5]))
def test_folding_and_unfolding_compose(network, seed, offset):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    inner, outer = (
        Affine(rng.normal(size=n) * offset, rng.uniform(0.1, 10, n)) for _ in range(2)
    )
    x = inputs(network, seed)
    network.double()
    expected = network(x)
    network.fold_input(outer)
    network.fold_input(inner)
    raw = inner.undo(outer.undo(x.numpy()))
    got = network(torch.from_numpy(raw))
    assert_close(got, expected, rtol=1e-6, atol=1e-6)
    # Other statistics express the same function in other coordinates.
    network.unfold_input(outer)
    got = network(torch.from_numpy(outer(raw)))
    assert_close(got, expected, rtol=1e-6, atol=1e-6)


@given(networks(), seeds)
def test_a_change_of_scale_keeps_the_function(network, seed):
    rng = np.random.default_rng(seed)
    n_in, n_out = network.layers[0].in_features, network.layers[-1].out_features
    old, new, old_output, new_output = (
        Affine(rng.normal(size=n), rng.uniform(0.1, 10, n))
        for n in (n_in, n_in, n_out, n_out)
    )
    x = inputs(network, seed).numpy()
    network.double()
    masks = [layer.dense_mask().clone() for layer in network.layers]

    def outputs(affine, output_affine):
        raw = network(torch.from_numpy(affine(x))).detach().numpy()
        return output_affine.undo(raw)

    before = outputs(old, old_output)
    network.change_input(old, new)
    network.change_output(old_output, new_output)
    assert_allclose(outputs(new, new_output), before, rtol=1e-9, atol=1e-9)
    for layer, mask in zip(network.layers, masks, strict=True):
        assert torch.equal(layer.dense_mask(), mask)
        assert (layer.dense_weight()[~mask] == 0).all()


@given(networks(), st.sampled_from([0, 1, 5, 40]), seeds)
def test_prediction_in_place_gives_the_same(network, n_rows, seed):
    x = inputs(network, seed, n_rows)
    before = x.clone()
    expected = network(x), network.transform(x)
    close = {"rtol": 1e-10, "atol": 1e-10}
    with torch.no_grad():
        assert_close(network(x), expected[0], **close)
        assert_close(network.transform(x), expected[1], **close)
        out = torch.empty_like(expected[0])
        assert network(x, out=out) is out
        assert_close(out, expected[0], **close)
    assert torch.equal(x, before)


@given(networks(), seeds)
def test_pickle_and_deepcopy_give_the_same_network(network, seed):
    n = network.layers[0].in_features
    network.fold_input(Affine(np.full(n, 5e3), np.ones(n)))
    x = inputs(network, seed)
    for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(twin(x), network(x))
        assert twin.n_nonzero == network.n_nonzero
        assert twin.activation is network.activation
        assert_array_equal(twin.input_affine.mean, network.input_affine.mean)
        for ours, theirs in zip(twin.parents, network.parents, strict=True):
            assert torch.equal(ours, theirs)


def test_activation_must_be_known():
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'mish'"):
        MLP.dense([2, 3, 1], "mish")


def test_a_layer_of_dead_units_keeps_one():
    network, _ = expand(MLP.dense([6, 4, 4, 2]), 2, prune="structured", rng=0)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for level in range(2):
        layer = network.layers[level]
        network.masked(level).set_mask(torch.zeros_like(layer.weight, dtype=bool))
    network.masked(2).set_mask(
        torch.zeros_like(network.layers[2].weight, dtype=torch.bool)
    )
    smaller = network.without_dead_units()
    assert [layer.out_features for layer in smaller.hidden] == [1, 1]
    assert torch.equal(smaller(x), network(x))
    assert smaller.layers[0].dense_weight().shape == (1, 6)
