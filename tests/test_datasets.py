import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression

from sklearn_fpe.datasets import DNF, make_dnf


@st.composite
def tasks(draw):
    """Arguments of make_dnf that have a solution."""
    n_clauses = draw(st.integers(1, 6))
    clause_size = draw(st.integers(2, 4))
    shared = draw(st.booleans())
    least = clause_size + 2 if shared else n_clauses * clause_size
    # With two variables to spare there are six different clauses at least.
    n_variables = draw(st.integers(least, 30) | (st.nothing() if shared else st.none()))
    return {
        "n_samples": draw(st.integers(1, 60)),
        "n_clauses": n_clauses,
        "clause_size": clause_size,
        "n_variables": n_variables,
        "shared": shared,
        "negated": draw(st.booleans()) and not shared,
        "balance": draw(st.floats(0, 1)),
        "density": draw(st.floats(0.2, 0.6)),
        "positives": draw(st.sampled_from(["any", "single"])),
        "near_misses": draw(st.floats(0, 1)),
        "random_state": draw(st.integers(0, 2**32 - 1)),
    }


def holding(formula, row):
    """The clauses that hold, literal by literal."""
    return [
        c
        for c in range(len(formula.variables))
        if all(
            bool(row[v]) == bool(sign)
            for v, sign in zip(formula.variables[c], formula.signs[c], strict=True)
        )
    ]


def some_task(**params):
    return make_dnf(**{"n_samples": 200, "random_state": 0} | params)


@given(tasks())
def test_y_is_the_formula_and_classes_are_balanced(params):
    X, y, formula = make_dnf(**params)
    n_variables = params["n_variables"] or formula.n_variables
    assert X.shape == (params["n_samples"], n_variables)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    assert np.isin(X, (0, 1)).all()
    for row, label in zip(X, y, strict=True):
        assert label == bool(holding(formula, row))
    assert y.sum() == math.floor(params["balance"] * len(y) + 0.5)


@given(tasks())
def test_clauses_are_what_was_asked_for(params):
    _, _, formula = make_dnf(**params)
    variables, signs = formula.variables, formula.signs
    assert variables.shape == (params["n_clauses"], params["clause_size"])
    assert signs.shape == variables.shape
    assert variables.min() >= 0
    assert variables.max() < formula.n_variables
    assert (np.diff(variables, axis=1) > 0).all()
    literals = {(*v, *s) for v, s in zip(variables, signs, strict=True)}
    assert len(literals) == params["n_clauses"]
    if not params["shared"]:
        assert len(np.unique(variables)) == variables.size
    if not params["negated"]:
        assert signs.all()


@given(tasks())
def test_feature_groups_label_variables_by_their_first_clause(params):
    _, _, formula = make_dnf(**params)
    labels = formula.feature_groups
    assert labels.shape == (formula.n_variables,)
    unused = []
    for variable in range(formula.n_variables):
        clauses = np.flatnonzero((formula.variables == variable).any(axis=1))
        if clauses.size:
            assert labels[variable] == clauses[0]
        else:
            unused.append(labels[variable])
    assert unused == list(range(params["n_clauses"], params["n_clauses"] + len(unused)))


@given(tasks())
def test_single_positives_satisfy_one_clause_each_equally_often(params):
    X, y, formula = make_dnf(**params | {"positives": "single"})
    satisfied = formula.satisfied(X[y == 1])
    assert (satisfied.sum(axis=1) == 1).all()
    counts = satisfied.sum(axis=0)
    assert counts.max() - counts.min() <= 1


@given(tasks())
def test_near_misses_are_one_literal_away(params):
    params["near_misses"] = 1.0
    X, y, formula = make_dnf(**params)
    for row in X[y == 0]:
        true_literals = (row[formula.variables] != 0) == formula.signs
        assert true_literals.sum(axis=1).max() == params["clause_size"] - 1


@given(tasks())
def test_same_seed_same_task(params):
    first, second = make_dnf(**params), make_dnf(**params)
    for a, b in zip(first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first[2].variables, second[2].variables)
    np.testing.assert_array_equal(first[2].signs, second[2].signs)


def exact_distribution(formula, density, kind):
    """Assignments and their probabilities, by enumeration of all of them."""
    rows = np.array(list(itertools.product([0, 1], repeat=formula.n_variables)))
    p_one = np.full(formula.n_variables, density)
    for variable, label in enumerate(formula.feature_groups):
        if label < len(formula.variables):
            slot = list(formula.variables[label]).index(variable)
            if not formula.signs[label, slot]:
                p_one[variable] = 1 - density
    base = np.where(rows == 1, p_one, 1 - p_one).prod(axis=1)
    holds = [holding(formula, row) for row in rows]
    if kind == "any":
        p = base * [len(h) > 0 for h in holds]
    elif kind == "none":
        p = base * [len(h) == 0 for h in holds]
    else:
        p = np.zeros(len(rows))
        index = {tuple(row): i for i, row in enumerate(rows)}
        for clause, variables in enumerate(formula.variables):
            only = base * [h == [clause] for h in holds]
            only /= only.sum()
            if kind == "single":
                p += only
                continue
            for i in np.flatnonzero(only):
                for variable in variables:
                    flipped = rows[i].copy()
                    flipped[variable] ^= 1
                    j = index[tuple(flipped)]
                    p[j] += only[i] * (not holds[j])
    return rows, p / p.sum()


@pytest.mark.parametrize("kind", ["any", "single", "none", "near"])
@pytest.mark.parametrize(
    "task",
    [
        {"n_clauses": 2, "clause_size": 2, "n_variables": 5},
        {"n_clauses": 2, "clause_size": 3, "negated": True, "density": 0.4},
        {"n_clauses": 3, "clause_size": 2, "n_variables": 5, "shared": True},
        {
            **{"n_clauses": 4, "clause_size": 3, "n_variables": 7, "shared": True},
            **{"negated": True, "density": 0.3},
        },
    ],
)
def test_rows_follow_the_documented_distribution(kind, task):
    n_samples = 20_000
    X, _, formula = make_dnf(
        n_samples,
        **task,
        balance=float(kind in ("any", "single")),
        positives="single" if kind == "single" else "any",
        near_misses=float(kind == "near"),
        random_state=3,
    )
    rows, p = exact_distribution(formula, task.get("density", 0.5), kind)
    code = 2 ** np.arange(formula.n_variables)[::-1]
    counts = np.bincount((X @ code).astype(int), minlength=len(rows))
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], n_samples * p[p > 0]).pvalue > 1e-3


def test_variables_of_a_clause_are_not_neighbours():
    gaps = [
        np.diff(some_task(n_samples=2, random_state=seed)[2].variables).mean()
        for seed in range(20)
    ]
    # Four of 32 columns drawn at random lie (32 + 1) / 5 apart.
    assert 5.6 < np.mean(gaps) < 7.6


def test_sampling_sets_what_a_linear_model_can_use():
    scores = {}
    for name, params in {
        "default": {},
        "hard": {"positives": "single", "near_misses": 1.0},
    }.items():
        X, y, _ = some_task(n_samples=8000, **params)
        model = LogisticRegression().fit(X[:4000], y[:4000])
        scores[name] = model.score(X[4000:], y[4000:])
    assert scores["default"] > 0.65
    assert scores["hard"] < 0.61


def test_shared_clauses_overlap_by_default():
    _, _, formula = some_task(shared=True)
    assert formula.n_variables == 16
    assert len(np.unique(formula.variables)) < formula.variables.size


def test_random_state_takes_generators_and_leaves_global_ones_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    some_task(random_state=None)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    for make in (np.random.RandomState, np.random.default_rng):
        rng = make(0)
        first = some_task(random_state=rng)[0]
        assert not np.array_equal(first, some_task(random_state=rng)[0])
        np.testing.assert_array_equal(first, some_task(random_state=make(0))[0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "n_samples == 0, must be >= 1"),
        ({"n_clauses": 0}, "n_clauses == 0, must be >= 1"),
        ({"clause_size": 0}, "clause_size == 0, must be >= 1"),
        ({"balance": 1.5}, "balance == 1.5, must be <= 1"),
        ({"near_misses": -0.1}, "near_misses == -0.1, must be >= 0"),
        ({"density": 1.0}, "density must be between 0 and 1, got 1.0"),
        ({"positives": "all"}, "positives must be 'any' or 'single', got 'all'"),
        ({"n_variables": 31}, "n_clauses \\* clause_size = 32 .* got 31"),
        (
            {"n_variables": 4, "shared": True},
            "n_variables=4 allow 1 different clauses .* n_clauses=8",
        ),
        # Of x, ~x, y and ~y two hold always; of x and ~x always one, also when flipped.
        (
            {"n_clauses": 4, "clause_size": 1, "n_variables": 2}
            | {"shared": True, "negated": True},
            "satisfy no clause are too rare.* n_clauses=4 of clause_size=1 on",
        ),
        (
            {"n_clauses": 4, "clause_size": 1, "n_variables": 2}
            | {"shared": True, "negated": True, "positives": "single"},
            "satisfy one given clause alone are too rare",
        ),
        (
            {"n_clauses": 2, "clause_size": 1, "n_variables": 1, "near_misses": 1.0}
            | {"shared": True, "negated": True},
            "near_misses: flipping a literal",
        ),
    ],
)
def test_errors_name_the_parameter(params, message):
    with pytest.raises(ValueError, match=message):
        some_task(**params)


def test_formula_checks_the_width_of_X():
    formula = DNF(np.array([[0, 2]]), np.array([[True, False]]), 3)
    with pytest.raises(ValueError, match=r"\(n_samples, 3\).* got \(5, 2\)"):
        formula(np.zeros((5, 2)))
