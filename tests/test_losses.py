"""Laws of the losses: every one that is registered, against autograd in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from sklearn_fpe._engine._loss import LOSSES, MIN_ROW_MAJOR_CLASSES, Squared

seeds = st.integers(0, 2**32 - 1)
smoothings = st.sampled_from([0.0, 0.1, 0.9])


def make_loss(name, smoothing):
    return LOSSES[name](0.0 if name == "squared" else smoothing)


def batch(name, n_rows, n_outputs, seed, dtype=torch.float64):
    """Make outputs, targets and weights of rows for a loss."""
    rng = np.random.default_rng(seed)
    outputs = torch.from_numpy(rng.normal(scale=5, size=(n_rows, n_outputs)))
    if name == "softmax":
        targets = torch.from_numpy(rng.integers(n_outputs, size=n_rows))
    elif name == "sigmoid":
        targets = torch.from_numpy(rng.integers(2, size=(n_rows, n_outputs)))
        targets = targets.to(dtype)
    else:
        targets = torch.from_numpy(rng.normal(size=(n_rows, n_outputs))).to(dtype)
    weights = torch.from_numpy(rng.uniform(0, 2, n_rows))
    return outputs.to(dtype), targets, weights.to(dtype)


sizes = st.tuples(
    st.integers(1, 40), st.one_of(st.integers(2, 6), st.just(MIN_ROW_MAJOR_CLASSES))
)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)
@given(size=sizes, smoothing=smoothings, column_major=st.booleans(), seed=seeds)
def test_the_gradient_is_that_of_autograd(
    name, dtype, tol, size, smoothing, column_major, seed
):
    loss = make_loss(name, smoothing)
    outputs, targets, weights = batch(name, *size, seed, dtype)
    if loss.of_entries and seed % 2:
        weights = weights[:, None] * torch.rand(size, dtype=dtype)
    if column_major:
        outputs = outputs.T.contiguous().T
    recorded = outputs.clone().requires_grad_()
    expected = loss(recorded, targets, weights)
    expected.backward()
    given_targets, given_weights = targets.clone(), weights.clone()
    value, gradient = loss.differentiate(outputs, targets, weights)
    assert_close(value, expected.detach(), rtol=tol, atol=tol)
    assert_close(gradient, recorded.grad, rtol=tol, atol=tol)
    assert gradient.shape == outputs.shape
    # Only the outputs may be overwritten.
    assert torch.equal(targets, given_targets)
    assert torch.equal(weights, given_weights)


@pytest.mark.parametrize("name", LOSSES)
@given(smoothing=smoothings, seed=seeds)
def test_the_loss_is_the_formula(name, smoothing, seed):
    loss = make_loss(name, smoothing)
    outputs, targets, weights = batch(name, 7, 4, seed)
    if name == "softmax":
        hot = F.one_hot(targets, 4).double() * (1 - smoothing) + smoothing / 4
        rows = -(hot * torch.log_softmax(outputs, dim=1)).sum(1)
    elif name == "sigmoid":
        soft = targets * (1 - smoothing) + smoothing / 2
        log_p, log_q = F.logsigmoid(outputs), F.logsigmoid(-outputs)
        rows = -(soft * log_p + (1 - soft) * log_q).sum(1)
    else:
        rows = 0.5 * (outputs - targets).square().mean(1)
    expected = (rows * weights).mean()
    assert_close(loss(outputs, targets, weights), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@given(smoothing=smoothings, seed=seeds)
def test_a_weight_counts_rows(name, smoothing, seed):
    loss = make_loss(name, smoothing)
    outputs, targets, _ = batch(name, 6, 3, seed)
    counts = torch.tensor([0, 1, 2, 3, 0, 1])
    weighted = loss(outputs, targets, counts.double()) * 6
    repeated = [t.repeat_interleave(counts, dim=0) for t in (outputs, targets)]
    ones = torch.ones(7, dtype=torch.float64)
    assert_close(weighted, loss(*repeated, ones) * 7, rtol=1e-10, atol=1e-12)


def test_equal_weights_of_entries_are_weights_of_rows():
    loss = LOSSES["sigmoid"](0.1)
    outputs, targets, weights = batch("sigmoid", 6, 3, 0)
    entries = weights[:, None].expand(6, 3)
    assert_close(loss(outputs, targets, entries), loss(outputs, targets, weights))
    some = loss.differentiate(outputs.clone(), targets, entries)
    for a, b in zip(some, loss.differentiate(outputs, targets, weights), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", [n for n in LOSSES if not LOSSES[n].of_entries])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_weights_of_entries_are_refused_by_a_loss_of_rows(name, n_rows):
    loss = LOSSES[name]()
    outputs, targets, _ = batch(name, n_rows, 3, 0)
    for call in (loss, loss.differentiate):
        with pytest.raises(ValueError, match=rf"'{name}' is one of rows.*, 3\)"):
            call(outputs, targets, torch.ones(n_rows, 3))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_value(name):
    loss = make_loss(name, 0.1)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert twin == loss
        assert hash(twin) == hash(loss)
    assert loss.name == name
    assert all(loss != make_loss(other, 0.1) for other in LOSSES if other != name)
    if name != "squared":
        assert loss != make_loss(name, 0.2)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0, float("nan")])
def test_label_smoothing_must_leave_something_of_the_label(smoothing):
    for name in ("softmax", "sigmoid"):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
            LOSSES[name](smoothing)


def test_real_targets_have_no_labels_to_smooth():
    with pytest.raises(ValueError, match="label_smoothing is for classes"):
        Squared(0.1)
