"""Laws of gradual pruning and of the learned split."""

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from engine_parts import make_recipe, make_sample, make_settings, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from skorch.callbacks import Callback

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe._engine._pruning import PRUNES, Gradual
from sklearn_fpe.datasets import make_dnf
from sklearn_fpe.nn import check_expansion
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._split import SPLITS

LATER = [name for name, rule in PRUNES.items() if not rule.at_once]
QUICK = {"max_iter": 6, "warmup": 1, "random_state": 0, "expansion": 2}
GROUPS = [0, 0, 1, 1, 2, 2]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6))
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int) + (X[:, 3] > 1)


def make(kind=FPEClassifier, **parameters):
    parameters = {"prune": "gradual", "hidden_layer_sizes": (5,), **QUICK, **parameters}
    return kind(feature_groups=GROUPS, **parameters)


def fit(**parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of expansions that cannot be had
        return make(**parameters).fit(X, Y)


def check_pruned(model, exact=True):
    """Check the budget, that what is pruned is zero, and that no unit is idle."""
    network = model.module_
    assert model.n_nonzero_ <= model.budget_
    if exact:
        assert model.n_nonzero_ == model.budget_
    for layer in network.maps:
        assert (layer.dense_weight()[~layer.dense_mask()] == 0).all()
        if layer.mask is not None:
            assert (layer.weight[~layer.mask] == 0).all()
    for into, out in pairwise(layer.dense_mask() for layer in network.layers):
        assert into.any(dim=1).all()
        assert out.any(dim=0).all()


@st.composite
def cases(draw):
    """Draw parameters and a budget that can be met, often at the ends."""
    parameters = {
        "hidden_layer_sizes": tuple(draw(st.lists(st.integers(1, 6), max_size=2))),
        "split": draw(st.sampled_from(sorted(SPLITS))),
        "expansion": draw(st.sampled_from([1, 2, 4])),
        "skip_connection": draw(st.booleans()),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "max_iter": draw(st.integers(1, 4)),
        "random_state": draw(st.integers(0, 99)),
    }
    shape, budget = check_expansion(
        [6, *parameters["hidden_layer_sizes"], 3],
        parameters["expansion"],
        parameters["split"],
        prune="gradual",
        groups=GROUPS,
        skip=parameters["skip_connection"],
    )
    if draw(st.booleans()):
        least = PRUNES["gradual"].least_budget(shape.parent())
        most = shape.n_parameters()
        budget = draw(st.one_of(st.integers(least, most), st.just(least)))
    return {**parameters, "budget": budget}


@settings(max_examples=40)
@given(cases())
def test_every_budget_is_met(parameters):
    model = fit(**parameters)
    # Between deep layers, less than a parent's budget may have no exact solution.
    is_small = model.budget_ < model.learned_.recipe.shape.default_budget()
    check_pruned(model, not is_small or len(parameters["hidden_layer_sizes"]) < 2)


class Stop(Callback):
    """Stop every phase after its first epoch."""

    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("split", ["shared", "learned"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        {"early_stopping": True, "n_iter_no_change": 1, "tol": 10.0},
        {"early_stopping": True, "n_iter_no_change": 1, "tol": 10.0, "refit": True},
        {"early_stopping": True, "n_iter_no_change": np.inf, "max_iter": 12},
        {"early_stopping": True, "scoring": "neg_log_loss"},
        {"skorch_callbacks": [Stop()]},
        {"skorch_callbacks": [Stop()], "early_stopping": True},
        {"warmup": 1.0},
        {"warmup": 0, "max_iter": 1},
        {"batch_size": 80, "max_iter": 2},
        {"precision": "bfloat16"},
        {"standardize": False},
    ],
)
def test_the_budget_is_met_however_training_ends(split, skip, parameters):
    model = fit(split=split, skip_connection=skip, **parameters)
    check_pruned(model)
    if "early_stopping" in parameters:
        assert 1 <= model.best_iter_ <= 12


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("hidden", [(5,), (4, 3)])
def test_a_warm_start_keeps_the_masks(kind, hidden):
    model = make(kind, hidden_layer_sizes=hidden, split="learned", warm_start=True)
    model.fit(X, Y)
    check_pruned(model)
    masks = [layer.dense_mask() for layer in model.module_.maps]
    for train in (model.fit, model.partial_fit, pickle.loads(pickle.dumps(model)).fit):
        trained = train(X, Y)
        check_pruned(trained)
        for mask, layer in zip(masks, trained.module_.maps, strict=True):
            assert torch.equal(layer.dense_mask(), mask)


@pytest.mark.parametrize("prune", LATER)
def test_partial_fit_never_exceeds_the_budget_or_refuses(prune):
    model = make(prune=prune, warmup=0)
    try:
        model.partial_fit(X, Y)
    except ValueError as error:
        assert "budget holds after every call" in str(error)  # noqa: PT017
        assert not hasattr(model, "module_")
    else:
        assert model.n_nonzero_ <= model.budget_


# --------------------------------------------------------------------------------------
# While training goes on
# --------------------------------------------------------------------------------------


class Watch(Hook):
    """Record parameters at every step, and check what was pruned."""

    def __init__(self):
        self.counts = []

    def before_step(self, trainer):
        if trainer.phase != "fine-tune":
            return
        self.counts.append(trainer.network.n_nonzero)
        for level, layer in enumerate(trainer.network.maps):
            if layer.mask is None:
                continue
            pruned = ~layer.mask
            assert not layer.weight[pruned].any()
            for mean in trainer.optimizer_state(level).values():
                assert not mean[pruned].any()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("split", ["random", "shared", "learned"])
def test_weights_stay_zero_and_their_number_only_falls(split, activation):
    widths = [6, 5, 4, 3]
    recipe = make_recipe(widths, 3, split, "gradual", activation)
    sample = make_sample(60, widths)
    watch = Watch()
    trainer = make_trainer(recipe, make_settings(max_iter=20, batch_size=6), sample)
    learned = trainer.fit(sample, hooks=[watch])
    assert learned.network.n_nonzero == recipe.budget
    counts = np.array(watch.counts)
    last = np.flatnonzero(np.diff(counts))[-1]
    assert counts[0] > recipe.budget
    assert (np.diff(counts[: last + 1]) <= 0).all()
    # What trains on still has the biases of units that have no edge.
    n_units = sum(layer.out_features for layer in trainer.network.hidden)
    assert recipe.budget <= counts[-1] <= recipe.budget + n_units


@pytest.mark.parametrize("shares", [(0.1, 0.75), (0.5, 0.9), (0.0, 0.3)])
def test_pruning_keeps_to_its_shares_of_the_epochs(shares):
    widths = [6, 8, 3]
    rule = Gradual(begin=shares[0], end=shares[1], interval=1)
    recipe = make_recipe(widths, 4, "learned", rule)
    sample = make_sample(100, widths)
    watch = Watch()
    settings = make_settings(max_iter=20, n_warmup=0, batch_size=10)
    make_trainer(recipe, settings, sample).fit(sample, hooks=[watch])
    changes = np.flatnonzero(np.diff(watch.counts)) / len(watch.counts)
    assert abs(changes.min() - shares[0]) < 0.1
    assert abs(changes.max() - shares[1]) < 0.05


def test_the_saliency_of_the_skip_connection_can_be_raised():
    kept = [
        fit(skip_connection=True, prune=Gradual(skip_factor=factor)).skip_coef_.nnz
        for factor in (1e-12, 1e12)
    ]
    assert kept[0] < kept[1] == 18


# --------------------------------------------------------------------------------------
# State
# --------------------------------------------------------------------------------------


def test_rules_are_compared_by_their_schedule():
    assert Gradual() == Gradual() == PRUNES["gradual"]
    assert Gradual(end=0.5) != Gradual()
    assert hash(Gradual()) == hash(PRUNES["gradual"])
    assert pickle.loads(pickle.dumps(Gradual(end=0.5))) == Gradual(end=0.5)
    model = make(prune=Gradual(end=0.5))
    assert clone(model).prune == model.prune
    assert clone(model).fit(X, Y).n_nonzero_ == 53


@pytest.mark.parametrize("split", ["shared", "learned"])
def test_copies_clones_and_the_cache_give_the_same_bits(split, tmp_path):
    model = fit(split=split, hidden_layer_sizes=(4, 3))
    expected = model.predict_proba(X)
    cached = make(split=split, hidden_layer_sizes=(4, 3), memory=tmp_path)
    copies = [
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        clone(model).fit(X, Y),
        clone(cached).fit(X, Y),
        clone(cached).fit(X, Y),
    ]
    for twin in copies:
        assert_array_equal(twin.predict_proba(X), expected)
        assert twin.n_nonzero_ == model.n_nonzero_


@pytest.mark.parametrize("split", ["shared", "learned"])
def test_sparse_rows_and_double_precision(split):
    model = fit(split=split)
    same = make(split=split).fit(sparse.csr_array(X), Y)
    assert_allclose(same.predict_proba(X), model.predict_proba(X), atol=1e-3)
    assert model.decision_function(X).dtype == np.float64


# --------------------------------------------------------------------------------------
# The learned split
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 40])
def test_without_expansion_a_learned_split_changes_nothing(budget):
    for prune in PRUNES:
        models = [
            fit(expansion=1, split=split, prune=prune, budget=budget)
            for split in ("contiguous", "learned")
            if split == "contiguous" or not PRUNES[prune].needs_shared
        ]
        for model in models[1:]:
            assert_array_equal(model.predict_proba(X), models[0].predict_proba(X))


def test_a_learned_split_finds_the_clauses():
    X, y, _ = make_dnf(4000, n_clauses=4, clause_size=3, random_state=0)
    scores = {
        split: FPEClassifier(
            (4,), expansion=2, split=split, prune=prune, max_iter=30, random_state=0
        )
        .fit(X[:3000], y[:3000])
        .score(X[3000:], y[3000:])
        for split, prune in [("random", "magnitude"), ("learned", "gradual")]
    }
    assert scores["learned"] > max(0.95, scores["random"])
