"""Laws of the registered rules, rules of the user's own, and traps for half a rule."""

import copy
import inspect
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.model_selection import GridSearchCV

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._net import Net
from sklearn_fpe._estimators._constraints import NOT_OF_WARM_UP
from sklearn_fpe.nn import MLP, Plan, PruneRule, SplitRule, expand, is_shared, partition
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._magnitude import prune_magnitude
from sklearn_fpe.nn._prune import PRUNES, Magnitude, get_prune
from sklearn_fpe.nn._split import SPLITS, get_split

ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]
GUIDE = Path(__file__).parents[1] / "docs" / "user_guide"
GROUPS = [0, 0, 1, 1, 2, 2]
QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "max_iter": 4,
    "warmup": 2,
    "random_state": 0,
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)).astype(np.float32)
Y = RNG.permutation(np.arange(60) % 3)


# --------------------------------------------------------------------------------------
# What is registered
# --------------------------------------------------------------------------------------

REGISTERED = [
    *[("split", name) for name in SPLITS],
    *[("prune", name) for name in PRUNES],
    *[("activation", name) for name in ACTIVATIONS],
]


@pytest.mark.parametrize(("parameter", "name"), REGISTERED)
def test_a_registered_rule_is_documented(parameter, name):
    if not GUIDE.exists():
        pytest.skip("the guide is not distributed with the tests")
    guide = "".join(page.read_text("utf-8") for page in sorted(GUIDE.glob("*.rst")))
    assert f'``"{name}"``' in guide
    for estimator in ESTIMATORS:
        doc = inspect.getdoc(estimator)
        section = re.search(rf"\n{parameter} : (.*?)\n\n?\w+ : ", doc, re.DOTALL)[1]
        assert f'"{name}"' in section
    if parameter == "split":
        assert f'"{name}"' in inspect.getdoc(partition)
    if parameter == "prune" and PRUNES[name].at_once:
        assert f'"{name}"' in inspect.getdoc(expand)


@pytest.mark.parametrize("registry", [SPLITS, PRUNES, ACTIVATIONS, LOSSES])
def test_names_are_those_of_the_rules(registry):
    assert all(rule.name == name for name, rule in registry.items())


@pytest.mark.parametrize("rule", [*SPLITS.values(), *PRUNES.values()])
def test_a_registered_rule_pickles_to_itself(rule):
    assert pickle.loads(pickle.dumps(rule)) is rule
    assert copy.deepcopy(rule) is rule
    get = get_split if isinstance(rule, SplitRule) else get_prune
    assert get(rule.name) is rule
    assert get(rule) is rule


@pytest.mark.parametrize("rule", SPLITS.values(), ids=list(SPLITS))
def test_a_split_has_the_properties_that_it_claims(rule):
    weight = np.random.default_rng(0).normal(size=(5, 12))
    groups = np.arange(12) // 2
    for n_children in (2, 3, 4):
        children = partition(weight, n_children, rule, groups=groups, rng=1)
        assert (children < 0).all() == rule.overlapping
        if rule.overlapping:  # every child reads all inputs
            continue
        assert is_shared(children) == rule.shared
        runs = (np.diff(children, axis=1) >= 0).all()
        assert bool(runs) == rule.contiguous
        assert len(np.unique(children)) == n_children
    most = rule.max_children(12, groups)
    assert most == (6 if rule.needs_groups else 12)
    if rule.needs_groups:
        with pytest.raises(ValueError, match="needs groups"):
            rule.max_children(12)
    assert rule.at_level(0) is rule
    assert not rule.at_level(1).needs_groups


@pytest.mark.parametrize("rule", PRUNES.values(), ids=list(PRUNES))
@pytest.mark.parametrize("split", SPLITS)
def test_a_prune_rule_has_the_properties_that_it_claims(rule, split):
    network = MLP.dense([6, 5, 4, 3], generator=torch.Generator().manual_seed(0))
    groups = GROUPS if split == "groups" else None
    if not rule.at_once:
        # Nothing trains in `expand`, so the rule would never prune.
        with pytest.raises(ValueError, match=f"prune='{rule.name}'"):
            expand(network, 2, split, prune=rule, groups=groups)
        clf = FPEClassifier(**QUICK, split=split, prune=rule, feature_groups=GROUPS)
        clf.fit(X, Y)
        assert clf.n_nonzero_ == clf.budget_ or not rule.exact
        return
    if SPLITS[split].overlapping:
        with pytest.raises(ValueError, match=f"split='{split}'"):
            expand(network, 2, split, prune=rule, groups=groups)
        return
    if rule.needs_shared and not SPLITS[split].shared:
        with pytest.raises(ValueError, match="needs a partition that all neurons"):
            expand(network, 2, split, prune=rule, groups=groups)
        return
    expanded, _ = expand(network, 2, split, prune=rule, groups=groups, rng=0)
    assert expanded.n_nonzero <= network.n_nonzero
    if rule.exact:
        assert expanded.n_nonzero == network.n_nonzero


def test_every_loss_is_one_of_some_target():
    y_many = RNG.integers(2, size=(60, 3))
    targets = [
        FPEClassifier(**QUICK).fit(X, Y).learned_.targets,
        FPEClassifier(**QUICK).fit(X, Y == 0).learned_.targets,
        FPEClassifier(**QUICK).fit(X, y_many).learned_.targets,
        FPERegressor(**QUICK).fit(X, Y).learned_.targets,
    ]
    assert {target.loss for target in targets} == LOSSES.keys()


# --------------------------------------------------------------------------------------
# Rules of the user's own
# --------------------------------------------------------------------------------------


def interleaved(weight, n_children, rng, groups):
    row = np.arange(weight.shape[1]) % n_children
    return np.tile(row, (len(weight), 1))


def drawn(weight, n_children, rng, groups):
    return rng.integers(n_children, size=weight.shape)


def by_label(weight, n_children, rng, groups):
    _, row = np.unique(groups, return_inverse=True)
    return np.tile(row % n_children, (len(weight), 1))


def as_function(weight, n_children, rng):
    return interleaved(weight, n_children, rng, None)


OWN_SPLITS = [
    SplitRule("interleaved", interleaved, shared=True),
    SplitRule("drawn", drawn),
    SplitRule("by label", by_label, shared=True, needs_groups=True),
    as_function,
]


class Random(PruneRule):
    """Keeps all children, an edge into and out of each, and others at random."""

    name = "random edges"

    def __init__(self, salt=0):
        self.salt = salt

    def least_budget(self, shape):
        return get_prune("magnitude").least_budget(shape)

    def least_cost(self, shape):
        return get_prune("magnitude").least_cost(shape)

    def plan(self, weights, shape, splitter, budget):
        rng = np.random.default_rng([self.salt, int(splitter.rng.integers(2**31))])
        noise = [rng.random(w.shape) + 0.1 for w in weights]
        copies = (1, *shape.expansion)
        wide = [np.tile(w, (1, c)) for w, c in zip(noise, copies, strict=True)]
        children = [
            replace(splitter, rng=rng).split(w, a, level)
            for level, (w, a) in enumerate(zip(wide[:-1], shape.expansion, strict=True))
        ]
        return Plan(children, *prune_magnitude(wide, children, shape, budget))


class Stronger(Magnitude):
    """A registered rule under another name."""

    name = "stronger"


def check_estimator_with(**parameters):
    """Fit, predict, copy and continue with a rule; return the estimator."""
    clf = FPEClassifier(**{**QUICK, "feature_groups": GROUPS, **parameters}).fit(X, Y)
    assert clf.n_nonzero_ <= clf.budget_
    proba = clf.predict_proba(X)
    for twin in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(twin.predict_proba(X), proba)
    again = clone(clf).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), proba)
    clf.set_params(warm_start=True, max_iter=6).fit(X, Y)
    loaded = pickle.loads(pickle.dumps(clf)).fit(X, Y)
    assert np.isfinite(loaded.predict_proba(X)).all()
    clf.partial_fit(X, Y)
    return again


@pytest.mark.parametrize("rule", OWN_SPLITS)
@pytest.mark.parametrize("hidden", [(6,), (6, 4)])
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_a_split_of_your_own(rule, hidden, prune):
    if prune == "structured" and rule is OWN_SPLITS[1]:
        with pytest.raises(ValueError, match=r"split='drawn' partitions every neuron"):
            check_estimator_with(split=rule, prune=prune)
        return
    clf = check_estimator_with(split=rule, prune=prune, hidden_layer_sizes=hidden)
    seen = clf.module_.layers[0].dense_mask().numpy()
    if rule is not OWN_SPLITS[1]:
        row = (by_label if rule is OWN_SPLITS[2] else interleaved)(
            X[:1], 2, None, GROUPS
        )
        child_of_unit = np.array([np.unique(row[0][s]) for s in seen if s.any()])
        assert child_of_unit.shape[1] == 1  # a unit reads one child's inputs


@pytest.mark.parametrize("rule", [Random(), Random(salt=1), Stronger()])
@pytest.mark.parametrize("split", ["shared", "random", "groups", OWN_SPLITS[0]])
def test_a_prune_rule_of_your_own(rule, split):
    clf = check_estimator_with(prune=rule, split=split, hidden_layer_sizes=(6, 4))
    assert clf.n_nonzero_ == clf.budget_


def test_a_search_over_rules():
    grid = {
        "split": ["shared", OWN_SPLITS[0], as_function],
        "prune": ["magnitude", Random()],
        "activation": ["relu", ACTIVATIONS["silu"]],
    }
    search = GridSearchCV(FPEClassifier(**QUICK), grid, cv=2, error_score="raise")
    search.fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert isinstance(search.best_params_["prune"], str | Random)


# --------------------------------------------------------------------------------------
# Half a rule
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", ["split", "prune", "activation"])
@pytest.mark.parametrize("value", ["lottery", "Shared", "", 3, None])
def test_an_unknown_rule_is_an_error(parameter, value):
    with pytest.raises(ValueError, match=parameter):
        FPEClassifier(**{**QUICK, parameter: value}).fit(X, Y)


@pytest.mark.parametrize("value", ["lottery", "", 3, None, Magnitude])
def test_an_unknown_prune_rule_never_is_magnitude(value):
    with pytest.raises(ValueError, match=r"prune must be one of .*PruneRule, got"):
        expand(MLP.dense([6, 4, 3]), 2, prune=value)


@pytest.mark.parametrize("name", PRUNES)
def test_prune_rules_are_equal_if_class_and_parameters_are(name):
    rule, other = PRUNES[name], type(PRUNES[name])()
    assert rule == other
    assert hash(rule) == hash(other)
    assert eval(repr(rule), {type(rule).__name__: type(rule)}) == rule
    assert all(rule != another for key, another in PRUNES.items() if key != name)
    for parameter, value in vars(rule).items():
        changed = copy.copy(other)
        setattr(changed, parameter, [value])  # which cannot be hashed
        assert rule != changed
        assert isinstance(hash(changed), int)


def test_a_rule_that_is_added_runs_its_own_plan(monkeypatch):
    planned = []

    class Lottery(Magnitude):
        name = "lottery"

        def plan(self, *arguments):
            planned.append(self.name)
            return super().plan(*arguments)

    monkeypatch.setitem(PRUNES, "lottery", Lottery())
    expand(MLP.dense([6, 4, 3]), 2, prune="lottery", rng=0)
    assert planned == ["lottery"]


def test_a_prune_rule_needs_its_methods_and_a_name():
    class NoPlan(PruneRule):
        name = "no plan"

    with pytest.raises(TypeError, match="abstract"):
        NoPlan()

    class NoName(Random):
        name = None

    with pytest.raises(ValueError, match="NoName needs a `name`"):
        expand(MLP.dense([6, 4, 3]), 2, prune=NoName())


def test_a_prune_rule_must_keep_the_budget():
    class KeepsAll(Stronger):
        name = "keeps all"

        def plan(self, weights, shape, splitter, budget):
            return super().plan(weights, shape, splitter, shape.n_parameters())

    with pytest.raises(ValueError, match=r"prune='keeps all' kept 59 .*budget of 43"):
        expand(MLP.dense([6, 4, 3]), 2, prune=KeepsAll(), rng=0)


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a step was made")

    monkeypatch.setattr(Net, "train_step", fail)


class Breaks(Stronger):
    name = "breaks"

    def plan(self, *arguments):
        raise ValueError("no plan can be made")


LATE = [
    ({"split": SplitRule("liar", drawn, shared=True), "prune": "structured"}, "share"),
    (
        {"split": lambda w, n, rng: drawn(w, n, rng, None), "prune": "structured"},
        "rows",
    ),
    (
        {"split": SplitRule("short", lambda w, n, rng, groups: w[0])},
        "int array of shape",
    ),
    ({"split": SplitRule("far", lambda w, *_: np.full(w.shape, 9))}, r"in \[0, 2\)"),
    ({"split": "random", "prune": "structured"}, "all neurons"),
    ({"split": "groups", "prune": "structured", "feature_groups": GROUPS}, "all neur"),
    ({"split": "groups"}, "feature_groups"),
    ({"prune": Breaks()}, "no plan can be made"),
    ({"budget": 3}, "budget must be in"),
]


@pytest.mark.parametrize(("parameters", "message"), LATE)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.usefixtures("no_training")
def test_a_rule_that_does_not_fit_fails_before_training(parameters, message, method):
    clf = FPEClassifier(**{**QUICK, "hidden_layer_sizes": (6, 4), **parameters})
    with pytest.raises(ValueError, match=message):
        getattr(clf, method)(X, Y)
    assert not hasattr(clf, "module_")


# Another value of every parameter, to see whether it changes the warm-up.
OTHER = {
    "hidden_layer_sizes": (5,),
    "expansion": 3,
    "split": "random",
    "feature_groups": GROUPS,
    "prune": "structured",
    "warmup": 3,
    "budget": 60,
    "activation": "tanh",
    "batch_size": 7,
    "learning_rate": "constant",
    "learning_rate_init": 0.02,
    "max_iter": 5,
    "standardize": False,
    "weight_decay": 0.5,
    "early_stopping": True,
    "scoring": "neg_log_loss",
    "validation_fraction": 0.3,
    "n_iter_no_change": 1,
    "tol": 0.5,
    "refit": True,
    "warm_start": True,
    "device": torch.device("cpu"),
    "precision": "bfloat16",
    "random_state": 1,
    "class_weight": {0: 3.0, 1: 1.0, 2: 1.0},
    "label_smoothing": 0.3,
    "skip_connection": True,
}
NOT_VARIED = {
    "skorch_callbacks": "is an error with memory",
    "distributed": "is an error with memory",
    "memory": "is where the cache lies",
    "n_estimators": "trains stacked where there is no cache, see test_ensemble",
    "verbose": "prints",
    "task": "is checked with the transformer",
}


@pytest.mark.parametrize("name", FPEClassifier().get_params())
def test_no_parameter_is_left_out_of_the_key_of_the_cache(name, tmp_path):
    if name in NOT_VARIED:
        pytest.skip(NOT_VARIED[name])
    validates = {"scoring", "validation_fraction", "n_iter_no_change", "tol", "refit"}
    base = {**QUICK, "early_stopping": name in validates}
    changed = {**base, name: OTHER[name]}
    FPEClassifier(**base, memory=tmp_path).fit(X, Y)
    cached = FPEClassifier(**changed, memory=tmp_path).fit(X, Y)
    expected = FPEClassifier(**changed).fit(X, Y)
    np.testing.assert_array_equal(cached.predict_proba(X), expected.predict_proba(X))


def test_the_task_is_not_left_out_of_the_key_of_the_cache(tmp_path):
    features, y = make_regression(60, 6, random_state=0)
    y = np.digitize(y, [0.0]).astype(float)
    for task in ("classification", "regression"):
        parameters = {**QUICK, "task": task}
        cached = FPETransformer(**parameters, memory=tmp_path).fit(features, y)
        expected = FPETransformer(**parameters).fit(features, y)
        np.testing.assert_array_equal(
            cached.transform(features), expected.transform(features)
        )


def test_parameters_left_out_of_the_key_exist():
    names = set().union(*(estimator().get_params() for estimator in ESTIMATORS))
    assert names >= NOT_OF_WARM_UP
