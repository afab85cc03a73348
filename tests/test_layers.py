"""Laws of the layers: all of them are a masked dense layer, run another way."""

import copy
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from sklearn_fpe.nn import Affine, BlockLinear, DenseLinear, MaskedLinear, _blocks

seeds = st.integers(0, 2**32 - 1)
exactly = {"rtol": 0, "atol": 0}


class Example:
    """A layer and, worked out beside it, the dense matrix and mask that it stands for.

    `place` holds the flat position in the dense matrix of every entry of the layer's
    weight that is kept, -1 elsewhere; `units` that of every kept output in its bias.
    """

    def __init__(self, layer, shape, place, units):
        self.layer = layer
        self.shape = shape
        self.place = torch.as_tensor(place)
        self.units = torch.as_tensor(units)

    def __repr__(self):
        tensors = [*self.layer.named_parameters(), *self.layer.named_buffers()]
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return f"{type(self.layer).__name__}({self.shape}, {shapes})"

    def scatter(self, values):
        """Lay values of the shape of the layer's weight out as the dense matrix."""
        dense = torch.zeros(self.shape, dtype=values.dtype).flatten()
        kept = self.place >= 0
        dense[self.place[kept]] = values.detach()[kept]
        return dense.view(self.shape)

    def reference(self, dtype=torch.float32):
        """Return dense weight and mask and bias."""
        mask = self.scatter(torch.ones_like(self.layer.weight)) > 0
        weight = self.scatter(self.layer.weight).to(dtype)
        bias = self.layer.bias.detach().flatten()[self.units].to(dtype)
        return weight.requires_grad_(), mask, bias.requires_grad_()


def dense_example(rng, n_in, n_out):
    layer = DenseLinear(normal(rng, n_out, n_in), normal(rng, n_out))
    place = np.arange(n_in * n_out).reshape(n_out, n_in)
    return Example(layer, (n_out, n_in), place, np.arange(n_out))


def masked_example(rng, n_in, n_out):
    mask = rng.random((n_out, n_in)) < 0.5
    layer = MaskedLinear(
        normal(rng, n_out, n_in), normal(rng, n_out), torch.from_numpy(mask)
    )
    place = np.arange(n_in * n_out).reshape(n_out, n_in)
    return Example(layer, mask.shape, np.where(mask, place, -1), np.arange(n_out))


def block_example(rng, n_in, n_blocks, n_out, *, contiguous, unread, pads, masks):
    """Blocks over a partition of the inputs.

    Parameters: whether blocks read runs of columns; whether some columns are not read;
    whether blocks differ in their number of outputs; whether entries are masked.
    """
    labels = np.arange(n_in) * n_blocks // n_in
    if not contiguous:
        labels = rng.permutation(labels)
    columns = [np.flatnonzero(labels == a) for a in range(n_blocks)]
    if unread:
        columns = [
            np.sort(rng.permutation(c)[: rng.integers(1, len(c) + 1)]) for c in columns
        ]
    if not contiguous:
        columns = [rng.permutation(c) for c in columns]
    n_outs = [n_out] * n_blocks
    if pads:
        n_outs = [n_out, *rng.integers(1, n_out + 1, size=n_blocks - 1)]
    block_inputs = max(len(c) for c in columns)
    inputs = np.zeros((n_blocks, block_inputs), dtype=np.int64)
    mask = np.zeros((n_blocks, n_out, block_inputs), dtype=bool)
    for a, (c, rows) in enumerate(zip(columns, n_outs, strict=True)):
        inputs[a] = rng.choice(c)  # padding reads anything
        inputs[a, : len(c)] = c
        mask[a, :rows, : len(c)] = True
    outputs = np.concatenate([a * n_out + np.arange(n) for a, n in enumerate(n_outs)])
    if masks:
        mask &= rng.random(mask.shape) < 0.6
    n_outputs = n_blocks * n_out
    row = np.full(n_outputs, -1)
    row[outputs] = np.arange(len(outputs))
    row = row.reshape(n_blocks, n_out, 1)
    place = np.where(mask, row * n_in + inputs[:, None, :], -1)
    layer = BlockLinear(
        normal(rng, *mask.shape),
        normal(rng, n_blocks, n_out),
        torch.from_numpy(inputs),
        in_features=n_in,
        mask=None if mask.all() else torch.from_numpy(mask),
        outputs=None if len(outputs) == n_outputs else torch.from_numpy(outputs),
    )
    return Example(layer, (len(outputs), n_in), place, outputs)


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@st.composite
def examples(draw, kinds=("dense", "masked", "block", "block", "block")):
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(seeds))
    n_in, n_out = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    if kind == "dense":
        return dense_example(rng, n_in, n_out)
    if kind == "masked":
        return masked_example(rng, n_in, n_out)
    n_blocks = draw(st.integers(1, 4))
    n_in = n_blocks * draw(st.integers(1, 4)) + draw(st.sampled_from([0, 0, 1]))
    names = ("contiguous", "unread", "pads", "masks")
    options = {name: draw(st.booleans()) for name in names}
    return block_example(rng, n_in, n_blocks, n_out, **options)


def backward(function, x, seed):
    """Return outputs and the gradients of a random linear function of them."""
    x = x.clone().requires_grad_()
    out = function(x)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    (out * factors).sum().backward()
    return out.detach(), x.grad


least_rows = st.sampled_from([0, 2**31])  # outputs are column-major, or row-major
narrow = st.sampled_from([range(0), range(100)])  # no block is narrow, or every one


def column_major_from(n_rows):
    return mock.patch.object(_blocks, "MIN_COLUMN_MAJOR_ROWS", n_rows)


@given(examples(), st.integers(0, 6), st.booleans(), least_rows, seeds)
def test_values_and_gradients_are_those_of_masked_dense(
    example, n_rows, train, least_rows, seed
):
    layer = example.layer.train(train)
    weight, mask, bias = example.reference()
    x = normal(np.random.default_rng(seed), n_rows, layer.in_features)
    with column_major_from(least_rows):
        got = backward(layer, x, seed % 1000)
    expected = backward(lambda x: F.linear(x, weight * mask, bias), x, seed % 1000)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert_close(example.scatter(layer.weight.grad), weight.grad, rtol=1e-5, atol=1e-5)
    bias_grad = layer.bias.grad.flatten()[example.units]
    assert_close(bias_grad, bias.grad, rtol=1e-5, atol=1e-5)
    assert (layer.weight.grad[example.place < 0] == 0).all()


@given(examples(), st.integers(0, 6), least_rows, narrow, seeds)
def test_values_are_the_same_where_no_gradients_are_recorded(
    example, n_rows, least_rows, narrow, seed
):
    weight, _, bias = example.reference()
    x = normal(np.random.default_rng(seed), n_rows, example.layer.in_features)
    with (
        torch.no_grad(),
        column_major_from(least_rows),
        mock.patch.object(_blocks, "ROW_MAJOR_OUTPUTS", narrow),
    ):
        got = example.layer(x)
    assert_close(got, F.linear(x, weight, bias).detach(), rtol=1e-5, atol=1e-5)


@given(examples(), st.integers(0, 6), *[st.booleans()] * 3, least_rows, seeds)
def test_backward_equals_autograd(
    example, n_rows, arranged, first, column_major, least_rows, seed
):
    layer = example.layer
    rng = np.random.default_rng(seed)
    x = normal(rng, n_rows, layer.in_features)
    if arranged and isinstance(layer, BlockLinear):
        x, layer = layer.arrange(x), layer.arranged()
    gradient = normal(rng, n_rows, layer.out_features)
    if column_major:
        x, gradient = x.T.contiguous().T, gradient.T.contiguous().T
    with column_major_from(least_rows):
        x.requires_grad_()
        (layer(x) * gradient).sum().backward()
        expected = [x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]
        layer.weight.grad.fill_(torch.nan)
        layer.bias.grad.fill_(torch.nan)
        with torch.no_grad():
            got = layer.backward(x.detach(), gradient, first=first)
    if first:
        assert got is None
        got = x.grad
    # Pruned weights get the gradient that they would have if they were kept.
    assert layer.weight.grad.isfinite().all()
    layer.weight.grad[example.place < 0] = 0.0
    for a, b in zip((got, layer.weight.grad, layer.bias.grad), expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@given(examples(["masked", "block"]), st.integers(1, 6), least_rows, seeds)
def test_pruned_weights_get_the_gradient_of_a_kept_weight(
    example, n_rows, least_rows, seed
):
    layer = example.layer
    available = layer.available()
    rng = np.random.default_rng(seed)
    x = normal(rng, n_rows, layer.in_features)
    gradient = normal(rng, n_rows, layer.out_features)
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.bias.grad = torch.zeros_like(layer.bias)
    with column_major_from(least_rows), torch.no_grad():
        layer.backward(x, gradient, first=True)
    got = layer.weight.grad.clone()
    layer.zero_grad()
    layer.set_mask(available)
    (layer(x) * gradient).sum().backward()
    assert_close(got[available], layer.weight.grad[available], rtol=1e-5, atol=1e-5)


@given(examples(["block"]), st.booleans(), least_rows, seeds)
def test_arranged_columns_give_the_same_values_and_gradients(
    example, train, least_rows, seed
):
    layer = example.layer.train(train)
    x = normal(np.random.default_rng(seed), 4, layer.in_features)
    before = x.clone()
    arranged, twin = layer.arrange(x), layer.arranged()
    assert torch.equal(x, before)
    assert torch.equal(arranged, x[:, layer.inputs.flatten()])
    assert torch.equal(arranged, x) or layer.reorders_columns
    assert twin.weight is layer.weight
    assert twin.bias is layer.bias
    assert not twin.reorders_columns
    assert torch.equal(twin.arrange(arranged), arranged)
    assert twin.out_features == layer.out_features
    assert twin.n_nonzero == layer.n_nonzero
    with column_major_from(least_rows):
        expected = backward(layer, x, 0)[0]
        weight, bias = layer.weight.grad, layer.bias.grad
        layer.zero_grad()
        got = backward(twin, arranged, 0)[0]
    assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert_close(layer.bias.grad, bias, rtol=1e-5, atol=1e-5)
    assert_close(layer.weight.grad, weight, rtol=1e-5, atol=1e-5)
    assert (layer.weight.grad[example.place < 0] == 0).all()


@given(examples(), seeds)
def test_strides_of_the_input_do_not_matter(example, seed):
    x = normal(np.random.default_rng(seed), 5, example.layer.in_features)
    strided = x.T.contiguous().T
    wide = torch.cat([x, x], dim=1)[:, : x.shape[1]]
    for other in (strided, wide):
        assert_close(example.layer(other), example.layer(x), rtol=1e-5, atol=1e-5)


def test_a_dense_layer_takes_any_leading_dimensions():
    layer = DenseLinear(torch.randn(3, 40), torch.randn(3))
    x = torch.randn(2, 20, 40).permute(1, 0, 2).contiguous().permute(1, 0, 2)
    expected = F.linear(x, layer.weight, layer.bias)
    assert_close(layer(x), expected)
    assert_close(layer(x[0, 0]), expected[0, 0])


@given(examples())
def test_input_without_a_precision_is_an_error(example):
    with pytest.raises(TypeError, match=r"floating-point dtype, got torch\.int64"):
        example.layer(torch.ones(2, example.layer.in_features, dtype=torch.int64))


@given(examples(), seeds)
def test_computation_has_the_precision_of_the_input(example, seed):
    layer = example.layer.eval()
    weight, _, bias = example.reference(torch.float64)
    x = torch.from_numpy(
        np.random.default_rng(seed).normal(size=(3, layer.in_features))
    )
    out = layer(x)
    assert out.dtype == torch.float64
    assert_close(out, F.linear(x, weight, bias), rtol=1e-12, atol=1e-12)


@given(examples())
def test_a_layer_tells_what_it_holds(example):
    layer = example.layer
    weight, mask, bias = example.reference()
    assert (layer.out_features, layer.in_features) == example.shape
    assert torch.equal(layer.dense_mask(), mask)
    assert layer.dense_mask().dtype == torch.bool
    assert torch.equal(layer.dense_weight(), weight)
    assert torch.equal(layer.dense_bias(), bias)
    assert layer.n_nonzero == int(mask.sum()) + len(bias)
    assert torch.count_nonzero(layer.weight) <= mask.sum()
    assert not layer.dense_weight().requires_grad
    assert not layer.dense_bias().requires_grad


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(
        p, lr=0.05, weight_decay=0.1, fused=True
    ),
    "SGD": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
}


@given(examples(), st.sampled_from(sorted(OPTIMIZERS)), least_rows, seeds)
def test_training_is_that_of_masked_dense_and_keeps_zeros(
    example, name, least_rows, seed
):
    example.layer.double().train()
    weight, mask, bias = example.reference(torch.float64)
    rng = np.random.default_rng(seed)
    data = [torch.from_numpy(rng.normal(size=(8, n))) for n in example.shape[::-1]]
    for function, parameters in [
        (example.layer, list(example.layer.parameters())),
        (lambda x: F.linear(x, weight * mask, bias), [weight, bias]),
    ]:
        optimizer = OPTIMIZERS[name](parameters)
        for _ in range(4):
            optimizer.zero_grad()
            with column_major_from(least_rows):
                F.mse_loss(function(data[0]), data[1]).backward()
            optimizer.step()
    assert (example.layer.weight[example.place < 0] == 0).all()
    assert (example.layer.dense_weight()[~mask] == 0).all()
    assert_close(example.layer.dense_weight(), weight.detach(), rtol=1e-6, atol=1e-9)
    assert_close(example.layer.dense_bias(), bias.detach(), rtol=1e-6, atol=1e-9)
    x = data[0]
    trained = example.layer(x)
    assert_close(example.layer.eval()(x), trained, rtol=1e-12, atol=1e-12)


@given(examples(), seeds)
def test_folding_is_exact_to_rounding(example, seed):
    layer = example.layer
    rng = np.random.default_rng(seed)
    n = layer.in_features
    affine = Affine(rng.normal(size=n), rng.uniform(0.01, 100, n))
    x = torch.from_numpy(rng.normal(size=(4, n)))
    expected = copy.deepcopy(layer).double()(torch.from_numpy(affine(x.numpy())))
    mask = layer.dense_mask().clone()
    layer.fold_input(affine)
    weight, _, bias = example.reference(torch.float64)
    reach = x.abs() + torch.from_numpy(np.abs(affine.mean))
    size = 1e-6 * (reach @ weight.T.abs() + bias.abs())
    assert ((layer.double()(x) - expected).abs() <= size).all()
    assert torch.equal(layer.dense_mask(), mask)
    assert (layer.weight[example.place < 0] == 0).all()


@given(examples(), st.booleans())
def test_pickle_and_deepcopy_give_the_same_layer(example, train):
    layer = example.layer.train(train)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.ones(2, layer.in_features)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(twin) is type(layer)
        assert twin.training == train
        assert twin.state_dict().keys() == state.keys()
        for name, value in twin.state_dict().items():
            assert torch.equal(value, state[name])
            assert value.dtype == state[name].dtype
            assert value.data_ptr() != layer.state_dict()[name].data_ptr()
        assert [p.requires_grad for p in twin.parameters()] == [True, True]
        assert torch.equal(twin(x), layer(x))
        with torch.no_grad():
            twin.weight.add_(1.0)
    # Neither left a trace on the layer itself.
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("kind", ["masked", "block"])
def test_a_pickle_holds_the_kept_values_and_the_bits_of_the_mask(kind):
    rng = np.random.default_rng(0)
    if kind == "masked":
        mask = torch.from_numpy(rng.random((200, 300)) < 0.1)
        layer = MaskedLinear(normal(rng, 200, 300), normal(rng, 200), mask)
    else:
        mask = torch.from_numpy(rng.random((4, 150, 100)) < 0.1)
        inputs = torch.from_numpy(rng.permutation(400).reshape(4, 100))
        weight, bias = normal(rng, 4, 150, 100), normal(rng, 4, 150)
        layer = BlockLinear(weight, bias, inputs, in_features=400, mask=mask)
    n_inputs = layer.inputs.numel() if kind == "block" else 0
    # Indices below 400 need two bytes each.
    n_bytes = 4 * layer.n_nonzero + mask.numel() // 8 + 2 * n_inputs
    assert n_bytes < len(pickle.dumps(layer)) < n_bytes + 2048
    frozen = layer.requires_grad_(False)
    assert not pickle.loads(pickle.dumps(frozen)).weight.requires_grad


@given(examples(), seeds)
def test_a_state_dict_restores_a_layer(example, seed):
    layer, other = example.layer, copy.deepcopy(example.layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(layer.state_dict())
    x = normal(np.random.default_rng(seed), 3, layer.in_features)
    assert_close(other(x), layer(x), **exactly)


@given(examples(), seeds)
def test_a_mask_can_be_changed_where_there_are_weights(example, seed):
    layer = example.layer
    rng = np.random.default_rng(seed)
    if isinstance(layer, DenseLinear):
        with pytest.raises(TypeError, match="use a MaskedLinear"):
            layer.set_mask(torch.ones_like(layer.weight, dtype=torch.bool))
        dense, layer = layer, MaskedLinear.of(layer)
        assert layer.weight is dense.weight
        assert torch.equal(layer.dense_weight(), dense.dense_weight())
        assert layer.n_nonzero == dense.n_nonzero
    before = layer.weight.detach().clone()
    available = layer.available()
    assert available[example.place >= 0].all()
    mask = available & torch.from_numpy(rng.random(layer.weight.shape) < 0.5)
    given_mask = mask.clone()
    layer.set_mask(given_mask)
    given_mask.fill_(True)  # the layer holds a copy
    assert torch.equal(layer.mask, mask)
    assert layer.n_nonzero == int(mask.sum()) + layer.out_features
    assert layer.n_nonzero == int(layer.dense_mask().sum()) + layer.out_features
    assert_close(layer.weight.detach(), before * mask, **exactly)
    weight = layer.dense_weight()
    assert torch.equal(weight != 0, layer.dense_mask() & (weight != 0))
    x = normal(rng, 3, layer.in_features)
    expected = F.linear(x, weight, layer.dense_bias())
    assert_close(layer(x).detach(), expected, rtol=1e-5, atol=1e-5)
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin.mask, mask)
    # A weight that is kept anew starts from zero.
    layer.set_mask(available)
    assert_close(layer.weight.detach(), before * mask, **exactly)


@given(examples(["masked", "block"]))
def test_an_illegal_mask_changes_nothing(example):
    layer = example.layer
    state = copy.deepcopy(layer.state_dict())
    shape = layer.weight.shape
    illegal = [torch.ones(shape), torch.ones((*shape, 2), dtype=torch.bool)]
    if not layer.available().all():
        illegal.append(torch.ones(shape, dtype=torch.bool))
    for mask in illegal:
        with pytest.raises(ValueError, match="mask must be"):
            layer.set_mask(mask)
    after = layer.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


@given(examples())
def test_print_shows_shape_blocks_and_density(example):
    layer = example.layer
    text = repr(layer)
    n_out, n_in = example.shape
    assert f"in_features={n_in}, out_features={n_out}" in text
    if layer.mask is not None:
        density = int((example.place >= 0).sum()) / (n_in * n_out)
        assert f"density={density:.3g}" in text
    if isinstance(layer, BlockLinear):
        n_blocks, block_outputs, block_inputs = layer.weight.shape
        assert f"blocks={n_blocks} of {block_outputs}×{block_inputs}" in text


@pytest.mark.gpu
def test_layers_agree_on_the_gpu():
    rng = np.random.default_rng(0)
    options = {"unread": True, "pads": True, "masks": True}
    made = [dense_example(rng, 12, 5), masked_example(rng, 12, 5)]
    made += [block_example(rng, 12, 4, 5, contiguous=c, **options) for c in (0, 1)]
    for example in made:
        layer, x = example.layer, normal(rng, 7, 12)
        expected = layer(x)
        got = copy.deepcopy(layer).to("cuda")(x.to("cuda"))
        assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)
