"""Callbacks of skorch that score, watch, stop and save."""

import numpy as np
import pytest
import skorch.callbacks
from sklearn.datasets import make_classification, make_regression
from sklearn.metrics import accuracy_score, log_loss

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._rewiring import Rewired
from sklearn_fpe.nn._prune import PRUNES

# Pruned at once, so that weights of every epoch may be loaded.
QUICK = {
    "hidden_layer_sizes": (6,),
    "prune": "magnitude",
    "expansion": 2,
    "max_iter": 6,
    "warmup": 2,
    "batch_size": 32,
    "random_state": 0,
}


def labels(n_classes=3):
    X, y = make_classification(
        200, 8, n_informative=6, n_classes=n_classes, random_state=0
    )
    return X, np.array(["ant", "bee", "caterpillar"])[y]


def numbers():
    return make_regression(200, 8, noise=1.0, random_state=0)


class Histories(skorch.callbacks.Callback):
    """Keeps the history of every phase, in a list that copies share."""

    kept: list = []  # noqa: RUF012

    def on_train_end(self, net, **kwargs):
        self.kept.append(list(net.history))


@pytest.fixture
def histories():
    Histories.kept.clear()
    return Histories.kept


def fit(kind, X, y, *callbacks, **settings):
    """Fit with rows held out at the end; stop by the callbacks only."""
    held = {"X_val": X[150:], "y_val": y[150:]}
    settings = {"early_stopping": True, "n_iter_no_change": np.inf} | settings
    model = kind(**QUICK | settings, skorch_callbacks=[*callbacks, Histories()])
    if not settings["early_stopping"]:
        return model.fit(X[:150], y[:150])
    return model.fit(X[:150], y[:150], **held)


SCORES = {
    "accuracy": (FPEClassifier, labels),
    "balanced_accuracy": (FPETransformer, labels),
    "neg_log_loss": (FPEClassifier, labels),
    "roc_auc_ovr": (FPEClassifier, labels),
    "roc_auc": (FPEClassifier, lambda: labels(2)),
    "f1_macro": (FPEClassifier, labels),
    "r2": (FPERegressor, numbers),
    "neg_mean_absolute_error": (FPERegressor, numbers),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("on_train", [True, False])
@pytest.mark.parametrize("use_caching", [True, False])
def test_scores_of_epochs(score, on_train, use_caching, histories):
    kind, problem = SCORES[score]
    X, y = problem()
    callback = skorch.callbacks.EpochScoring(
        score, on_train=on_train, use_caching=use_caching, lower_is_better=False
    )
    model = fit(kind, X, y, callback, scoring=score)
    scores = [[epoch[score] for epoch in phase] for phase in histories]
    assert [len(phase) for phase in scores] == [2, 4]
    assert np.isfinite(np.concatenate(scores)).all()
    if not on_train:
        # They are those of the estimator's own scoring.
        np.testing.assert_allclose(scores[1], model.validation_scores_, rtol=1e-4)


def test_scores_on_training_rows_are_of_the_users_targets(histories):
    X, y = labels()
    seen = []

    def score(net, X, y_true):
        proba = net.predict_proba(X)
        seen.append(y_true)
        return accuracy_score(y_true, net.classes_[proba.argmax(axis=1)])

    callback = skorch.callbacks.EpochScoring(score, on_train=True)
    fit(FPEClassifier, X, y, callback)
    assert [sorted(y_true) for y_true in seen] == [sorted(y[:150])] * 6
    assert histories[1][-1]["score"] > 0.36


def test_scores_of_batches(histories):
    X, y = numbers()
    callback = skorch.callbacks.BatchScoring("r2", name="batch_r2", on_train=True)
    fit(FPERegressor, X, y, callback, early_stopping=False)
    assert all(np.isfinite(epoch["batch_r2"]) for phase in histories for epoch in phase)


def test_several_labels_are_scored(histories):
    X, y = labels()
    Y = np.stack([y == "ant", X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    fit(FPEClassifier, X, Y, skorch.callbacks.EpochScoring("f1_macro"))
    assert all(0 <= epoch["f1_macro"] <= 1 for phase in histories for epoch in phase)


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
def test_validation_loss_is_in_the_history(kind, histories):
    X, y = labels() if kind is FPEClassifier else numbers()
    model = fit(kind, X, y)
    losses = [epoch["valid_loss"] for epoch in histories[1]]
    np.testing.assert_allclose(losses, model.validation_loss_curve_, rtol=1e-5)
    assert [epoch["epoch"] for epoch in histories[1]] == [1, 2, 3, 4]


@pytest.mark.parametrize("load_best", [False, True])
def test_early_stopping_by_skorch(load_best, histories):
    X, y = labels()
    stopping = skorch.callbacks.EarlyStopping(
        "valid_loss", patience=2, load_best=load_best
    )
    model = fit(
        FPEClassifier, X, y, stopping, learning_rate_init=0.3, max_iter=60, warmup=1
    )
    losses = model.validation_loss_curve_
    assert 3 <= len(losses) < 59
    assert min(losses[-2:]) >= min(losses[:-2]) * (1 - 1e-3)
    if load_best:
        found = log_loss(y[150:], model.predict_proba(X[150:]))
        assert found == pytest.approx(min(losses), rel=1e-4)


def test_checkpoint_brings_back_the_weights_that_it_watched(tmp_path, histories):
    X, y = labels()
    checkpoint = skorch.callbacks.Checkpoint(dirname=tmp_path, load_best=True)
    model = fit(
        FPEClassifier, X, y, checkpoint, learning_rate_init=0.3, max_iter=20, warmup=1
    )
    losses = model.validation_loss_curve_
    found = log_loss(y[150:], model.predict_proba(X[150:]))
    assert found == pytest.approx(min(losses), rel=1e-4)
    assert model.best_iter_ == 1 + 1 + int(np.argmin(losses))
    # What is said of the weights is true of them.
    assert model.best_validation_score_ == model.score(X[150:], y[150:])
    assert model.best_validation_score_ == model.validation_scores_[np.argmin(losses)]


def test_checkpoint_that_only_saves_changes_nothing(tmp_path, histories):
    X, y = labels()
    plain = fit(FPEClassifier, X, y)
    checkpoint = skorch.callbacks.Checkpoint(dirname=tmp_path)
    model = fit(FPEClassifier, X, y, checkpoint)
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))
    assert (tmp_path / "params.pt").exists()


def test_callback_that_watches_training_needs_no_held_out_rows(histories):
    X, y = numbers()
    stopping = skorch.callbacks.EarlyStopping("train_r2", 1, lower_is_better=False)
    scoring = skorch.callbacks.EpochScoring("r2", on_train=True, name="train_r2")
    settings = {"learning_rate_init": 3.0, "max_iter": 60, "warmup": 1}
    model = fit(FPERegressor, X, y, scoring, stopping, early_stopping=False, **settings)
    assert model.n_iter_ < 60


REFUSED = [
    ("LRScheduler", {}, {}, "the parameter learning_rate sets the rate"),
    ("InputShapeSetter", {}, {}, "set the shape of the network"),
    ("EarlyStopping", {}, {"early_stopping": False}, "'valid_loss'.* held-out"),
    ("Checkpoint", {}, {"early_stopping": False}, "'valid_loss_best'.* held-out"),
    ("EpochScoring", {"scoring": "r2"}, {"early_stopping": False}, "on_train=False"),
    ("BatchScoring", {"scoring": "r2"}, {"early_stopping": False}, "on_train=False"),
    ("PassthroughScoring", {"name": "a"}, {"early_stopping": False}, "on_train=False"),
    ("EarlyStopping", {"load_best": True}, {"prune": "gradual"}, "before prune='gra"),
    ("Checkpoint", {"load_best": True}, {"prune": "gradual"}, "before prune='gradual'"),
]


@pytest.mark.parametrize(("name", "arguments", "settings", "message"), REFUSED)
def test_callbacks_that_would_not_work_are_refused(name, arguments, settings, message):
    X, y = labels()
    kind = getattr(skorch.callbacks, name)
    settings = {"early_stopping": True} | settings
    callbacks = [kind(**arguments), ("mine", kind(**arguments))]
    if not arguments:
        callbacks.append(kind)
    for callback in callbacks:
        model = FPEClassifier(**QUICK | settings, skorch_callbacks=[callback])
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            model.fit(X, y)


def test_callbacks_and_gradual_pruning():
    X, y = labels()
    clipping = skorch.callbacks.GradientNormClipping(1.0)
    for split in ("shared", "learned"):
        model = FPEClassifier(
            **{**QUICK, "prune": "gradual"},
            split=split,
            skorch_callbacks=[clipping],
        )
        model.fit(X, y)
        assert model.n_nonzero_ == model.budget_


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prune", PRUNES)
def test_autograd_prunes_as_the_training_loop_does(prune, seed):
    # Pruned weights that may come back are chosen by their gradients. They move once,
    # because weights that came back together are equal but for rounding.
    X, y = labels()
    split = "learned" if prune == "gradual" else "shared"
    rule = Rewired(share=0.9, n_moves=2, end=1.0) if prune == "rewired" else prune
    model = FPEClassifier(
        (4,), split=split, prune=rule, max_iter=4, warmup=1, random_state=seed
    )
    expected = model.fit(X, y).predict_proba(X)
    model.set_params(skorch_callbacks=[skorch.callbacks.EpochTimer()])
    found = model.fit(X, y).predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-4)
