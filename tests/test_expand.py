"""Laws of expansion, from a dense network to its expanded one."""

import copy
import pickle
import re
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch.nn import functional as F
from torch.testing import assert_close

from sklearn_fpe.nn import (
    MLP,
    Affine,
    BlockLinear,
    DenseLinear,
    check_expansion,
    expand,
)
from sklearn_fpe.nn._split import SPLITS as ALL_SPLITS

# Rules that expand without training.
SPLITS = [name for name, rule in ALL_SPLITS.items() if not rule.overlapping]

SHARED = ["shared", "contiguous", "feature"]
exactly = {"rtol": 0, "atol": 0}


def in_two_runs(weight, n_children, rng):
    """Deal the inputs by a rule of the caller: one partition for all, in order."""
    row = np.arange(weight.shape[1]) * n_children // weight.shape[1]
    return np.broadcast_to(row, weight.shape)


@dataclass(frozen=True)
class Case:
    """Arguments of an expansion."""

    widths: list
    expansion: int | list
    split: str
    prune: str = "magnitude"
    budget: int | None = None
    groups: list | None = None
    seed: int = 0

    @property
    def options(self):
        return {"prune": self.prune, "budget": self.budget, "groups": self.groups}

    def network(self, dtype=torch.float32):
        return dense_network(self.widths, self.seed).to(dtype)

    def expand(self, network=None, rng=None):
        network = self.network() if network is None else network
        rng = self.seed if rng is None else rng
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of expansions that cannot be had
            return expand(network, self.expansion, self.split, rng=rng, **self.options)

    def range(self):
        """Return both ends of the reachable budgets, which the error names."""
        options = {**self.options, "budget": 0}
        with pytest.raises(ValueError, match="budget") as error:
            check_expansion(self.widths, self.expansion, self.split, **options)
        ends = re.search(r"budget must be in \[(\d+), (\d+)\]", str(error.value))
        return int(ends[1]), int(ends[2])

    def pays_for_all(self, expansion):
        """Tell whether the budget is a bias and two edges or more for every unit."""
        units = np.multiply(self.widths[1:-1], expansion).sum()
        return self.budget is None or self.budget >= self.widths[-1] + 3 * units


def dense_network(widths, seed=0, activation="relu"):
    generator = torch.Generator().manual_seed(seed)
    network = MLP.dense(widths, activation, generator)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.normal_(generator=generator)
    return network


@st.composite
def cases(draw, splits=(*SPLITS, in_two_runs), prunes=("magnitude", "structured")):
    """Draw an expansion, small enough to be odd: widths of 1, budgets at the ends."""
    n_hidden = draw(st.integers(1, 3))
    widths = [draw(st.integers(1, 9)) for _ in range(n_hidden + 2)]
    factor = st.one_of(st.integers(1, 4), st.just(16))
    expansion = draw(
        st.one_of(factor, st.lists(factor, min_size=n_hidden, max_size=n_hidden))
    )
    prune = draw(st.sampled_from(prunes))
    independent = ("random", "groups")
    split = draw(
        st.sampled_from(
            [s for s in splits if prune == "magnitude" or s not in independent]
        )
    )
    groups = [j * 5 % 3 for j in range(widths[0])] if split == "groups" else None
    case = Case(
        widths, expansion, split, prune, None, groups, draw(st.integers(0, 999))
    )
    if draw(st.booleans()):
        return case
    low, high = case.range()
    budget = draw(st.one_of(st.integers(low, high), st.sampled_from([low, high])))
    return Case(widths, expansion, split, prune, budget, groups, case.seed)


def sources(expanded, n_inputs):
    """Return the parent's inputs that feed every layer, the output layer too."""
    return [torch.arange(n_inputs), *expanded.parents]


# --------------------------------------------------------------------------------------
# The split: what the children are
# --------------------------------------------------------------------------------------


@given(cases())
def test_before_pruning_children_add_up_to_their_parent(case):
    case = replace(case, budget=case.range()[1])
    network = case.network(torch.float64)
    expanded, expansion = case.expand(network)
    inputs = sources(expanded, case.widths[0])
    for level, layer in enumerate(expanded.hidden):
        parents = expanded.parents[level]
        weight = network.layers[level].weight.detach()[:, inputs[level]]
        bias = network.layers[level].bias.detach()
        assert len(parents) == len(bias) * expansion[level]
        of_parent = F.one_hot(parents, len(bias)).T.double()
        # Every edge goes to exactly one child, with its weight.
        assert_close(
            of_parent @ layer.dense_mask().double(), torch.ones_like(weight), **exactly
        )
        assert_close(of_parent @ layer.dense_weight(), weight, **exactly)
        # So do the weighted sums of any input to the layer, and the biases.
        x = torch.from_numpy(
            np.random.default_rng(case.seed).normal(size=weight.shape[1])
        )
        sums = layer(x[None])[0] - layer.dense_bias()
        assert_close(of_parent @ sums, weight @ x)
        assert_close(of_parent @ layer.dense_bias(), bias)
    # Outgoing weights are copied to every child.
    outgoing = network.layers[-1].weight.detach()[:, inputs[-1]]
    assert_close(expanded.layers[-1].dense_weight(), outgoing, **exactly)
    assert torch.equal(expanded.layers[-1].dense_bias(), network.layers[-1].bias)


@given(cases())
def test_children_hold_disjoint_parts_of_their_parents_edges(case):
    network = case.network()
    expanded, expansion = case.expand(network)
    inputs = sources(expanded, case.widths[0])
    units = [*expanded.parents, torch.arange(case.widths[-1])]
    for dense, layer, parents, columns, n_children in zip(
        network.layers, expanded.layers, units, inputs, [*expansion, 1], strict=True
    ):
        kept = layer.dense_mask()
        of_parent = F.one_hot(parents, dense.out_features).T.float()
        assert (of_parent @ kept.float()).max() <= 1
        weight = dense.weight.detach()[parents][:, columns]
        assert_close(layer.dense_weight(), weight * kept, **exactly)
        bias = dense.bias.detach()[parents] / n_children
        assert_close(layer.dense_bias(), bias, **exactly)


@given(cases(splits=["groups"], prunes=["magnitude"]))
def test_no_group_is_torn(case):
    expanded, _ = case.expand()
    kept = expanded.layers[0].dense_mask()
    for parent in range(case.widths[1]):
        of_parent = kept[expanded.parents[0] == parent]
        for group in set(case.groups):
            members = torch.tensor([g == group for g in case.groups])
            assert (of_parent[:, members].any(dim=1)).sum() <= 1


def test_a_callable_splits_every_layer():
    called = []

    def rule(weight, n_children, rng):
        called.append((weight.shape, n_children))
        return in_two_runs(weight, n_children, rng)

    expand(dense_network([8, 4, 6, 3]), [2, 3], rule)
    assert called == [((4, 8), 2), ((6, 8), 3)]


# --------------------------------------------------------------------------------------
# The budget
# --------------------------------------------------------------------------------------


def parameters_of(expanded):
    """Count kept positions from the masks, and the non-zeros of all tensors."""
    kept = sum(int(layer.dense_mask().sum()) for layer in expanded.layers)
    kept += sum(layer.out_features for layer in expanded.layers)
    return kept, sum(int(torch.count_nonzero(p)) for p in expanded.parameters())


@given(cases())
def test_budget(case):
    network = case.network()
    expanded, expansion = case.expand(network)
    budget = network.n_nonzero if case.budget is None else case.budget
    kept, nonzero = parameters_of(expanded)
    assert expanded.n_nonzero == kept
    assert nonzero <= kept <= budget
    if case.prune == "magnitude":
        assert kept == budget
    asked = np.broadcast_to(case.expansion, len(expansion))
    assert all(1 <= a <= b for a, b in zip(expansion, asked, strict=True))


@given(cases())
def test_every_unit_has_inputs_and_outputs(case):
    expanded, expansion = case.expand()
    assume(case.prune == "structured" or case.pays_for_all(expansion))
    for into, out in pairwise(layer.dense_mask() for layer in expanded.layers):
        assert into.any(dim=1).all()
        assert out.any(dim=0).all()


@given(cases(prunes=["magnitude"]))
def test_no_layer_starves(case):
    network = case.network()
    expanded, expansion = case.expand(network)
    assume(case.pays_for_all(expansion))
    assume(case.budget is None or case.budget >= network.n_nonzero)
    for dense, layer in zip(network.layers, expanded.layers, strict=True):
        assert layer.dense_mask().sum() >= dense.weight.numel() // 2


def test_the_first_layer_survives_many_copies_of_large_outgoing_weights():
    network = dense_network([64, 16, 100])
    with torch.no_grad():
        network.layers[1].weight.mul_(100)
    with pytest.warns(UserWarning, match=r"outgoing weights of the children \(25600\)"):
        expanded, expansion = expand(network, 16, rng=0)
    assert expansion == (16,)
    assert expanded.n_nonzero == network.n_nonzero
    assert expanded.layers[0].dense_mask().sum() >= 64 * 16 // 2


def block_shapes(layer):
    """Return (inputs, children) of every block, by what the units read."""
    reads, n_children = torch.unique(layer.dense_mask(), dim=0, return_counts=True)
    assert reads.sum(dim=0).max() <= 1
    return list(zip(reads.sum(dim=1).tolist(), n_children.tolist(), strict=True))


@given(cases(prunes=["structured"]))
def test_structured_falls_short_by_less_than_the_cheapest_unit(case):
    expanded, expansion = case.expand()
    budget = case.budget or case.network().n_nonzero
    blocks = [block_shapes(layer) for layer in expanded.hidden]
    assert [len(b) for b in blocks] == list(expansion)
    fan_outs = [min(n for _, n in b) for b in blocks[1:]] + [case.widths[-1]]
    costs = [
        n_in + 1 + fan_out
        for of_layer, width, fan_out in zip(
            blocks, case.widths[1:], fan_outs, strict=False
        )
        for n_in, n_children in of_layer
        if n_children < width
    ]
    if sum(n_in for n_in, _ in blocks[0]) < case.widths[0]:
        costs.append(min(n_children for _, n_children in blocks[0]))
    assert all(budget - expanded.n_nonzero < cost for cost in costs)


@given(cases(prunes=["structured"]))
def test_structured_holds_kept_parameters_only(case):
    expanded, expansion = case.expand()
    assert isinstance(expanded.layers[-1], DenseLinear)
    for layer, n_children in zip(expanded.hidden, expansion, strict=True):
        shapes = block_shapes(layer)
        n_in, n_units = np.max(shapes, axis=0)
        if not getattr(layer, "reorders_columns", True):
            # Runs of columns stand whole where nearly all are read.
            assert sum(n for n, _ in shapes) >= 0.75 * layer.in_features
            n_in = layer.in_features // n_children
        padded = set(shapes) != {(n_in, n_units)}
        assert isinstance(layer, BlockLinear | DenseLinear)
        assert (getattr(layer, "mask", None) is not None) == padded
        assert layer.weight.numel() == n_children * n_in * n_units
        if not padded:
            assert sum(p.numel() for p in layer.parameters()) == layer.n_nonzero


# --------------------------------------------------------------------------------------
# Execution
# --------------------------------------------------------------------------------------


class MaskedDense(torch.nn.Module):
    """The naive way to run an expanded network."""

    def __init__(self, expanded):
        super().__init__()
        tensors = [
            (
                layer.dense_weight().clone(),
                layer.dense_bias().clone(),
                layer.dense_mask(),
            )
            for layer in expanded.layers
        ]
        self.weights = torch.nn.ParameterList([weight for weight, _, _ in tensors])
        self.biases = torch.nn.ParameterList([bias for _, bias, _ in tensors])
        self.masks = [mask for _, _, mask in tensors]

    def forward(self, x):
        tensors = zip(self.weights, self.biases, self.masks, strict=True)
        for level, (weight, bias, mask) in enumerate(tensors):
            x = F.linear(x.relu() if level else x, weight * mask, bias)
        return x


def steps(module, make_optimizer, x, y, n_steps=3):
    """Train, and return the gradient of the input in the last step."""
    optimizer = make_optimizer(module.parameters())
    for _ in range(n_steps):
        x = x.detach().requires_grad_()
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        optimizer.step()
    return x.grad


@given(
    cases(),
    st.sampled_from(
        [
            lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
        ]
    ),
)
def test_every_path_trains_as_masked_dense_and_pruned_weights_stay_zero(
    case, make_optimizer
):
    expanded, _ = case.expand(case.network(torch.float64))
    naive = MaskedDense(expanded)
    generator = torch.Generator().manual_seed(case.seed)
    x, y = (
        torch.randn(6, n, dtype=torch.float64, generator=generator)
        for n in (case.widths[0], case.widths[-1])
    )
    assert_close(expanded(x), naive(x), rtol=1e-9, atol=1e-9)
    n_nonzero = expanded.n_nonzero
    gradients = [steps(m, make_optimizer, x, y) for m in (expanded.train(), naive)]
    assert_close(*gradients, rtol=1e-6, atol=1e-8)
    assert_close(expanded(x), naive(x), rtol=1e-6, atol=1e-8)
    assert_close(expanded.eval()(x), naive(x), rtol=1e-6, atol=1e-8)
    for layer, mask in zip(expanded.layers, naive.masks, strict=True):
        assert (layer.dense_weight()[~mask] == 0).all()
        if getattr(layer, "mask", None) is not None:
            assert (layer.weight[~layer.mask] == 0).all()
    assert expanded.n_nonzero == n_nonzero
    assert parameters_of(expanded)[1] <= n_nonzero


@given(cases())
def test_expansion_1_is_the_dense_network_to_the_bit(case):
    case = replace(case, expansion=1, budget=None)
    network = case.network()
    expanded, expansion = case.expand(network)
    assert set(expansion) == {1}
    assert expanded.n_nonzero == network.n_nonzero
    x = torch.randn(
        7, case.widths[0], generator=torch.Generator().manual_seed(case.seed)
    )
    assert torch.equal(expanded(x), network(x))
    for ours, theirs in zip(expanded.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@given(cases(splits=SHARED))
def test_blocks_run_shared_partitions_and_are_no_larger_than_the_parent(case):
    expanded, expansion = case.expand()
    n_inputs = case.widths[0]
    for width, n_children, layer in zip(
        case.widths[1:], expansion, expanded.hidden, strict=False
    ):
        if n_children > 1:
            assert isinstance(layer, BlockLinear)
            longest_run = -(-n_inputs // n_children)
            assert layer.weight.numel() <= n_children * longest_run * width
        n_inputs = width * n_children


def test_contiguous_blocks_select_no_columns():
    network = dense_network([32, 16, 3])
    most = check_expansion([32, 16, 3], 4, "contiguous", budget=None)[0].n_parameters()
    for split, reorders in [("contiguous", False), ("shared", True)]:
        expanded, _ = expand(network, 4, split, budget=most, rng=0)
        assert expanded.layers[0].reorders_columns == reorders
        assert expanded.reorders_columns == reorders


def test_contiguous_blocks_multiply_unread_columns_instead_of_selecting():
    network = dense_network([120, 16, 2])
    expanded, _ = expand(network, 4, "contiguous", prune="structured", rng=0)
    layer = expanded.layers[0]
    n_read = int(layer.dense_mask().any(0).sum())
    assert 0.9 * 120 <= n_read < 120
    assert not layer.reorders_columns
    assert expanded.arranged() is expanded
    # Blocks that read far fewer columns select them.
    with pytest.warns(UserWarning, match="outgoing weights"):
        small, _ = expand(network, 4, "contiguous", prune="structured", budget=80)
    assert int(small.layers[0].dense_mask().any(0).sum()) < 90
    assert small.layers[0].reorders_columns


# --------------------------------------------------------------------------------------
# State: pickles, generators, the network that is expanded
# --------------------------------------------------------------------------------------


@given(cases())
def test_pickle_and_deepcopy_give_the_same_network(case):
    expanded, _ = case.expand()
    x = torch.randn(3, case.widths[0], generator=torch.Generator().manual_seed(1))
    for twin in (pickle.loads(pickle.dumps(expanded)), copy.deepcopy(expanded)):
        assert torch.equal(twin(x), expanded(x))
        assert twin.n_nonzero == expanded.n_nonzero
        ours, theirs = twin.state_dict(), expanded.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("split", ["random", "shared"])
def test_a_pickle_of_a_pruned_network_holds_kept_values_only(split):
    network = dense_network([256, 32, 20])
    expanded, _ = expand(network, 8, split, rng=0)
    positions = sum(layer.weight.numel() for layer in expanded.layers)
    most = 4 * expanded.n_nonzero + positions / 8 + 8 * 2 * (256 + 8 * 32)
    assert len(pickle.dumps(expanded)) < most + 8192
    structured, _ = expand(network, 8, prune="structured", rng=0)
    dense_size = len(pickle.dumps(network))
    assert len(pickle.dumps(structured)) < 1.1 * dense_size + 4096


@given(cases())
def test_expand_follows_rng_and_changes_nothing_else(case):
    network = case.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    results = [
        case.expand(network, rng=rng)[0].state_dict()
        for rng in (case.seed, case.seed, np.random.default_rng(case.seed))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expand(network, case.expansion, case.split, **case.options)
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert all(torch.equal(other[name], results[0][name]) for name in other)
    assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in case.expand(network)[0].parameters():
            parameter.add_(1.0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_seed_matters():
    network = dense_network([30, 6, 4])
    first, second = (expand(network, 3, "random", rng=seed)[0] for seed in (0, 1))
    masks = [first.layers[0].dense_mask(), second.layers[0].dense_mask()]
    assert masks[0].shape != masks[1].shape or (masks[0] != masks[1]).any()


def test_activation_input_map_and_precision_are_kept():
    network = dense_network([6, 4, 2], activation="tanh").double()
    affine = Affine(np.array([0.0, 5e4, 0, 0, 1, 2]), np.ones(6))
    network.fold_input(affine)
    expanded, _ = expand(network, 1)
    x = torch.from_numpy(affine.mean) + torch.randn(
        3, 6, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(expanded(x), network(x))
    wide, _ = expand(network, 2, rng=0)
    assert wide.activation is network.activation
    assert torch.equal(wide.input_mean, network.input_mean)
    assert torch.equal(wide.input_scale, network.input_scale)
    assert wide.input_mean is not network.input_mean
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


# --------------------------------------------------------------------------------------
# What cannot be had
# --------------------------------------------------------------------------------------


@given(cases())
def test_one_warning_where_an_expansion_cannot_be_had(case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, expansion = expand(
            case.network(), case.expansion, case.split, rng=0, **case.options
        )
    asked = tuple(np.broadcast_to(case.expansion, len(expansion)).tolist())
    budget = case.budget or case.network().n_nonzero
    copies = case.widths[-1] * case.widths[-2] * expansion[-1]
    messages = [str(w.message) for w in caught]
    if expansion != asked:
        (message,) = messages
        assert f"expansion={asked} is not possible with" in message
        assert f"using expansion={expansion}" in message
    elif max(expansion) > 1 and copies > budget:
        (message,) = messages
        assert f"({copies}) alone exceed the budget ({budget})" in message
    else:
        assert not messages


@given(cases())
def test_the_expansion_done_is_the_largest_that_inputs_allow(case):
    # With a budget that keeps everything, only the inputs limit the expansion.
    case = replace(case, budget=case.range()[1])
    _, expansion = case.expand()
    limit = len(set(case.groups)) if case.groups else case.widths[0]
    asked = np.broadcast_to(case.expansion, len(expansion))
    for done, wanted, width in zip(expansion, asked, case.widths[1:], strict=False):
        assert done == min(wanted, limit)
        limit = width * done


@given(cases())
def test_both_ends_of_the_budget_are_reached_and_nothing_beyond(case):
    low, high = case.range()
    for budget in (low, high):
        expanded, _ = replace(case, budget=budget).expand()
        assert expanded.n_nonzero == budget
    for budget in (low - 1, high + 1, -3):
        with pytest.raises(ValueError, match=rf"budget .*\[{low}, {high}\].*{budget}"):
            replace(case, budget=budget).expand()


ERRORS = [
    (
        {"split": "clause"},
        r"split must be one of .*a SplitRule or a callable, got 'clause'",
    ),
    ({"prune": "random"}, r"prune must be one of .*'structured'.*got 'random'"),
    ({"expansion": 0}, r"expansion must be integers >= 1, got 0"),
    ({"expansion": [2, -1]}, r"expansion must be integers >= 1, got \[2, -1\]"),
    ({"expansion": 2.5}, r"expansion must be integers >= 1, got 2.5"),
    ({"expansion": True}, r"expansion must be integers >= 1, got True"),
    ({"expansion": [2]}, r"expansion .* one entry per hidden layer.* 2, got .*\[2\]"),
    ({"expansion": (2, 2, 2)}, r"one entry per hidden layer.*\(2, 2, 2\)"),
    ({"budget": 30.5}, r"budget must be an integer or None, got 30.5"),
    ({"split": "groups"}, r"needs groups, .* every input, got None"),
    ({"split": "groups", "groups": [0, 1]}, r"groups .*shape \(6,\), got shape \(2,\)"),
    (
        {"split": "random", "prune": "structured"},
        r"prune=\"structured\" .*split='random'.*\"shared\", \"contiguous\"",
    ),
    (
        {"split": "groups", "prune": "structured", "groups": [0, 1, 2, 0, 1, 2]},
        r"prune=\"structured\" .*split='groups'.*prune=\"magnitude\"",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_name_the_parameter_and_what_was_given(arguments, message):
    arguments = {"expansion": 2, "split": "shared", **arguments}
    with pytest.raises(ValueError, match=message):
        check_expansion([6, 4, 3, 2], **arguments)
    with pytest.raises(ValueError, match=message):
        expand(dense_network([6, 4, 3, 2]), **arguments)


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_a_network_without_hidden_layers_keeps_its_largest_weights(n_in, n_out, data):
    network = dense_network([n_in, n_out])
    weight = np.random.default_rng(n_in).permutation(n_in * n_out) + 1.0
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.from_numpy(weight.reshape(n_out, n_in)))
    budget = data.draw(st.integers(n_out + 1, n_out * (n_in + 1)))
    expanded, expansion = expand(network, 2, budget=budget)
    assert expansion == ()
    assert expanded.n_nonzero == budget
    kept = expanded.layers[0].dense_mask().numpy().ravel()
    assert_array_equal(kept, weight > len(weight) - (budget - n_out))


def test_only_a_dense_network_can_be_expanded():
    network = dense_network([6, 4, 2])
    expanded, _ = expand(network, 2, rng=0)
    with pytest.raises(ValueError, match=r"DenseLinear layers only, got .*BlockLinear"):
        expand(expanded, 2)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda w, n, rng: (np.arange(w.size) % n).reshape(w.shape),
            "a callable split must return equal rows",
        ),
        (
            lambda w, n, rng: np.zeros(w.shape, dtype=int),
            r"must return all children in \[0, 2\), got \[0\]",
        ),
    ],
)
def test_structured_pruning_needs_a_shared_partition_without_empty_children(
    rule, message
):
    with pytest.raises(ValueError, match=message):
        expand(dense_network([5, 4, 2]), 2, rule, prune="structured")


def test_a_callable_may_leave_children_empty():
    def into_the_first(weight, n_children, rng):
        return np.zeros(weight.shape, dtype=int)

    network = dense_network([5, 4, 2])
    expanded, _ = expand(network, 2, into_the_first)
    assert expanded.n_nonzero == network.n_nonzero
    assert_array_equal(expanded.parents[0], np.arange(4))
    with pytest.raises(ValueError, match=r"budget must be at most 34, .* got 40"):
        expand(network, 2, into_the_first, budget=40)


@pytest.mark.gpu
def test_expansion_on_the_gpu_is_that_on_the_cpu():
    network = dense_network([24, 12, 8, 5])
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
    for split, prune in [
        ("random", "magnitude"),
        ("shared", "magnitude"),
        ("contiguous", "structured"),
    ]:
        there = copy.deepcopy(network).to("cuda")
        expected = expand(network, 3, split, prune=prune, rng=0)[0]
        got = expand(there, 3, split, prune=prune, rng=0)[0]
        assert {p.device.type for p in got.parameters()} == {"cuda"}
        assert {b.device.type for b in got.buffers()} == {"cuda"}
        assert_close(got(x.to("cuda")).cpu(), expected(x), rtol=1e-2, atol=1e-2)
