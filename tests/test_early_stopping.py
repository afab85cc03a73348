"""Validation rows, best weights, stopping."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _views
from sklearn_fpe._estimators import _base, _held_out

# Pruned at once, so that every epoch of the fine-tuning has the same network.
QUICK = {
    "hidden_layer_sizes": (8,),
    "split": "shared",
    "prune": "magnitude",
    "weight_decay": 0.0,
    "expansion": 2,
    "max_iter": 8,
    "learning_rate_init": 0.03,
    "early_stopping": True,
    "validation_fraction": 0.25,
    "random_state": 0,
}


def classification(n_samples=160):
    return make_classification(
        n_samples, 8, n_informative=6, n_classes=3, flip_y=0.2, random_state=0
    )


def regression(n_samples=160):
    return make_regression(n_samples, 8, noise=50.0, random_state=0)


PROBLEMS = [(FPEClassifier, classification), (FPERegressor, regression)]


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_best_weights_are_kept(kind, problem):
    X, y = problem()
    model = kind(**QUICK, n_iter_no_change=100, learning_rate="constant")
    model.set_params(learning_rate_init=1.0)  # so large that scores fall again
    model.fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    scores = model.validation_scores_
    assert model.best_validation_score_ == max(scores)
    assert scores[-1] < max(scores)
    assert model.score(X[120:], y[120:]) == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_stopping_and_best_weights_concern_the_fine_tuning_only(kind, problem):
    X, y = problem()
    # Nothing ever counts as an improvement after the first epoch.
    model = kind(**QUICK, warmup=5, tol=10.0, n_iter_no_change=1).fit(X, y)
    assert model.n_iter_ == 5 + 3
    assert len(model.loss_curve_) == model.n_iter_
    assert len(model.validation_scores_) == 3
    assert model.phase_ == "fine-tune"
    model.set_params(max_iter=5).fit(X, y)  # nothing but the warm-up
    assert model.n_iter_ == 5
    assert model.validation_scores_ == []
    assert model.phase_ == "fine-tune"


@pytest.mark.parametrize(("tol", "n_iter"), [(0.0, 8), (10.0, 5)])
def test_tolerance_decides_what_an_improvement_is(tol, n_iter):
    X, y = classification()
    model = FPEClassifier(**QUICK, warmup=0, n_iter_no_change=3)
    model.set_params(tol=tol, learning_rate="constant")
    # The same rows again: the score rises nearly all the time.
    model.fit(X, y, X_val=X, y_val=y)
    assert model.n_iter_ == n_iter
    assert len(model.validation_scores_) == n_iter


def test_patience():
    X, y = classification()
    for patience in (1, 2, 4):
        model = FPEClassifier(**QUICK, warmup=1, tol=10.0, n_iter_no_change=patience)
        assert model.fit(X, y).n_iter_ == 1 + 1 + (patience + 1)
    model.set_params(n_iter_no_change=np.inf).fit(X, y)
    assert model.n_iter_ == 8


def test_without_early_stopping_the_schedule_runs_to_its_end():
    X, y = classification()
    model = FPEClassifier(**QUICK, tol=10.0, n_iter_no_change=1)
    model.set_params(early_stopping=False).fit(X, y)
    assert model.n_iter_ == 8
    assert not hasattr(model, "validation_scores_")
    assert not hasattr(model, "best_validation_score_")


def test_holding_out_is_giving_the_rows(monkeypatch):
    X, y = classification()
    model = FPEClassifier(**QUICK).fit(X, y)
    split = {}

    def record(rows, **kwargs):
        train, held = real(rows, **kwargs)
        split.update(train=np.sort(train), held=np.sort(held), **kwargs)
        return train, held

    real = _held_out.train_test_split
    monkeypatch.setattr(_held_out, "train_test_split", record)
    model.fit(X, y)
    train, held = split["train"], split["held"]
    np.testing.assert_array_equal(np.sort(np.r_[train, held]), range(len(X)))
    assert len(held) == 40
    given = FPEClassifier(**QUICK).fit(X[train], y[train], X_val=X[held], y_val=y[held])
    assert given.validation_scores_ == model.validation_scores_
    assert given.loss_curve_ == model.loss_curve_
    np.testing.assert_array_equal(given.predict_proba(X), model.predict_proba(X))


def test_hold_out_is_stratified(monkeypatch):
    X, y = classification()
    y = np.where(y == 2, (np.arange(160) % 20 == 0) * 2, y)
    seen = []

    def record(*args):
        train, held = hold_out(*args)
        seen.append((train.y, held.y))
        return train, held

    hold_out = _base.hold_out
    monkeypatch.setattr(_base, "hold_out", record)
    FPEClassifier(**QUICK).fit(X, y)
    train, held = (np.bincount(labels, minlength=3) for labels in seen[0])
    np.testing.assert_allclose(held / held.sum(), train / train.sum(), atol=0.02)
    assert held[2] > 0


def test_same_rows_are_held_out_whatever_the_expansion():
    X, y = classification()
    one = FPEClassifier(**{**QUICK, "expansion": 1}).fit(X, y)
    two = FPEClassifier(**QUICK).fit(X, y)
    assert one.loss_curve_[0] == two.loss_curve_[0]


@pytest.mark.parametrize("dtype", [object, "U5"])
def test_string_labels(dtype):
    X, y = classification()
    labels = np.array(["one", "three", "two"], dtype=dtype)[y]
    plain = FPEClassifier(**QUICK).fit(X, y)
    named = FPEClassifier(**QUICK).fit(X, labels)
    assert named.validation_scores_ == plain.validation_scores_
    given = FPEClassifier(**QUICK)
    given.fit(X[:120], labels[:120], X_val=X[120:], y_val=labels[120:])
    plain.fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    assert given.validation_scores_ == plain.validation_scores_
    assert set(given.predict(X)) <= set(labels)


def test_scores_are_weighted():
    X, y = classification()
    weights = np.random.default_rng(0).random(40)
    model = FPEClassifier(**QUICK).fit(
        X[:120], y[:120], X_val=X[120:], y_val=y[120:], sample_weight_val=weights
    )
    expected = accuracy_score(y[120:], model.predict(X[120:]), sample_weight=weights)
    assert model.best_validation_score_ == pytest.approx(expected)
    X, y = regression()
    model = FPERegressor(**QUICK).fit(
        X[:120], y[:120], X_val=X[120:], y_val=y[120:], sample_weight_val=weights
    )
    expected = r2_score(y[120:], model.predict(X[120:]), sample_weight=weights)
    assert model.best_validation_score_ == pytest.approx(expected, abs=1e-5)


def test_class_weight_weighs_the_validation_rows_too():
    X, y = classification()
    model = FPEClassifier(**QUICK, class_weight={0: 10.0})
    model.fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    weights = np.where(y[120:] == 0, 10.0, 1.0)
    assert model.best_validation_score_ == pytest.approx(
        model.score(X[120:], y[120:], sample_weight=weights)
    )


def test_multilabel_and_transformer():
    X, Y = make_multilabel_classification(80, 8, n_classes=3, random_state=0)
    model = FPEClassifier(**QUICK).fit(X, Y)
    assert np.isfinite(model.validation_scores_).all()
    X, y = classification()
    hidden = FPETransformer(**QUICK).fit(X, y)
    assert (
        hidden.validation_scores_ == FPEClassifier(**QUICK).fit(X, y).validation_scores_
    )


def test_validation_rows_can_be_transformed_in_a_pipeline():
    import sklearn

    X, y = classification()
    with sklearn.config_context(enable_metadata_routing=True):
        model = FPEClassifier(**QUICK).set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), model, transform_input=["X_val"])
        pipeline.fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:])
    assert pipeline.score(X[120:], y[120:]) == pytest.approx(
        pipeline[-1].best_validation_score_
    )


def test_verbose_tells_the_score(capsys):
    X, y = classification()
    model = FPEClassifier(**{**QUICK, "max_iter": 3}, warmup=1, verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert "validation score" not in lines[0]
    assert lines[2].endswith(f"validation score {model.validation_scores_[1]:.6f}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"X_val": True}, "X_val is given, but y_val is not"),
        ({"sample_weight_val": True}, "sample_weight_val is given, but X_val is not"),
        ({"y_val": True}, "y_val is given, but X_val is not"),
    ],
)
def test_validation_rows_need_both_parts(given, message):
    X, y = classification()
    values = {"X_val": X, "y_val": y, "sample_weight_val": np.ones(len(y))}
    with pytest.raises(ValueError, match=message):
        FPEClassifier(**QUICK).fit(X, y, **{name: values[name] for name in given})


def test_validation_rows_without_early_stopping_are_an_error():
    X, y = classification()
    model = FPEClassifier(**{**QUICK, "early_stopping": False})
    with pytest.raises(ValueError, match="early_stopping=False would not use them"):
        model.fit(X, y, X_val=X, y_val=y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X * np.nan, y), "Input X_val contains NaN"),
        (lambda X, y: (X[:, :3], y), "X has 3 features, but .* is expecting 8"),
        (lambda X, y: (X[:5], y), "inconsistent numbers of samples"),
        (lambda X, y: (X, y + 3), "y_val must hold only the classes .* got"),
        (lambda X, y: (X, np.eye(3)[y]), "y_val must be multiclass targets"),
        (
            lambda X, y: (X, y * np.nan),
            "Input y_val contains NaN|y_val|Input y contains",
        ),
    ],
)
def test_bad_validation_rows(change, message):
    X, y = classification()
    X_val, y_val = change(X[120:], y[120:])
    model = FPEClassifier(**QUICK)
    with pytest.raises(ValueError, match=message):
        model.fit(X[:120], y[:120], X_val=X_val, y_val=y_val)
    assert not hasattr(model, "module_")


def test_bad_validation_weights():
    X, y = classification()
    with pytest.raises(ValueError, match="sample_weight_val must have a positive"):
        FPEClassifier(**QUICK).fit(
            X, y, X_val=X, y_val=y, sample_weight_val=np.zeros(160)
        )


def test_too_few_rows_to_hold_out():
    X, y = classification()
    y = np.where(np.arange(160) == 7, 5, y)
    with pytest.raises(ValueError, match=r"validation_fraction=0.25 of 160 rows .*5"):
        FPEClassifier(**QUICK).fit(X, y)
    X, y = regression(3)
    with pytest.raises(ValueError, match="at least 2 rows to validate on, got 1"):
        FPERegressor(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.25 of 1 rows"):
        FPERegressor(**QUICK).fit(X[:1], y[:1])


@pytest.mark.parametrize("n_held", [1, 2, 30])
@pytest.mark.parametrize("split", ["shared", "contiguous", "random"])
def test_validation_rows_may_be_sparse(n_held, split):
    X, y = classification()
    model = FPEClassifier(**{**QUICK, "split": split})
    held, rest = slice(0, n_held), slice(n_held, None)
    dense = clone(model).fit(X[rest], y[rest], X_val=X[held], y_val=y[held])
    csr = sparse.csr_array(X)
    got = model.fit(csr[rest], y[rest], X_val=csr[held], y_val=y[held])
    assert got.validation_scores_ == dense.validation_scores_


@pytest.mark.parametrize("split", ["shared", "random"])
def test_the_last_batch_of_streamed_validation_rows_may_be_one_row(
    split, tmp_path, monkeypatch
):
    X, y = classification(4400)
    path = tmp_path / "X.f64"
    X.tofile(path)
    mapped = np.memmap(path, X.dtype, "r", shape=X.shape)
    model = FPEClassifier(**{**QUICK, "split": split, "max_iter": 2})
    held, rest = slice(0, 4097), slice(4097, None)
    loaded = clone(model).fit(mapped[rest], y[rest], X_val=mapped[held], y_val=y[held])
    monkeypatch.setattr(_views, "STREAM_ABOVE", 0)
    model.fit(mapped[rest], y[rest], X_val=mapped[held], y_val=y[held])
    assert model.validation_scores_[-1] > 0
    assert len(model.validation_scores_) == len(loaded.validation_scores_)


def test_validation_targets_beyond_float32_are_an_error():
    X, y = regression()
    y_val = np.append(y[:9], 3e38)
    model = FPERegressor(**QUICK)
    with pytest.raises(ValueError, match=r"y must be within 3.4e\+38 standard dev"):
        model.fit(X, y / y.std() / 10, X_val=X[:10], y_val=y_val)
