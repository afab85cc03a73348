"""Laws of the prune rules, on arrays: what is kept of an expanded network."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sklearn_fpe.nn import Shape, check_expansion, partition
from sklearn_fpe.nn._magnitude import prune_magnitude
from sklearn_fpe.nn._prune import get_prune
from sklearn_fpe.nn._split import SPLITS, get_split
from sklearn_fpe.nn._structured import (
    choose_inputs,
    choose_units,
    least_parents,
    structured_count,
    structured_sizes,
)

DISJOINT = [name for name, rule in SPLITS.items() if not rule.overlapping]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw, prune="magnitude", largest_width=8, splits=DISJOINT):
    """Draw the shape of a network, with expansions that can be had, and a budget."""
    n_hidden = draw(st.integers(1, 3))
    width = st.integers(1, largest_width)
    widths = [draw(width) for _ in range(n_hidden + 2)]
    asked = [draw(st.integers(1, 16)) for _ in range(n_hidden)]
    split = draw(st.sampled_from(splits))
    groups = [j % 3 for j in range(widths[0])] if split == "groups" else None
    settings = {"prune": prune, "groups": groups}
    sizes, budget = check_expansion(widths, asked, split, **settings)
    if not draw(st.booleans()):
        low = get_prune(prune).least_budget(sizes.parent())
        budget = draw(st.integers(low, sizes.n_parameters()))
        sizes, budget = check_expansion(
            widths, sizes.expansion, split, budget=budget, **settings
        )
    return sizes, budget, split, groups


def expanded(sizes, split, groups, seed):
    """Make weights of parents over the units before them, and their partitions."""
    rng = np.random.default_rng(seed)
    weights, children = [], []
    n_sources = [sizes.n_inputs, *sizes.hidden]
    for level, n_rows in enumerate([*sizes.hidden, sizes.n_outputs]):
        # Scales that differ by layer: without a floor one of them would starve.
        weight = rng.standard_normal((n_rows, n_sources[level])) * 10 ** rng.uniform(
            -2, 2
        )
        if seed % 3 == 0:
            weight = weight.round()  # ties and zeros
        copies = sizes.expansion[level - 1] if level else 1
        weights.append(np.tile(weight, (1, copies)))
    for level, n_children in enumerate(sizes.expansion):
        rule = get_split(split).at_level(level)
        children.append(
            partition(weights[level], n_children, rule, groups=groups, rng=rng)
        )
    return weights, children


def unit_edges(alive, keep, children, sizes):
    """Count the kept edges into and out of every unit of each hidden layer."""
    for level, n_parents in enumerate(sizes.hidden):
        unit = children[level] * n_parents + np.arange(n_parents)[:, None]
        into = np.bincount(unit[keep[level]], minlength=len(alive[level]))
        yield into, keep[level + 1].sum(axis=0)


def count(alive, keep, sizes):
    kept = [a.sum() for a in alive] + [k.sum() for k in keep]
    return int(sum(kept)) + sizes.n_outputs


def pays_for_all(sizes, budget):
    """Tell whether the budget pays a bias and two edges for every unit."""
    return budget >= sizes.n_outputs + 3 * sum(sizes.fan_ins()[1:])


# --------------------------------------------------------------------------------------
# Shape
# --------------------------------------------------------------------------------------


@given(shapes())
def test_parameters_are_counted_as_they_are(shape):
    sizes, _, _, _ = shape
    weights, _ = expanded(sizes, "shared", None, 0)
    biases = sum(sizes.fan_ins()[1:]) + sizes.n_outputs
    assert sizes.n_parameters() == sum(w.size for w in weights) + biases
    parent = sizes.parent()
    assert parent == replace(sizes, expansion=(1,) * len(sizes.hidden))
    widths = [sizes.n_inputs, *sizes.hidden, sizes.n_outputs]
    assert sizes.widths == widths
    dense = sum((n_in + 1) * n_out for n_in, n_out in pairwise(widths))
    assert parent.n_parameters() == dense


# --------------------------------------------------------------------------------------
# Magnitude
# --------------------------------------------------------------------------------------


@given(shapes(), seeds)
def test_magnitude_meets_the_budget_and_leaves_no_idle_unit(shape, seed):
    sizes, budget, split, groups = shape
    weights, children = expanded(sizes, split, groups, seed)
    alive, keep = prune_magnitude(weights, children, sizes, budget)
    assert count(alive, keep, sizes) == budget
    for units, (into, out) in zip(
        alive, unit_edges(alive, keep, children, sizes), strict=True
    ):
        assert not into[~units].any()
        assert not out[~units].any()
        if pays_for_all(sizes, budget):
            assert into[units].all()
            assert out[units].all()


@given(shapes(), seeds, st.floats(0, 0.5))
def test_magnitude_starves_no_layer(shape, seed, floor):
    sizes, budget, split, groups = shape
    weights, children = expanded(sizes, split, groups, seed)
    _, keep = prune_magnitude(weights, children, sizes, budget, floor=floor)
    of_parent = np.array(
        [w.size / a for w, a in zip(weights, (1, *sizes.expansion), strict=True)]
    )
    n_biases = sizes.parent().n_parameters() - of_parent.sum()
    share = min(1, (budget - n_biases) / of_parent.sum())
    kept = np.array([k.sum() for k in keep])
    assert (kept > 0).all()
    if pays_for_all(sizes, budget):
        assert (kept >= np.floor(floor * share * of_parent)).all()


# Most random shapes leave some unit without a large weight: that is what is filtered.
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(shapes(), seeds)
def test_the_largest_weights_are_kept_where_nothing_else_matters(shape, seed):
    sizes, budget, split, groups = shape
    weights, children = expanded(sizes, split, groups, seed)
    ends = np.cumsum([w.size for w in weights])
    flat = np.random.default_rng(seed).permutation(ends[-1]) + 1.0
    n_weights = budget - sizes.n_outputs - sum(sizes.fan_ins()[1:])
    largest = flat > len(flat) - n_weights

    def by_layer(array):
        parts = zip(np.split(array, ends[:-1]), weights, strict=True)
        return [part.reshape(w.shape) for part, w in parts]

    everyone = [np.ones(n, dtype=bool) for n in sizes.fan_ins()[1:]]
    edges = unit_edges(everyone, by_layer(largest), children, sizes)
    assume(all(into.all() and out.all() for into, out in edges))
    alive, keep = prune_magnitude(
        by_layer(flat), children, sizes, budget, floor=0.0, crowding=np.inf
    )
    for got, expected in zip(
        [*alive, *keep], [*everyone, *by_layer(largest)], strict=True
    ):
        assert_array_equal(got, expected)


@pytest.mark.parametrize("crowding", [1.0, 2.0, 3.0, np.inf])
@given(seed=seeds)
def test_crowding_leaves_the_strongest_children_of_every_run(crowding, seed):
    n_inputs, width, n_outputs, n_children = 40, 25, 20, 8
    sizes = Shape(n_inputs, (width,), n_outputs, (n_children,))
    weights, children = expanded(sizes, "shared", None, seed)
    budget = sizes.parent().n_parameters()
    (alive,), keep = prune_magnitude(
        weights, children, sizes, budget, floor=0.5, crowding=crowding
    )
    assert count([alive], keep, sizes) == budget

    def size(n_of_run):
        return n_of_run * (n_inputs + n_children * (1 + n_outputs)) + n_outputs

    # No more than `crowding` allows, unless budget or first layer need them.
    counts = range(1, width + 1)
    least = min(n for n in counts if size(n) >= budget and n >= 0.5 * width)
    most = max([n for n in counts if size(n) < crowding * budget], default=least)
    out = np.linalg.norm(weights[1][:, :width], axis=0)
    for block, living in enumerate(alive.reshape(n_children, width)):
        strength = out * np.linalg.norm(weights[0] * (children[0] == block), axis=1)
        weakest = np.sort(strength)[::-1][max(least, most) - 1]
        assert strength[living].min(initial=np.inf) >= weakest * (1 - 1e-12)


@given(shapes(), seeds)
def test_magnitude_depends_on_relative_magnitudes_only(shape, seed):
    sizes, budget, split, groups = shape
    weights, children = expanded(sizes, split, groups, seed)
    alive, keep = prune_magnitude(weights, children, sizes, budget)
    # Neither sign nor scale matter, powers of two being exact.
    weights = [-0.25 * w for w in weights]
    same_alive, same_keep = prune_magnitude(weights, children, sizes, budget)
    for got, expected in zip([*same_alive, *same_keep], [*alive, *keep], strict=True):
        assert_array_equal(got, expected)


@pytest.mark.parametrize("hidden", [(2,), (4,), (2, 3), (1, 4), (4, 1), (2, 2, 2)])
def test_the_smallest_budgets_leave_a_path_through_all_layers(hidden):
    sizes = Shape(1, hidden, 1, (1,) * len(hidden))
    weights, children = expanded(sizes, "shared", None, 1)
    least, most = get_prune("magnitude").least_budget(sizes), sizes.n_parameters()
    for budget in range(least, most + 1):
        alive, keep = prune_magnitude(weights, children, sizes, budget)
        assert count(alive, keep, sizes) == budget
        reached = np.ones(1, dtype=int)
        for mask in keep:
            reached = mask.astype(int) @ reached
        assert reached.any()


def test_equal_copies_are_spread_over_the_children():
    # Every outgoing weight is 1 and tied with its copies: one copy of each is kept.
    sizes = Shape(n_inputs=40, hidden=(4,), n_outputs=4, expansion=(4,))
    weights = [np.full((4, 40), 2.0), np.ones((4, 16))]
    children = [partition(weights[0], 4, "contiguous")]
    budget = 4 * 40 + 16 + 4 + 16  # as many outgoing weights as the parent has
    _, (_, outgoing) = prune_magnitude(
        weights, children, sizes, budget, crowding=np.inf
    )
    assert outgoing.sum() == 16
    assert_array_equal(outgoing.reshape(4, 4, 4).sum(axis=1), np.ones((4, 4)))
    assert_array_equal(outgoing.sum(axis=0), np.ones(16))


def test_children_without_inputs_are_removed_or_the_budget_is_an_error():
    sizes = Shape(n_inputs=6, hidden=(2,), n_outputs=2, expansion=(3,))
    weights = [np.ones((2, 6)), np.ones((2, 6))]
    children = [np.zeros((2, 6), dtype=int)]  # all inputs go to the first child
    budget = sizes.parent().n_parameters()
    (alive,), keep = prune_magnitude(weights, children, sizes, budget)
    assert_array_equal(alive, [True, True, False, False, False, False])
    assert count([alive], keep, sizes) == budget
    with pytest.raises(ValueError, match=f"budget must be at most {budget}, .* got 25"):
        prune_magnitude(weights, children, sizes, 25)


# --------------------------------------------------------------------------------------
# Structured
# --------------------------------------------------------------------------------------


@given(shapes("structured", splits=["shared"]), st.floats(0, 1))
def test_structured_sizes_fit_the_budget(shape, input_share):
    sizes, budget, _, _ = shape
    n_reads, n_parents = structured_sizes(sizes, budget, input_share)
    assert structured_count(sizes, n_reads, n_parents) <= budget
    assert sizes.expansion[0] <= n_reads <= sizes.n_inputs
    for width, least, n in zip(
        sizes.hidden, least_parents(sizes), n_parents, strict=True
    ):
        assert least <= n <= width
    # Nothing that all blocks take alike could still be added.
    more = [(n_reads + 1, n_parents)] if n_reads < sizes.n_inputs else []
    for level, width in enumerate(sizes.hidden):
        if n_parents[level] < width:
            wider = [n + (i == level) for i, n in enumerate(n_parents)]
            more.append((n_reads, wider))
    for larger in more:
        assert structured_count(sizes, *larger) > budget


@given(shapes("structured", splits=["shared"]), st.floats(0, 1))
def test_structured_range_is_reached_at_both_ends(shape, input_share):
    sizes, _, _, _ = shape
    least, most = get_prune("structured").least_budget(sizes), sizes.n_parameters()
    for budget in (least, most):
        chosen = structured_sizes(sizes, budget, input_share)
        assert structured_count(sizes, *chosen) == budget
    assert chosen == (sizes.n_inputs, sizes.hidden)


@st.composite
def blocks(draw):
    """Draw saliencies of a layer, its blocks, and how many blocks there are."""
    n_neurons, n_inputs = draw(st.integers(1, 6)), draw(st.integers(1, 16))
    n_blocks = draw(st.integers(1, n_inputs))
    rng = np.random.default_rng(draw(seeds))
    energy = rng.random((n_neurons, n_inputs)) ** 2
    if draw(st.booleans()):
        labels = rng.permutation(np.arange(n_inputs) * n_blocks // n_inputs)
    else:  # unbalanced, as a callable may return
        others = rng.integers(0, n_blocks, size=n_inputs - n_blocks) ** 2 % n_blocks
        labels = rng.permutation(np.concatenate([np.arange(n_blocks), others]))
    return energy, labels, n_blocks


@given(blocks(), st.data())
def test_chosen_inputs_are_the_strongest_of_equal_shares(layer, data):
    energy, labels, n_blocks = layer
    n_reads = data.draw(st.integers(n_blocks, len(labels)))
    keep = choose_inputs(energy, labels, n_reads)
    assert keep.sum() == n_reads
    score = energy.sum(axis=0)
    shares = []
    for block in range(n_blocks):
        inside, of_block = keep & (labels == block), labels == block
        assert inside.any()
        left = score[of_block & ~keep]
        assert left.max(initial=0) <= score[inside].min()
        shares.append((inside.sum(), of_block.sum()))
    # No block is two inputs ahead of its share in another.
    for kept, size in shares:
        for other_kept, other_size in shares:
            if kept > 1:
                assert (kept - 1) / size <= other_kept / other_size


@given(blocks(), st.data())
def test_chosen_units_are_the_strongest_and_spare_buys_more(layer, data):
    energy, labels, n_blocks = layer
    n_parents = data.draw(st.integers(1, len(energy)))
    spare, unit_cost = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 5))
    alive, left = choose_units(energy, labels, n_blocks, n_parents, spare, unit_cost)
    alive = alive.reshape(n_blocks, len(energy))
    cost = np.bincount(labels, minlength=n_blocks) + unit_cost
    extra = alive.sum(axis=1) - n_parents
    assert (extra >= 0).all()
    assert left == spare - extra @ cost
    for block in range(n_blocks):
        if not alive[block].all():
            assert left < cost[block]
            score = energy[:, labels == block].sum(axis=1)
            assert score[~alive[block]].max() <= score[alive[block]].min()
