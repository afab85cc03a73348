"""Several networks in one estimator, whose predictions are averaged."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)

import sklearn_fpe
from sklearn_fpe import FPEClassifier, FPERegressor, FPESearchCV
from sklearn_fpe._engine import _stack
from sklearn_fpe.inspection import feature_capacity
from sklearn_fpe.nn import MLP, Ensemble

QUICK = {"hidden_layer_sizes": (4,), "max_iter": 5, "batch_size": 32, "random_state": 0}
X, Y = make_classification(
    160, 10, n_informative=6, n_classes=3, n_clusters_per_class=1, random_state=0
)
PROBLEMS = {
    "multiclass": (FPEClassifier, X, np.array(["a", "b", "c"])[Y]),
    "binary": (FPEClassifier, X, Y > 0),
    "multilabel": (
        FPEClassifier,
        *make_multilabel_classification(120, 10, n_classes=3, random_state=0),
    ),
    "regression": (FPERegressor, *make_regression(120, 10, random_state=0)),
    "several targets": (
        FPERegressor,
        *make_regression(120, 10, n_targets=2, random_state=0),
    ),
}


def predicted(model, X):
    """Return probabilities, or predictions of a regressor."""
    return getattr(model, "predict_proba", model.predict)(X)


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]


@pytest.mark.parametrize("n_estimators", [2, 3])
def test_predictions_are_means_and_counts_are_sums(problem, n_estimators):
    kind, X, y = problem
    model = kind(**QUICK, n_estimators=n_estimators).fit(X, y)
    members = model.estimators_
    assert len(members) == n_estimators
    mean = sum(predicted(member, X) for member in members) / n_estimators
    scale = np.abs(mean).max()
    assert_allclose(predicted(model, X), mean, rtol=1e-4, atol=1e-5 * scale)
    assert model.n_nonzero_ == sum(member.n_nonzero_ for member in members)
    assert model.budget_ == sum(member.budget_ for member in members)
    assert model.n_nonzero_ <= model.budget_
    curves = [member.loss_curve_ for member in members]
    assert_allclose(model.loss_curve_, np.mean(curves, axis=0))
    assert all(clone(member).n_estimators == 1 for member in members)


def test_the_first_network_is_that_of_a_single_fit(problem):
    kind, X, y = problem
    single = kind(**QUICK, prune="magnitude").fit(X, y)
    first, second = clone(single).set_params(n_estimators=2).fit(X, y).estimators_
    scale = np.abs(predicted(single, X)).max()
    assert_allclose(predicted(first, X), predicted(single, X), atol=1e-4 * scale)
    assert np.abs(predicted(second, X) - predicted(single, X)).max() > 1e-3 * scale


def test_the_networks_train_as_one(monkeypatch):
    sizes = []
    real = _stack.Stack.run_epochs
    monkeypatch.setattr(
        _stack.Stack,
        "run_epochs",
        lambda self, epochs: sizes.append(len(epochs)) or real(self, epochs),
    )
    FPEClassifier(**QUICK, n_estimators=4).fit(X, Y)
    assert sizes == [4] * QUICK["max_iter"]


def test_equal_seeds_give_equal_bits():
    models = [FPEClassifier(**QUICK, n_estimators=3).fit(X, Y) for _ in range(2)]
    assert_array_equal(*(model.predict_proba(X) for model in models))


@pytest.mark.parametrize("how", ["pickle", "file"])
def test_stored_like_one(problem, how, tmp_path):
    kind, X, y = problem
    model = kind(**QUICK, n_estimators=3, early_stopping=True).fit(X, y)
    if how == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        sklearn_fpe.save(model, tmp_path / "model.fpe")
        again = sklearn_fpe.load(tmp_path / "model.fpe")
    assert_array_equal(predicted(again, X), predicted(model, X))
    assert again.n_nonzero_ == model.n_nonzero_
    for one, other in zip(again.estimators_, model.estimators_, strict=True):
        assert one.validation_scores_ == other.validation_scores_
        assert one.learned_.recipe.seeds == other.learned_.recipe.seeds


def test_exported_like_one(problem):
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession
    kind, X, y = problem
    model = kind(**QUICK, n_estimators=3).fit(X, y)
    exported = sklearn_fpe.to_onnx(model).SerializeToString()
    found = session(exported).run(None, {"X": X.astype(np.float32)})[-1]
    expected = predicted(model, X.astype(np.float32))
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_partial_fit_and_warm_start_train_every_network():
    model = FPEClassifier(**QUICK, n_estimators=2, warmup=1)
    for _ in range(3):
        model.partial_fit(X, Y)
    assert model.phase_ == "fine-tune"
    assert len({member.loss_curve_[-1] for member in model.estimators_}) == 2
    assert [len(member.loss_curve_) for member in model.estimators_] == [3, 3]
    before = [member.loss_curve_ for member in model.estimators_]
    model.set_params(warm_start=True, prune="magnitude", split="shared").fit(X, Y)
    for member, curve in zip(model.estimators_, before, strict=True):
        assert member.loss_curve_[:3] == curve
    with pytest.raises(ValueError, match="n_estimators must stay 2"):
        model.set_params(n_estimators=3).fit(X, Y)


def test_what_belongs_to_one_network_says_where_to_look():
    model = FPEClassifier(**QUICK, n_estimators=2, early_stopping=True).fit(X, Y)
    names = ("coefs_", "intercepts_", "best_iter_", "validation_scores_")
    for name in names:
        with pytest.raises(AttributeError, match="estimators_"):
            getattr(model, name)
        assert getattr(model.estimators_[1], name) is not None
    with pytest.raises(ValueError, match="one of its estimators_"):
        feature_capacity(model)
    n_units = sum(m.hidden_activations(X).shape[1] for m in model.estimators_)
    assert model.hidden_activations(X).shape == (len(X), n_units)


def test_memory_holds_a_warm_up_for_every_network(tmp_path):
    model = FPEClassifier(**QUICK, n_estimators=2, memory=tmp_path)
    cold = model.fit(X, Y).predict_proba(X)
    without = clone(model).set_params(memory=None).fit(X, Y).predict_proba(X)
    warm = clone(model).fit(X, Y).predict_proba(X)
    assert_allclose(cold, without, atol=1e-3)
    assert_allclose(warm, cold, atol=1e-3)


def test_progress_and_verbose(capsys):
    model = FPEClassifier(**QUICK, n_estimators=2, verbose=True)
    model.set_callbacks(ProgressBar()).fit(X, Y)
    printed = capsys.readouterr().out
    assert "network 1, fine-tune, epoch 5/5" in printed
    assert "network 2, fine-tune, epoch 5/5" in printed


def test_a_network_that_diverges_fails_the_fit():
    model = FPEClassifier(**QUICK, n_estimators=2, activation="identity")
    with pytest.raises(FloatingPointError, match="learning_rate_init"):
        model.set_params(learning_rate_init=1e30).fit(X, Y)
    assert not hasattr(model, "learned_")


def test_an_axis_of_a_search():
    search = FPESearchCV(FPEClassifier(**QUICK), {"n_estimators": [1, 3]}, cv=2)
    search.fit(X, Y)
    alone = FPEClassifier(**QUICK, n_estimators=3)
    train, test = next(iter(search._checked_cv_orig.split(X, Y)))
    expected = alone.fit(X[train], Y[train]).score(X[test], Y[test])
    found = search.cv_results_["split0_test_score"][1]
    assert found == pytest.approx(expected, abs=0.02)


def test_an_ensemble_of_networks_says_what_it_needs():
    members = [MLP.dense([4, 3, 2])]
    with pytest.raises(ValueError, match="link must be one of"):
        Ensemble(members, "cubic")
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([], "softmax")


@pytest.mark.parametrize("link", ["softmax", "sigmoid", "identity"])
def test_gradients_flow_to_every_member(link):
    members = [MLP.dense([4, 3, 2]) for _ in range(3)]
    network = Ensemble(members, link)
    x = torch.randn(5, 4)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        out = torch.empty(5, 2)
        assert network(x, out=out) is out
        assert_allclose(out.numpy(), network(x).numpy())
