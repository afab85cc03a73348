"""Laws of the skip connection and of networks without hidden layers."""

import copy
import io
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer, load, save
from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._net import Net
from sklearn_fpe._engine._step import backpropagate
from sklearn_fpe.nn import MLP, Affine, check_expansion
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

QUICK = {"max_iter": 4, "warmup": 1, "random_state": 0, "expansion": 2}
GROUPS = [0, 0, 1, 1, 2, 2]
WITH_SKIP = [name for name, rule in PRUNES.items() if rule.allows_skip]
WITHOUT_SKIP = [name for name in PRUNES if name not in WITH_SKIP]
ALL = sorted(ACTIVATIONS)
FAST = [name for name in ALL if ACTIVATIONS[name].backward_ is not None]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6))
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int) + (X[:, 3] > 1)
TARGET = X @ np.arange(6.0) + np.maximum(X[:, 0], 0)


def fit(kind=FPEClassifier, features=X, **parameters):
    parameters = {
        "hidden_layer_sizes": (5,),
        "skip_connection": True,
        **QUICK,
        **parameters,
    }
    y = Y if kind is FPEClassifier else TARGET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of expansions that cannot be had
        return kind(**parameters).fit(features, y)


@st.composite
def networks(draw, activations=ALL):
    """Draw a network with a skip connection, some of whose weights are masked."""
    n = draw(st.integers(1, 2))
    widths = [draw(st.integers(1, 6)) for _ in range(n + 2)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    activation = draw(st.sampled_from(activations))
    network = MLP.dense(widths, activation, generator, skip=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    if draw(st.booleans()):
        level = len(network.layers)
        mask = torch.rand(network.skip.weight.shape, generator=generator) < 0.5
        network.masked(level).set_mask(mask)
    return network


def rows(network, seed=0, n=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, network.layers[0].in_features, generator=generator)


# --------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------


@given(networks())
def test_outputs_are_those_of_the_layers_plus_a_linear_map(network):
    x = rows(network).double()
    without = MLP(list(network.layers), network.activation)
    linear = x @ network.skip.dense_weight().double().T
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            assert_close(network(x), without(x) + linear)
    out = torch.empty(len(x), network.layers[-1].out_features, dtype=torch.float64)
    with torch.inference_mode():
        network(x, out=out)
    assert_close(out, without(x).detach() + linear)
    assert network.n_nonzero == without.n_nonzero + network.skip.n_weights


@given(networks(activations=FAST))
def test_the_step_by_hand_is_that_of_autograd(network):
    x = rows(network)
    n_outputs = network.layers[-1].out_features
    y = torch.linspace(-1, 1, len(x) * n_outputs).view(len(x), n_outputs)
    loss = LOSSES["squared"]()
    weights = torch.ones(len(x))
    loss(network(x), y, weights).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    for parameter in network.parameters():
        parameter.grad.fill_(np.nan)
    backpropagate(network, x, lambda outputs: loss.differentiate(outputs, y, weights))
    for layer in network.maps:
        if layer.mask is not None:
            layer.weight.grad.mul_(layer.mask)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@given(networks(), st.integers(0, 99), st.booleans())
def test_folding_and_unfolding_keep_the_function(network, seed, far):
    rng = np.random.default_rng(seed)
    n = network.layers[0].in_features
    mean, scale = rng.normal(size=n), rng.uniform(0.5, 2, size=n)
    if far:
        mean[rng.integers(n)] = 1e7
    affine = Affine(mean, scale)
    z = rows(network, seed).double()
    x = z * torch.from_numpy(scale) + torch.from_numpy(mean)
    expected = network.double()(z).detach()
    network.float().fold_input(affine)
    assert (network.input_mean is not None) == far
    assert_close(network(x), expected, rtol=1e-4, atol=1e-3)
    network.unfold_input(affine)
    assert network.input_mean is None
    assert_close(network(z), expected, rtol=1e-4, atol=1e-3)
    n = network.layers[-1].out_features
    new = Affine(rng.normal(size=n), rng.uniform(0.5, 2, size=n))
    network.change_output(Affine.identity(n), new)
    assert_allclose(new.undo(network(z).detach().numpy()), expected, atol=1e-2)


@given(networks())
def test_copies_of_a_network(network):
    x = rows(network)
    for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(twin(x), network(x))
        assert twin.n_nonzero == network.n_nonzero


def test_a_fresh_skip_connection_and_output_layer_are_zero():
    network = MLP.dense([4, 3, 2], skip=True)
    assert not network.skip.weight.any()
    assert not network.layers[-1].weight.any()
    assert network.layers[0].weight.any()
    assert network.skip.bias is None
    with pytest.raises(ValueError, match="skip connection is no sequence"):
        network.to_sequential()


# --------------------------------------------------------------------------------------
# The estimators
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("prune", WITH_SKIP)
@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)])
def test_the_budget_is_that_of_the_network_without_the_skip(hidden, prune, split):
    if SPLITS[split].overlapping and PRUNES[prune].at_once:
        return
    if PRUNES[prune].needs_shared and not SPLITS[split].shared:
        return
    parameters = {"hidden_layer_sizes": hidden, "prune": prune, "split": split}
    clf = fit(**parameters, feature_groups=GROUPS)
    widths = [6, *hidden, 3]
    dense = sum((a + 1) * b for a, b in pairwise(widths))
    assert clf.budget_ == dense
    assert clf.n_nonzero_ <= dense
    if PRUNES[prune].exact:
        assert clf.n_nonzero_ == dense


def recomputed(model, features):
    """Compute raw outputs from the public attributes, in float64."""
    x = np.asarray(features, dtype=np.float64)
    outputs = x
    for level, (coef, bias) in enumerate(
        zip(model.coefs_, model.intercepts_, strict=True)
    ):
        outputs = (np.maximum(outputs, 0) if level else outputs) @ coef + bias
    if model.module_.skip is not None:
        outputs = outputs + x @ model.skip_coef_
    return outputs


@pytest.mark.parametrize("hidden", [(5,), (4, 3)])
@pytest.mark.parametrize("far", [False, True])
def test_outputs_follow_from_the_public_attributes(hidden, far):
    features = X + np.array([0, 0, 1e6, 0, 0, 0]) * far
    clf = fit(features=features, hidden_layer_sizes=hidden)
    assert (clf.module_.input_mean is not None) == far
    assert_allclose(
        clf.decision_function(features), recomputed(clf, features), rtol=1e-4, atol=1e-5
    )
    reg = fit(FPERegressor, features=features, hidden_layer_sizes=hidden)
    assert_allclose(
        reg.predict(features), recomputed(reg, features)[:, 0], rtol=1e-4, atol=1e-4
    )


def test_skip_coef():
    clf = fit(budget=30)
    coef = clf.skip_coef_
    assert isinstance(coef, sparse.csr_array)
    assert coef.shape == (6, 3)
    n_kept = sum(c.nnz for c in clf.coefs_) + sum(len(b) for b in clf.intercepts_)
    assert coef.nnz + n_kept == clf.n_nonzero_ == 30
    for other in (fit(skip_connection=False), fit(hidden_layer_sizes=())):
        with pytest.raises(AttributeError, match="skip_coef_ exists after a fit with"):
            _ = other.skip_coef_
        assert not hasattr(other, "skip_coef_")
    with pytest.raises(AttributeError):
        _ = FPEClassifier(skip_connection=True).skip_coef_


@pytest.mark.parametrize("prune", WITHOUT_SKIP)
@pytest.mark.parametrize("hidden", [(5,), ()])
def test_what_cannot_be_combined_fails_before_training(prune, hidden, monkeypatch):
    monkeypatch.setattr(Net, "train_step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=rf"prune='{prune}' .* straight to outputs"):
        fit(prune=prune, split="shared", hidden_layer_sizes=hidden)


@pytest.mark.parametrize("prune", [n for n, rule in PRUNES.items() if rule.at_once])
def test_a_learned_split_needs_a_rule_that_prunes_in_training(prune, monkeypatch):
    monkeypatch.setattr(Net, "train_step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=rf"prune=.{prune}.*split='learned'|learned.*"):
        fit(prune=prune, split="learned", skip_connection=False)


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_other_kinds_of_input(kind, hidden):
    model = fit(kind, hidden_layer_sizes=hidden, standardize=False)
    single = X.astype(np.float32)
    expected = model.predict(X)
    same = fit(kind, sparse.csr_array(X), hidden_layer_sizes=hidden, standardize=False)
    assert_allclose(same.predict(sparse.csr_array(X)), expected, rtol=1e-4, atol=1e-4)
    if kind is FPERegressor:
        assert expected.dtype == np.float64
        assert model.predict(single).dtype == np.float32
        assert_allclose(model.predict(single), expected, rtol=1e-3, atol=1e-3)


def test_large_sparse_rows_are_streamed():
    rng = np.random.default_rng(0)
    wide = sparse.csr_array(rng.random((300, 50)) * (rng.random((300, 50)) < 0.1))
    y = (np.asarray(wide.sum(axis=1)).ravel() > 2.4).astype(int)
    clf = FPEClassifier((3,), skip_connection=True, **QUICK).fit(wide, y)
    dense = FPEClassifier((3,), skip_connection=True, **QUICK).fit(wide.toarray(), y)
    assert_allclose(
        clf.predict_proba(wide), dense.predict_proba(wide.toarray()), atol=1e-3
    )


@pytest.mark.parametrize("prune", WITH_SKIP)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_copies_files_and_clones(prune, hidden, tmp_path):
    clf = fit(prune=prune, hidden_layer_sizes=hidden, split="shared")
    expected = clf.predict_proba(X)
    save(clf, tmp_path / "model.fpe")
    buffer = io.BytesIO(pickle.dumps(clf))
    copies = [
        load(tmp_path / "model.fpe"),
        pickle.load(buffer),
        copy.deepcopy(clf),
        clone(clf).fit(X, Y),
    ]
    for twin in copies:
        assert_array_equal(twin.predict_proba(X), expected)
        assert twin.n_nonzero_ == clf.n_nonzero_


@pytest.mark.parametrize("prune", WITH_SKIP)
def test_a_cached_warm_up_gives_the_same_bits(prune, tmp_path):
    for skip in (True, False):
        parameters = {"prune": prune, "skip_connection": skip, "max_iter": 6}
        cold = fit(**parameters, memory=tmp_path)
        warm = fit(**parameters, memory=tmp_path)
        plain = fit(**parameters)
        for other in (cold, warm):
            assert_array_equal(other.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)])
def test_training_goes_on_within_the_budget(hidden):
    clf = fit(hidden_layer_sizes=hidden, prune="magnitude", warm_start=True, budget=19)
    masks = [layer.dense_mask() for layer in clf.module_.maps]
    clf.fit(X, Y)
    assert clf.n_nonzero_ == 19
    for mask, layer in zip(masks, clf.module_.maps, strict=True):
        assert torch.equal(layer.dense_mask(), mask)
    clf.partial_fit(X, Y)
    assert clf.n_nonzero_ == 19
    if hidden:
        with pytest.raises(ValueError, match="skip_connection must stay True"):
            clf.set_params(skip_connection=False).fit(X, Y)


def test_partial_fit_keeps_the_budget_after_every_call():
    clf = FPEClassifier((5,), skip_connection=True, prune="magnitude", **QUICK)
    clf.set_params(warmup=2)
    for call in range(5):
        clf.partial_fit(X, Y)
        assert (clf.n_nonzero_ <= clf.budget_) == (call >= 2)


def test_constant_targets_and_columns_use_no_skip():
    features = X.copy()
    features[:, 2] = 7.0
    reg = FPERegressor((5,), skip_connection=True, **QUICK)
    target = np.column_stack([TARGET, np.full(80, 3.0)])
    reg.fit(features, target)
    assert_allclose(reg.predict(features)[:, 1], 3.0)
    assert abs(reg.skip_coef_.toarray()[2]).max() == 0
    assert abs(reg.skip_coef_.toarray()[:, 1]).max() == 0


@pytest.mark.gpu
def test_moving_to_a_device_and_back():
    clf = fit(device="cuda")
    assert clf.module_.skip.weight.device.type == "cuda"
    on_cpu = pickle.loads(pickle.dumps(clf))
    on_cpu.set_params(device="cpu")
    assert_allclose(on_cpu.predict_proba(X), clf.predict_proba(X), atol=1e-5)


def test_a_search_over_split_prune_and_skip():
    possible = [
        {
            "split": [split],
            "prune": [prune],
            "skip_connection": [False, True] if rule.allows_skip else [False],
        }
        for prune, rule in PRUNES.items()
        for split, dealt in SPLITS.items()
        if not (dealt.overlapping and rule.at_once)
        if dealt.shared or not rule.needs_shared
    ]
    model = FPEClassifier((4,), feature_groups=GROUPS, **{**QUICK, "max_iter": 2})
    search = GridSearchCV(model, possible, cv=2, error_score="raise").fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# --------------------------------------------------------------------------------------
# No hidden layer
# --------------------------------------------------------------------------------------


def test_a_linear_model_is_a_logistic_regression():
    features, y = make_classification(
        400, 6, n_informative=4, n_classes=3, class_sep=0.6, random_state=1
    )
    ours = FPEClassifier(
        (),
        max_iter=200,
        warmup=0,
        learning_rate_init=0.05,
        weight_decay=0.0,
        random_state=0,
    ).fit(features, y)
    scaled = StandardScaler().fit_transform(features)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, y)
    assert_allclose(
        ours.predict_proba(features), theirs.predict_proba(scaled), atol=0.01
    )
    assert ours.n_nonzero_ == ours.budget_ == 21
    assert ours.n_layers_ == 2
    assert ours.expansion_ == ()
    assert_allclose(
        ours.decision_function(features), recomputed(ours, features), atol=1e-4
    )


def test_a_linear_model_is_a_linear_regression():
    ours = FPERegressor(
        (),
        max_iter=200,
        warmup=0,
        learning_rate_init=0.05,
        weight_decay=0.0,
        random_state=0,
    ).fit(X, TARGET)
    theirs = LinearRegression().fit(X, TARGET)
    assert_allclose(ours.coefs_[0].toarray()[:, 0], theirs.coef_, atol=0.02)
    assert_allclose(ours.predict(X), theirs.predict(X), atol=0.05)


@pytest.mark.parametrize("prune", WITH_SKIP)
@pytest.mark.parametrize("budget", [4, 7, 20, 21])
def test_a_linear_model_is_pruned_to_its_budget(prune, budget):
    clf = fit(hidden_layer_sizes=(), prune=prune, split="shared", budget=budget)
    assert clf.n_nonzero_ == budget


@pytest.mark.parametrize("expansion", [1, 4, 64])
def test_an_integer_expansion_means_nothing_to_a_linear_model(expansion):
    models = [
        FPEClassifier((), **{**QUICK, "expansion": e}).fit(X, Y) for e in (2, expansion)
    ]
    assert_array_equal(models[0].predict_proba(X), models[1].predict_proba(X))
    with pytest.raises(ValueError, match="per hidden layer, of which there are 0"):
        FPEClassifier((), **{**QUICK, "expansion": [2]}).fit(X, Y)


def test_check_expansion_of_a_linear_model():
    shape, budget = check_expansion([6, 3], 4, "shared", skip=True)
    assert shape.expansion == ()
    assert not shape.skip
    assert budget == 21


def test_a_transformer_needs_a_hidden_layer():
    transformer = FPETransformer((), max_iter=2)
    with pytest.raises(ValueError, match="at least one hidden layer, because"):
        transformer.fit(X, Y)
    with pytest.raises(ValueError, match="at least one hidden layer, because"):
        transformer.partial_fit(X, Y)
    assert "skip_connection" not in transformer.get_params()
