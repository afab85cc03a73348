"""Laws of the split rules."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sklearn_fpe.nn import is_shared, partition
from sklearn_fpe.nn._split import SPLITS, get_split

DISJOINT = [name for name, rule in SPLITS.items() if not rule.overlapping]
BALANCED = [split for split in DISJOINT if split != "groups"]
SHARED = ["shared", "contiguous", "feature"]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def layers(draw, splits=DISJOINT):
    """Draw a weight matrix, a number of children that can be had, split and groups."""
    n_neurons, n_inputs = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    split = draw(st.sampled_from(splits))
    rng = np.random.default_rng(draw(seeds))
    weight = rng.standard_normal((n_neurons, n_inputs))
    if draw(st.booleans()):
        weight = weight.round()  # ties, zeros and equal columns
    groups = None
    if split == "groups":
        groups = rng.integers(0, draw(st.integers(1, 5)), size=n_inputs)
        groups = np.array(["red", "blue", "green", "black", "white"])[groups]
    n_children = draw(st.integers(1, get_split(split).max_children(n_inputs, groups)))
    return weight, n_children, split, groups


@given(layers(), seeds)
def test_every_edge_goes_to_exactly_one_child(layer, seed):
    weight, n_children, split, groups = layer
    children = partition(weight, n_children, split, groups=groups, rng=seed)
    assert children.shape == weight.shape
    assert np.issubdtype(children.dtype, np.integer)
    # One value per edge in the range: coverage and disjointness. No child is empty.
    for row in children:
        assert_array_equal(np.unique(row), np.arange(n_children))


@given(layers(BALANCED), seeds)
def test_fan_ins_of_children_differ_by_at_most_one(layer, seed):
    weight, n_children, split, _ = layer
    for row in partition(weight, n_children, split, rng=seed):
        fan_ins = np.bincount(row, minlength=n_children)
        assert fan_ins.max() - fan_ins.min() <= 1


@given(layers(SHARED), seeds)
def test_shared_splits_deal_all_neurons_alike(layer, seed):
    weight, n_children, split, _ = layer
    children = partition(weight, n_children, split, rng=seed)
    assert is_shared(children)
    assert_array_equal(children, np.broadcast_to(children[0], children.shape))


@given(layers(["contiguous"]))
def test_contiguous_children_read_runs_of_inputs_in_order(layer):
    weight, n_children, split, _ = layer
    row = partition(weight, n_children, split)[0]
    assert (np.diff(row) >= 0).all()


@given(layers(["groups"]), seeds)
def test_groups_are_never_torn_and_dealt_evenly(layer, seed):
    weight, n_children, split, groups = layer
    names, sizes = np.unique(groups, return_counts=True)
    for row in partition(weight, n_children, split, groups=groups, rng=seed):
        for name in names:
            assert len(np.unique(row[groups == name])) == 1
        fan_ins = np.bincount(row, minlength=n_children)
        assert fan_ins.max() - fan_ins.min() <= sizes.max()


@pytest.mark.parametrize("split", ["random", "groups"])
def test_independent_splits_deal_each_neuron_on_its_own(split):
    groups = np.arange(60) // 3
    children = partition(np.ones((5, 60)), 4, split, groups=groups, rng=0)
    assert not is_shared(children)
    assert len(np.unique(children, axis=0)) == 5


@pytest.mark.parametrize("seed", range(10))
def test_feature_split_keeps_inputs_that_are_used_alike_together(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.repeat([0, 1, 2], 5))
    profiles = 10 * np.eye(3)[kinds]
    weight = (profiles + rng.uniform(-0.1, 0.1, profiles.shape)).T
    row = partition(weight, 3, "feature", rng=seed)[0]
    for kind in range(3):
        assert len(np.unique(row[kinds == kind])) == 1


@given(layers(), seeds)
def test_partition_follows_rng_and_leaves_global_generators_alone(layer, seed):
    weight, n_children, split, groups = layer
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    before = weight.copy()
    first, second, third = (
        partition(weight, n_children, split, groups=groups, rng=rng)
        for rng in (seed, seed, np.random.default_rng(seed))
    )
    assert_array_equal(first, second)
    assert_array_equal(first, third)
    partition(weight, n_children, split, groups=groups)
    assert_array_equal(weight, before)
    assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_generator_moves_on():
    rng = np.random.default_rng(0)
    first, second = (partition(np.ones((1, 40)), 4, "random", rng=rng) for _ in "ab")
    assert (first != second).any()


@given(layers(["random"]), seeds)
def test_a_callable_gets_weight_n_children_and_rng(layer, seed):
    weight, n_children, _, _ = layer
    children = partition(weight, n_children, "random", rng=seed)
    given_arguments = []

    def rule(weight, n_children, rng):
        given_arguments.extend([weight, n_children, rng])
        return children.astype(np.int8).tolist()

    assert_array_equal(partition(weight, n_children, rule, rng=seed), children)
    assert_array_equal(given_arguments[0], weight)
    assert given_arguments[1] == n_children
    assert isinstance(given_arguments[2], np.random.Generator)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((2, 3), int), r"int array of shape \(2, 4\).*shape \(2, 3\)"),
        (np.zeros((2, 4)), r"int array of shape \(2, 4\).*float64"),
        (np.full((2, 4), 3), r"children in \[0, 3\).*\[3, 3\]"),
        (np.full((2, 4), -1), r"children in \[0, 3\).*\[-1, -1\]"),
    ],
)
def test_a_callable_must_return_a_partition(returned, message):
    with pytest.raises(ValueError, match=message):
        partition(np.ones((2, 4)), 3, lambda weight, n_children, rng: returned)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (3, "clause"),
            "split must be one of .*'groups'.* or a callable, got 'clause'",
        ),
        ((0, "shared"), r"n_children must be an integer in \[1, 4\].*got 0"),
        ((5, "random"), r"n_children must be an integer in \[1, 4\].*4 inputs, got 5"),
        ((2.5, "shared"), r"n_children must be an integer in \[1, 4\].*got 2.5"),
        ((2, "groups"), "groups, the group label of every input, got None"),
    ],
)
def test_errors_name_the_parameter_and_what_was_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        partition(np.ones((2, 4)), *arguments)


def test_errors_of_groups_and_weight():
    weight = np.ones((2, 4))
    with pytest.raises(ValueError, match=r"groups .* shape \(4,\), got shape \(3,\)"):
        partition(weight, 2, "groups", groups=[0, 1, 1])
    with pytest.raises(ValueError, match=r"n_children .* \[1, 2\] for split='groups'"):
        partition(weight, 3, "groups", groups=[0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"weight must have shape .* got shape \(4,\)"):
        partition(np.ones(4), 2)
