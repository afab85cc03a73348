"""FPEClassifier: what it learns, what it predicts, what it says of itself."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    make_classification,
    make_multilabel_classification,
)
from sklearn.model_selection import train_test_split

from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine import _device

ACTIVATIONS = {
    "identity": lambda x: x,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def problem(n_classes=3, n_samples=120, n_features=12, seed=0):
    return make_classification(
        n_samples,
        n_features,
        n_informative=6,
        n_classes=n_classes,
        class_sep=2.0,
        random_state=seed,
    )


LEARN = {"max_iter": 15, "learning_rate_init": 0.03, "random_state": 0}


def forward(model, X):
    """Raw outputs by the public coefficients alone."""
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    for coef, intercept in layers[:-1]:
        X = ACTIVATIONS[model.activation](X @ coef.toarray() + intercept)
    coef, intercept = layers[-1]
    return X @ coef.toarray() + intercept


# --------------------------------------------------------------------------------------
# Learning
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "max_iter"), [(load_iris, 20), (load_breast_cancer, 6), (load_digits, 10)]
)
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_raw_features_are_learned_with_default_settings(load, max_iter, prune):
    X, y = load(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X[:700], y[:700], random_state=0, stratify=y[:700]
    )
    model = FPEClassifier(prune=prune, max_iter=max_iter, random_state=0)
    with warnings.catch_warnings():  # iris has four inputs only
        warnings.simplefilter("ignore")
        model.fit(X_train, y_train)
    assert model.score(X_test, y_test) > 0.85


@pytest.mark.parametrize(("location", "scale"), [(0.3, 0.04), (-1e6, 1.0), (5.0, 1e4)])
def test_scale_of_the_features_is_no_matter(location, scale):
    X, y = problem()
    scores = [
        FPEClassifier((8,), **LEARN).fit(Z, y).score(Z, y)
        for Z in (X, location + scale * X)
    ]
    assert scores[0] > 0.85
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


def test_expansion_beats_its_dense_baseline_on_digits():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    scores = {}
    for expansion in (1, 4):
        models = [
            FPEClassifier((4,), expansion=expansion, max_iter=15, random_state=seed)
            for seed in range(2)
        ]
        models = [model.fit(X_train, y_train) for model in models]
        assert {m.n_nonzero_ for m in models} == {64 * 4 + 4 + 4 * 10 + 10}
        scores[expansion] = np.mean([m.score(X_test, y_test) for m in models])
    assert scores[4] > scores[1] + 0.04


def test_without_standardize_the_scale_matters_and_nothing_is_folded():
    X, y = problem()
    X[:, 0] = X[:, 0] * 1e-3 + 1.0
    model = FPEClassifier((8,), max_iter=2, standardize=False, random_state=0)
    other = FPEClassifier((8,), max_iter=2, random_state=0)
    # Folding divides by the spread of the column.
    assert abs(model.fit(X, y).coefs_[0][[0]]).max() < 10
    assert abs(other.fit(X, y).coefs_[0][[0]]).max() > 10


def test_constant_columns_have_no_say():
    X, y = problem()
    X[:, 3] = 0.1
    X[:, 7] = -1e9
    model = FPEClassifier((6,), expansion=2, **LEARN).fit(X, y)
    other = X.copy()
    other[:, [3, 7]] = 5.0
    assert model.score(X, y) > 0.7
    np.testing.assert_array_equal(model.predict_proba(other), model.predict_proba(X))


# --------------------------------------------------------------------------------------
# Predictions
# --------------------------------------------------------------------------------------


def test_binary_outputs():
    X, y = problem(n_classes=2)
    model = FPEClassifier((6,), max_iter=4, random_state=0).fit(X, y)
    decision, proba = model.decision_function(X), model.predict_proba(X)
    assert model.n_outputs_ == 1
    assert model.out_activation_ == "logistic"
    assert decision.shape == (len(X),)
    assert proba.shape == (len(X), 2)
    np.testing.assert_allclose(proba[:, 1], expit(decision))
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    np.testing.assert_array_equal(model.predict(X), (decision > 0).astype(int))


def test_multiclass_outputs():
    X, y = problem(n_classes=4)
    model = FPEClassifier((6,), max_iter=4, random_state=0).fit(X, y)
    decision, proba = model.decision_function(X), model.predict_proba(X)
    assert model.n_outputs_ == 4
    assert model.out_activation_ == "softmax"
    np.testing.assert_allclose(proba, softmax(decision, axis=1))
    np.testing.assert_array_equal(model.predict(X), proba.argmax(axis=1))


def test_multilabel_outputs():
    X, Y = make_multilabel_classification(
        150, 12, n_classes=4, allow_unlabeled=True, random_state=0
    )
    model = FPEClassifier((16,), **LEARN).fit(X, Y)
    decision, proba = model.decision_function(X), model.predict_proba(X)
    assert model.n_outputs_ == 4
    assert model.out_activation_ == "logistic"
    np.testing.assert_array_equal(model.classes_, range(4))
    np.testing.assert_allclose(proba, expit(decision))
    np.testing.assert_array_equal(model.predict(X), (proba > 0.5).astype(int))
    assert (model.predict(X) == Y).mean() > 0.85


@pytest.mark.parametrize("n_classes", [2, 3])
def test_log_probabilities_do_not_underflow(n_classes):
    X, y = problem(n_classes=n_classes)
    model = FPEClassifier((6,), max_iter=4, weight_decay=0.0, random_state=0)
    model.fit(X, y)
    np.testing.assert_allclose(
        model.predict_log_proba(X), np.log(model.predict_proba(X)), rtol=1e-6
    )
    far = 1e5 * X
    assert (model.predict_proba(far) == 0).any()
    assert np.isfinite(model.predict_log_proba(far)).all()
    assert model.predict_log_proba(far).min() < -1000


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["c", "a", "b"]),
        np.array(["one", "two", "three"], dtype=object),
        np.array([-7, 30, 12]),
        np.array([0.0, 2.0, 1.0]),
        np.array([2, 0, 1], dtype=np.uint8),
    ],
)
def test_labels_of_any_type_come_back(labels):
    X, y = problem()
    model = FPEClassifier((8,), **LEARN).fit(X, labels[y])
    plain = FPEClassifier((8,), **LEARN).fit(
        X, np.searchsorted(np.sort(labels), labels[y])
    )
    assert model.classes_.dtype == labels.dtype
    np.testing.assert_array_equal(model.classes_, np.sort(labels))
    assert model.predict(X).dtype == labels.dtype
    np.testing.assert_array_equal(model.predict(X), np.sort(labels)[plain.predict(X)])
    assert model.score(X, labels[y]) > 0.6


def test_boolean_labels_come_back():
    X, y = problem(n_classes=2)
    model = FPEClassifier((6,), **LEARN).fit(X, y == 1)
    assert model.predict(X).dtype == bool
    assert model.score(X, y == 1) > 0.8


def test_precision_of_predictions_is_that_of_the_input():
    X, y = problem()
    model = FPEClassifier((6,), max_iter=2, random_state=0).fit(X, y)
    assert model.predict_proba(X).dtype == np.float64
    assert model.predict_proba(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(
        model.predict_proba(X), model.predict_proba(X.astype(np.float32)), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prediction_in_pieces_is_that_at_once(monkeypatch, dtype):
    X, y = problem()
    X = X.astype(dtype)
    model = FPEClassifier((6,), max_iter=2, random_state=0).fit(X, y)
    whole = model.predict_proba(X)
    # Rows of X, of 24 activations at most, in pieces of a few.
    n_bytes = 8 * (X.shape[1] + 24) * 7
    monkeypatch.setattr(_device, "PREDICTION_BYTES", n_bytes)
    np.testing.assert_allclose(model.predict_proba(X), whole, rtol=1e-5)
    rows = np.concatenate([model.predict_proba(X[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(rows, whole[:9], rtol=1e-5)


# --------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_coefficients_act_on_the_raw_input(activation, n_classes):
    X, y = problem(n_classes=n_classes)
    X = 3.0 + 0.1 * X
    X[:, 2] += 1e6  # so far off that the centring is kept apart
    model = FPEClassifier(
        (7, 5), expansion=(3, 2), activation=activation, max_iter=3, random_state=0
    ).fit(X, y)
    outputs = forward(model, X)
    expected = model.decision_function(X).reshape(len(X), -1)
    # Coefficients and intercepts are rounded to single precision apart.
    np.testing.assert_allclose(outputs, expected, atol=2e-1 * abs(expected).max())
    near = np.delete(np.arange(12), 2)
    model.fit(X[:, near], y)
    expected = model.decision_function(X[:, near]).reshape(len(X), -1)
    np.testing.assert_allclose(forward(model, X[:, near]), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("split", "prune"),
    [
        *[(s, "magnitude") for s in ("random", "shared", "contiguous", "feature")],
        *[(s, "structured") for s in ("shared", "contiguous", "feature")],
    ],
)
@pytest.mark.parametrize("hidden", [(8,), (9, 6, 5)])
def test_budget_is_kept(split, prune, hidden):
    X, y = problem()
    model = FPEClassifier(
        hidden, expansion=3, split=split, prune=prune, max_iter=3, random_state=0
    ).fit(X, y)
    widths = [12, *hidden, 3]
    parent = sum((a + 1) * b for a, b in pairwise(widths))
    assert model.budget_ == parent
    assert model.n_nonzero_ <= parent
    if prune == "magnitude":
        assert model.n_nonzero_ == parent
    stored = sum(coef.nnz for coef in model.coefs_)
    stored += sum(len(intercept) for intercept in model.intercepts_)
    nonzero = sum(np.count_nonzero(coef.toarray()) for coef in model.coefs_)
    nonzero += sum(np.count_nonzero(intercept) for intercept in model.intercepts_)
    assert stored == model.n_nonzero_
    assert nonzero <= stored
    assert model.n_layers_ == len(hidden) + 2
    assert model.expansion_ == (3,) * len(hidden)


@pytest.mark.parametrize("budget", [60, 100, 163])
def test_budget_can_be_chosen(budget):
    X, y = problem()
    model = FPEClassifier(
        (8,), expansion=2, budget=budget, max_iter=2, weight_decay=0.1, random_state=0
    ).fit(X, y)
    assert model.budget_ == model.n_nonzero_ == budget


def test_dense_baseline_runs_the_same_schedule():
    X, y = problem()
    dense = FPEClassifier((8,), expansion=1, max_iter=6, random_state=0).fit(X, y)
    wide = FPEClassifier((8,), expansion=4, max_iter=6, random_state=0).fit(X, y)
    assert dense.n_iter_ == wide.n_iter_ == 6
    assert dense.n_nonzero_ == wide.n_nonzero_ == dense.budget_
    assert dense.expansion_ == (1,)
    assert [coef.shape for coef in dense.coefs_] == [(12, 8), (8, 3)]
    assert wide.coefs_[0].shape[1] > 8
    # The warm-up is the same network in training; then the ways part.
    assert dense.loss_curve_[:1] == wide.loss_curve_[:1]
    assert dense.loss_curve_[1:] != wide.loss_curve_[1:]
    assert dense.best_loss_ == min(dense.loss_curve_)


@pytest.mark.parametrize(("warmup", "n_dense"), [(0, 0), (3, 3), (0.5, 5), (1.0, 10)])
def test_warmup_counts_epochs_or_a_fraction(warmup, n_dense):
    X, y = problem()
    common = {"hidden_layer_sizes": (8,), "max_iter": 10, "random_state": 0}
    model = FPEClassifier(**common, warmup=warmup).fit(X, y)
    dense = FPEClassifier(**common, expansion=1, warmup=1.0).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 10
    same = np.equal(model.loss_curve_, dense.loss_curve_)
    np.testing.assert_array_equal(same, np.arange(10) < n_dense)
    assert model.phase_ == "fine-tune"
    assert model.expansion_ == (4,)


def test_groups_stay_together():
    X, y = problem()
    groups = np.repeat(["a", "b", "c", "d"], 3)
    model = FPEClassifier(
        (6,),
        expansion=2,
        split="groups",
        feature_groups=groups,
        max_iter=2,
        random_state=0,
    ).fit(X, y)
    kept = model.coefs_[0].toarray() != 0
    parents = model.module_.parents[0].numpy()
    for parent in range(6):
        children = np.flatnonzero(parents == parent)
        readers = kept[:, children]
        for label in "abcd":
            # Of all siblings only one reads of a group.
            assert readers[groups == label].any(axis=0).sum() <= 1


def test_split_can_be_a_function():
    X, y = problem()
    calls = []

    def by_parity(weight, n_children, rng):
        calls.append(weight.copy())
        return np.tile(np.arange(weight.shape[1]) % n_children, (len(weight), 1))

    model = FPEClassifier(
        (6,), expansion=2, split=by_parity, max_iter=4, warmup=2, random_state=0
    ).fit(X, y)
    kept = model.coefs_[0].toarray() != 0
    assert not (kept[::2].any(axis=0) & kept[1::2].any(axis=0)).any()
    # It saw the trained weights, after it was tried on the untrained ones.
    assert len(calls) == 2
    assert not np.array_equal(calls[0], calls[1])


def test_verbose_prints_a_line_per_epoch(capsys):
    X, y = problem()
    FPEClassifier((4,), expansion=2, max_iter=3, warmup=1).fit(X, y)
    assert capsys.readouterr().out == ""
    model = FPEClassifier((4,), expansion=2, max_iter=3, warmup=1, verbose=True)
    lines = model.fit(X, y).partial_fit(X, y) and capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "warm-up, epoch 1/3",
        "fine-tune, epoch 2/3",
        "fine-tune, epoch 3/3",
        "fine-tune, epoch 4",
    ]
    assert f"loss {model.loss_curve_[0]:.6f}" in lines[0]


def test_unreachable_expansion_is_reduced_with_one_warning():
    X, y = load_iris(return_X_y=True)
    model = FPEClassifier((8,), expansion=9, max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="expansion=.* is not possible") as record:
        model.fit(X, y)
    assert len(record) == 1
    # It points at the line above, not into the library.
    assert record[0].filename == __file__
    assert 1 < model.expansion_[0] <= 4
    assert model.n_nonzero_ == model.budget_


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithm_of_a_probability_that_rounds_to_one_is_zero(n_classes, dtype):
    X, y = problem(n_classes=n_classes)
    model = FPEClassifier((6,), max_iter=20, random_state=0).fit(X, y)
    X = (X * np.logspace(0, 3, len(X))[:, None]).astype(dtype)
    proba, log_proba = model.predict_proba(X), model.predict_log_proba(X)
    assert (proba == 1).any()
    assert (log_proba[proba == 1] == 0).all()
    kept = proba > 1e-30
    np.testing.assert_allclose(
        log_proba[kept], np.log(proba[kept]), rtol=1e-4, atol=2e-7
    )
    assert np.isfinite(log_proba).all()
