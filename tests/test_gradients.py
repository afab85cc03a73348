"""Gradients written by hand are those of autograd."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._step import (
    ALIGNMENT,
    FlatParameters,
    backpropagate,
    has_fast_step,
)
from sklearn_fpe.nn import MLP, expand
from sklearn_fpe.nn._activation import ACTIVATIONS

FAST = sorted(name for name, a in ACTIVATIONS.items() if a.backward_ is not None)

pytestmark = pytest.mark.filterwarnings("ignore:The outgoing weights of the children")

seeds = st.integers(0, 2**32 - 1)
losses = st.sampled_from(sorted(LOSSES))


@st.composite
def networks(draw):
    """Draw a dense or an expanded network with biases that are not zero."""
    n_hidden = draw(st.integers(1, 3))
    widths = [draw(st.integers(4, 12)) for _ in range(n_hidden + 2)]
    generator = torch.Generator().manual_seed(draw(seeds))
    network = MLP.dense(widths, draw(st.sampled_from(FAST)), generator)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.uniform_(-1, 1, generator=generator)
    prune = draw(st.sampled_from([None, "magnitude", "structured"]))
    if prune is not None:
        splits = ["shared", "contiguous", "feature"]
        splits += ["random"] if prune == "magnitude" else []
        network, _ = expand(
            network, 2, draw(st.sampled_from(splits)), prune=prune, rng=draw(seeds)
        )
    return network


def batch(loss, n_rows, n_outputs, rng):
    """Make targets and weights for a loss."""
    if loss == "softmax":
        targets = torch.from_numpy(rng.integers(n_outputs, size=n_rows))
    elif loss == "sigmoid":
        targets = torch.from_numpy(rng.integers(2, size=(n_rows, n_outputs))).float()
    else:
        targets = torch.from_numpy(rng.normal(size=(n_rows, n_outputs))).float()
    return targets, torch.from_numpy(rng.uniform(0, 2, n_rows)).float()


@given(networks(), losses, st.integers(1, 40), st.booleans(), seeds)
def test_backpropagation_equals_autograd(network, kind, n_rows, arrange, seed):
    rng = np.random.default_rng(seed)
    loss = LOSSES[kind]()
    x = torch.from_numpy(rng.normal(size=(n_rows, network.layers[0].in_features)))
    x, target = x.float(), batch(kind, n_rows, network.layers[-1].out_features, rng)
    twin = copy.deepcopy(network)
    assert has_fast_step(network)
    flat = FlatParameters(network)
    used = network
    if arrange:
        x, used = network.arrange(x), network.arranged()
        twin = twin.arranged()
    before = x.clone()
    expected = loss(twin(x), *target)
    expected.backward()
    value = backpropagate(used, x, lambda outputs: loss.differentiate(outputs, *target))
    flat.mask_gradients()
    assert torch.equal(x, before)
    assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
    for p, q in zip(used.parameters(), twin.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
        assert_close(p, q, rtol=0, atol=0)


@given(networks(), seeds)
def test_parameters_are_views_of_one_vector(network, seed):
    values = {name: p.clone() for name, p in network.named_parameters()}
    parameters = dict(network.named_parameters())
    twin = copy.deepcopy(network)
    flat = FlatParameters(network)
    vector, kept = flat.vector, flat.trainable
    sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters.values()]
    assert vector.numel() == sum(sizes)
    assert (vector.grad == 0).all()
    masked = [n for n, b in network.named_buffers() if n.endswith("mask")]
    assert (kept is None) == (not masked)
    if masked:
        n_masked = sum(int((~network.get_buffer(name)).sum()) for name in masked)
        assert (kept == 0).sum() == n_masked
        assert ((kept == 0) | (kept == 1)).all()
        assert not (vector * (1 - kept)).any()
    for name, p in network.named_parameters():
        assert p is parameters[name]
        assert torch.equal(vector[flat.places[p]], p.flatten())
        assert torch.equal(p, values[name])
        assert p.data_ptr() % (4 * ALIGNMENT) == vector.data_ptr() % (4 * ALIGNMENT)
    # What one optimizer does to the vector, another does to the parameters.
    generator = torch.Generator().manual_seed(seed % 1000)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        p.grad.copy_(torch.randn(p.shape, generator=generator))
        q.grad = p.grad.clone()
    for trained in ([vector], twin.parameters()):
        torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1).step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert_close(p, q)
    # A copy does not follow the vector.
    copied = copy.deepcopy(network)
    with torch.no_grad():
        vector.zero_()
    assert not any(p.any() for p in network.parameters())
    assert any(p.any() for p in copied.parameters())


@pytest.mark.gpu
def test_backpropagation_on_the_gpu():
    rng = np.random.default_rng(0)
    network = MLP.dense([64, 16, 10], generator=torch.Generator().manual_seed(0))
    network, _ = expand(network, 4, prune="structured", rng=0)
    loss, target = LOSSES["softmax"](), batch("softmax", 32, 10, rng)
    x = torch.from_numpy(rng.normal(size=(32, 64))).float()
    gradients = []
    for device in ("cpu", "cuda"):
        twin = copy.deepcopy(network).to(device)
        flat = FlatParameters(twin)
        there = tuple(t.to(device) for t in target)
        backpropagate(twin, x.to(device), lambda o, t=there: loss.differentiate(o, *t))
        flat.mask_gradients()
        gradients.append([p.grad.cpu() for p in twin.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-3)
