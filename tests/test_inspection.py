import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier
from sklearn_fpe.datasets import make_dnf
from sklearn_fpe.inspection import (
    clause_collisions,
    clause_coverage,
    expected_collisions,
    expected_coverage,
    feature_capacity,
    mean_cosine_similarity,
    shared_inputs,
)
from sklearn_fpe.nn import MLP, expand, partition

seeds = st.integers(0, 2**32 - 1)
# Halves and quarters: dot products of these are exact, and often zero.
weights = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=st.integers(-8, 8).map(lambda i: i / 4),
)


class Network(BaseEstimator):
    """What a fitted network has, of weights (n_units, n_inputs) and parents."""

    def __init__(self, weight, kept, parents):
        self.weight, self.kept, self.parents = weight, kept, parents

    def fit(self):
        # Built position by position: a kept weight of zero is stored as well.
        inputs, units = np.nonzero(np.transpose(self.kept))
        values = np.asarray(self.weight)[units, inputs]
        shape = np.transpose(self.kept).shape
        self.coefs_ = [sparse.csr_array((values, (inputs, units)), shape=shape)]
        self.module_ = SimpleNamespace(parents=[torch.tensor(self.parents)])
        return self


# Feature capacity


def brute_force_capacity(weight):
    gram = weight.T @ weight
    capacity = [
        gram[i, i] ** 2 / sum(gram[i] ** 2) if gram[i, i] else 0.0
        for i in range(len(gram))
    ]
    return np.array(capacity)


@given(weights)
def test_capacity_is_the_formula(weight):
    capacity = feature_capacity(weight)
    np.testing.assert_allclose(capacity, brute_force_capacity(weight), rtol=1e-10)
    assert ((capacity >= 0) & (capacity <= 1)).all()


@given(weights)
def test_capacities_add_up_to_the_rank_at_most(weight):
    rank = np.linalg.matrix_rank(weight)
    assert feature_capacity(weight).sum() <= rank + 1e-9


@given(weights, seeds, st.sampled_from([1e-120, 1e-3, 1e120]))
def test_capacity_knows_no_unit_and_no_rotation(weight, seed, scale):
    normal = np.random.default_rng(seed).normal(size=(len(weight), len(weight)))
    rotation, _ = np.linalg.qr(normal)
    np.testing.assert_allclose(
        feature_capacity(scale * rotation @ weight),
        feature_capacity(weight),
        rtol=1e-9,
        atol=1e-12,
    )


@given(weights, st.integers(1, 4))
def test_capacity_of_inputs_read_alike_is_shared(weight, m):
    np.testing.assert_allclose(
        feature_capacity(np.repeat(weight, m, axis=1)),
        np.repeat(feature_capacity(weight) / m, m),
        rtol=1e-10,
    )


@given(weights, st.integers(2, 4), seeds)
def test_splitting_neurons_never_lowers_capacity_where_the_split_is_shared(
    weight, n_children, seed
):
    # w_i . w_j stays if i and j go to one child, and is zero otherwise.
    child = np.random.default_rng(seed).integers(n_children, size=weight.shape[1])
    split = np.vstack([weight * (child == a) for a in range(n_children)])
    assert (feature_capacity(split) >= feature_capacity(weight) - 1e-12).all()


# Cosine similarity


@pytest.mark.parametrize("absolute", [True, False])
@given(weight=weights)
def test_cosine_is_the_mean_over_pairs_of_living_neurons(weight, absolute):
    living = weight[np.abs(weight).sum(axis=1) > 0]
    cosines = [
        a @ b / math.sqrt((a @ a) * (b @ b))
        for a, b in itertools.combinations(living, 2)
    ]
    if absolute:
        cosines = np.abs(cosines)
    expected = np.mean(cosines) if len(cosines) else np.nan
    measured = mean_cosine_similarity(weight, absolute=absolute)
    np.testing.assert_allclose(measured, expected, rtol=1e-10, atol=1e-12)


@given(weights, seeds)
def test_cosine_knows_no_unit_of_a_neuron(weight, seed):
    scale = 10.0 ** np.random.default_rng(seed).integers(-100, 100, (len(weight), 1))
    np.testing.assert_allclose(
        mean_cosine_similarity(weight * scale),
        mean_cosine_similarity(weight),
        rtol=1e-10,
        atol=1e-12,
    )


# Clauses


@st.composite
def partitions(draw):
    """A partition, some inputs read by no child, and clauses, overlapping or not."""
    n_inputs, n_children = draw(st.integers(2, 8)), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 4)), n_inputs)
    children = draw(arrays(np.int64, shape, elements=st.integers(-1, n_children - 1)))
    children[:, 0] = children[:, 0].clip(min=0)  # no neuron without an input
    clause = st.lists(st.integers(0, n_inputs - 1), min_size=1, max_size=3, unique=True)
    return children, draw(st.lists(clause, min_size=1, max_size=5))


def held_by(children, clause):
    """The child of each neuron that holds the clause, or None."""
    holders = [{int(row[v]) for v in clause} for row in children]
    return [h.pop() if len(h) == 1 and h != {-1} else None for h in holders]


@given(partitions())
def test_collisions_and_coverage_by_brute_force(case):
    children, clauses = case
    holders = np.array([held_by(children, clause) for clause in clauses])
    pairs = itertools.combinations(range(len(clauses)), 2)
    collisions = sum(
        holders[c, n] is not None and holders[c, n] == holders[d, n]
        for c, d in pairs
        for n in range(len(children))
    )
    assert clause_collisions(children, clauses) == collisions / len(children)
    covered = [any(holder is not None for holder in row) for row in holders]
    assert clause_coverage(children, clauses) == np.mean(covered)


@given(partitions(), seeds)
def test_a_model_is_measured_as_its_partition(case, seed):
    children, clauses = case
    n_neurons = len(children)
    units = [(n, a) for n in range(n_neurons) for a in np.unique(children[n])]
    units = [(n, a) for n, a in units if a >= 0]
    units = [units[u] for u in np.random.default_rng(seed).permutation(len(units))]
    kept = np.array([children[n] == a for n, a in units])
    # Weights of zero that were kept are read.
    model = Network(np.zeros(kept.shape), kept, [n for n, _ in units]).fit()
    for measure in (clause_collisions, clause_coverage):
        assert measure(model, clauses) == measure(children, clauses)


def test_a_dense_network_holds_all_pairs():
    X, y, formula = make_dnf(60, n_clauses=5, clause_size=2, random_state=0)
    model = MLPClassifier((3,), random_state=0).partial_fit(X, y, classes=[0, 1])
    assert clause_collisions(model, formula) == 10
    assert clause_coverage(model, formula) == 1


def test_clause_aware_split_covers_all_clauses():
    _, _, formula = make_dnf(2, random_state=0)
    weight = np.ones((8, 32))
    for rng in range(5):
        children = partition(
            weight, 2, "groups", groups=formula.feature_groups, rng=rng
        )
        assert clause_coverage(children, formula) == 1
        # Eight clauses, four to a child: two times six pairs.
        assert clause_collisions(children, formula) == 12


@pytest.mark.parametrize("expansion", [2, 3])
@pytest.mark.parametrize("clause_size", [1, 2, 3])
def test_collisions_agree_with_theory_by_monte_carlo(expansion, clause_size):
    n_neurons, n_clauses = 20_000, 3
    rng = np.random.default_rng(10 * expansion + clause_size)
    n_inputs = n_clauses * clause_size + 2
    clauses = rng.permutation(n_inputs)[:-2].reshape(n_clauses, clause_size)
    children = rng.integers(expansion, size=(n_neurons, n_inputs))
    expected = expected_collisions(expansion, clause_size, n_clauses)
    # Variance of the number of colliding pairs in a neuron: of each of the three, and
    # of each two of them, which collide together if all clauses share a child.
    p, p_all = (float(expansion) ** (1 - m * clause_size) for m in (2, 3))
    assert expected == pytest.approx(3 * p)
    variance = 3 * (p - p**2) + 6 * (p_all - p**2)
    error = math.sqrt(variance / n_neurons)
    assert abs(clause_collisions(children, clauses) - expected) < 4 * error


@pytest.mark.parametrize("n_inputs", [12, 13, 17])
def test_collisions_of_a_balanced_deal_agree_with_theory(n_inputs):
    n_neurons = 20_000
    children = partition(np.ones((n_neurons, n_inputs)), 3, "random", rng=n_inputs)
    clauses = [[0, 5], [7, 2]]
    expected = expected_collisions(3, 2, n_inputs=n_inputs)
    error = math.sqrt(expected * (1 - expected) / n_neurons)
    assert abs(clause_collisions(children, clauses) - expected) < 4 * error
    # Independent inputs collide more often; the bound tells the two apart.
    assert expected_collisions(3, 2) - expected > 4 * error


@pytest.mark.parametrize("n_inputs", [None, 8])
def test_coverage_agrees_with_theory_by_monte_carlo(n_inputs):
    rng = np.random.default_rng(0)
    n_draws, n_neurons = 4000, 3
    expected = expected_coverage(2, 3, n_neurons, n_inputs=n_inputs)
    covered = 0
    for _ in range(n_draws):
        if n_inputs is None:
            children = rng.integers(2, size=(n_neurons, 8))
        else:
            children = partition(np.ones((n_neurons, 8)), 2, "random", rng=rng)
        covered += clause_coverage(children, [[1, 4, 6]])
    error = math.sqrt(expected * (1 - expected) / n_draws)
    assert abs(covered / n_draws - expected) < 4 * error


@given(st.integers(1, 6), st.integers(1, 4), st.integers(8, 40))
def test_theory_of_balanced_deals_by_enumeration(expansion, clause_size, n_inputs):
    sizes = [len(part) for part in np.array_split(range(n_inputs), expansion)]

    def p_same(n_drawn):
        falls = [math.perm(size, n_drawn) for size in sizes]
        return sum(falls) / math.perm(n_inputs, n_drawn)

    assert expected_collisions(
        expansion, clause_size, n_inputs=n_inputs
    ) == pytest.approx(p_same(2 * clause_size))
    assert expected_coverage(
        expansion, clause_size, 2, n_inputs=n_inputs
    ) == pytest.approx(1 - (1 - p_same(clause_size)) ** 2)


def test_theory_of_no_split_and_of_many_inputs():
    assert (
        expected_collisions(1, 4, 8) == expected_collisions(1, 4, 8, n_inputs=32) == 28
    )
    assert expected_coverage(1, 4) == 1
    curve = expected_collisions([2, 4, 8], 2, n_inputs=10**6)
    np.testing.assert_allclose(curve, [2.0**-3, 4.0**-3, 8.0**-3], rtol=1e-4)


# Models of all kinds


@given(weights)
def test_arrays_sparse_arrays_and_models_measure_alike(weight):
    kept = np.ones(weight.shape, dtype=bool)
    model = Network(weight, kept, np.arange(len(weight))).fit()
    for other in (weight.tolist(), sparse.csr_array(weight), model):
        np.testing.assert_array_equal(feature_capacity(other), feature_capacity(weight))
        np.testing.assert_array_equal(
            mean_cosine_similarity(other), mean_cosine_similarity(weight)
        )


def test_networks_of_nn_are_models():
    dense = MLP.dense([32, 4, 3], generator=torch.Generator().manual_seed(0))
    expanded, _ = expand(dense, 2, "random", rng=0)
    weight = expanded.hidden[0].dense_weight().numpy()
    np.testing.assert_array_equal(feature_capacity(expanded), feature_capacity(weight))
    assert feature_capacity(expanded).mean() > feature_capacity(dense).mean()
    assert mean_cosine_similarity(expanded) < mean_cosine_similarity(dense)
    assert clause_collisions(dense, [[0, 1], [2, 3]]) == 1
    assert clause_collisions(expanded, [[0, 1, 2, 3], [4, 5, 6, 7]]) < 1


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (np.ones(3), ValueError, r"\(n_neurons, n_inputs\).*got \(3,\)"),
        (np.ones((0, 3)), ValueError, r"got \(0, 3\)"),
        ([[np.nan, 1.0]], ValueError, "must be finite"),
        (MLPClassifier(), NotFittedError, "not fitted"),
        (LogisticRegression().fit([[0], [1]], [0, 1]), TypeError, "has no coefs_"),
        (
            make_pipeline(StandardScaler(), LogisticRegression()).fit(
                [[0], [1]], [0, 1]
            ),
            TypeError,
            "Pipeline has no coefs_.* give the last step",
        ),
    ],
)
def test_what_is_no_model_is_refused(model, error, message):
    for measure in (feature_capacity, mean_cosine_similarity):
        with pytest.raises(error, match=message):
            measure(model)


def test_what_is_no_partition_or_clause_is_refused():
    with pytest.raises(ValueError, match=r"int array .* got shape \(2, 2\) of float64"):
        clause_collisions(np.ones((2, 2)), [[0]])
    with pytest.raises(TypeError, match="got str"):
        clause_coverage("children", [[0]])
    children = np.zeros((2, 3), dtype=int)
    for clause in ([], [0, 3], [-1]):
        with pytest.raises(ValueError, match=r"columns in \[0, 3\)"):
            clause_coverage(children, [clause])
    with pytest.raises(ValueError, match="expansion must be at least 1, got 0"):
        expected_collisions(0, 2)
    with pytest.raises(ValueError, match="clause_size must be at least 1"):
        expected_coverage(2, 0)
    with pytest.raises(ValueError, match=r"n_inputs must be at least 4, .* got 3"):
        expected_collisions(2, 2, n_inputs=3)


# Inputs that siblings share


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), seeds)
def test_siblings_of_a_partition_share_no_input(n_neurons, n_inputs, n_children, seed):
    rng = np.random.default_rng(seed)
    children = rng.integers(n_children, size=(n_neurons, n_inputs))
    assert shared_inputs(children) == 0


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), seeds)
def test_shared_inputs_are_counted_by_parent(n_parents, n_inputs, n_children, seed):
    rng = np.random.default_rng(seed)
    kept = rng.random((n_children * n_parents, n_inputs)) < 0.5
    parents = np.arange(n_children * n_parents) % n_parents
    model = Network(np.ones(kept.shape), kept, parents).fit()
    shares = []
    for parent in range(n_parents):
        readers = kept[parents == parent].sum(axis=0)
        if readers.any():
            shares.append((readers > 1).sum() / (readers > 0).sum())
    expected = np.mean(shares) if shares else math.nan
    np.testing.assert_allclose(shared_inputs(model), expected)


def test_a_learned_split_shares_inputs_and_is_measured():
    X, y, formula = make_dnf(600, n_clauses=4, clause_size=3, random_state=0)
    model = FPEClassifier(
        (4,), expansion=2, split="learned", prune="gradual", max_iter=3, random_state=0
    ).fit(X, y)
    assert 0 < shared_inputs(model) <= 1
    assert shared_inputs(model) == shared_inputs(model.module_)
    assert 0 <= clause_coverage(model, formula) <= 1
    assert clause_collisions(model, formula) >= 0
    assert feature_capacity(model).shape == (12,)
    assert 0 <= mean_cosine_similarity(model) <= 1


def test_a_linear_model_has_no_neurons_to_measure():
    X, y, formula = make_dnf(200, n_clauses=2, clause_size=2, random_state=0)
    model = FPEClassifier((), max_iter=2, random_state=0).fit(X, y)
    for measure in (shared_inputs, feature_capacity, mean_cosine_similarity):
        for given_model in (model, model.module_):
            with pytest.raises(ValueError, match="is linear: without a hidden layer"):
                measure(given_model)
    with pytest.raises(ValueError, match="is linear"):
        clause_coverage(model, formula)
