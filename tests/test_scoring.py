"""What early stopping watches, what it keeps, and a refit on all rows."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)
from sklearn.metrics import (
    average_precision_score,
    get_scorer,
    log_loss,
    make_scorer,
    roc_auc_score,
)

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer

# Pruned at once, so that every epoch of the fine-tuning has the same network.
QUICK = {
    "hidden_layer_sizes": (8,),
    "split": "shared",
    "prune": "magnitude",
    "weight_decay": 0.0,
    "learning_rate_init": 1e-2,
    "expansion": 2,
    "max_iter": 12,
    "warmup": 2,
    "batch_size": 32,
    "random_state": 0,
    "early_stopping": True,
    "n_iter_no_change": np.inf,
}
NAMES = np.array(["ant", "bee", "caterpillar"])


def labels(n_classes=3):
    X, y = make_classification(
        240, 8, n_informative=5, flip_y=0.1, n_classes=n_classes, random_state=0
    )
    return X, NAMES[y]


def numbers():
    return make_regression(240, 8, noise=20.0, random_state=0)


def several():
    return make_multilabel_classification(240, 8, n_classes=4, random_state=0)


def parts(X, y):
    return (X[:180], y[:180]), {"X_val": X[180:], "y_val": y[180:]}


PROBLEMS = [
    (FPEClassifier, labels, "neg_log_loss"),
    (FPEClassifier, labels, "balanced_accuracy"),
    (FPEClassifier, labels, "roc_auc_ovr"),
    (FPEClassifier, lambda: labels(2), "roc_auc"),
    (FPEClassifier, lambda: labels(2), "average_precision"),
    (FPEClassifier, several, "f1_macro"),
    (FPEClassifier, several, "roc_auc"),
    (FPERegressor, numbers, "neg_mean_absolute_error"),
    (FPERegressor, numbers, "neg_median_absolute_error"),
]


@pytest.mark.filterwarnings("ignore:.*average_precision.* pos_label")
@pytest.mark.parametrize(("kind", "problem", "scoring"), PROBLEMS)
def test_scores_are_those_of_the_scorer(kind, problem, scoring):
    X, y = problem()
    if scoring == "average_precision":
        y = (y == NAMES[1]).astype(int)
    train, held = parts(X, y)
    model = kind(**QUICK, scoring=scoring).fit(*train, **held)
    expected = get_scorer(scoring)(model, X[180:], y[180:])
    assert model.best_validation_score_ == pytest.approx(expected, abs=1e-6)
    assert model.best_validation_score_ == max(model.validation_scores_)
    best = 1 + int(np.argmax(model.validation_scores_))
    assert model.best_iter_ == 2 + best
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == 10


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
def test_loss_of_the_held_out_rows(kind):
    X, y = numbers() if kind is FPERegressor else labels()
    train, held = parts(X, y)
    model = kind(**{**QUICK, "scoring": "loss", "learning_rate_init": 0.05})
    model.fit(*train, **held)
    losses = model.validation_loss_curve_
    assert model.validation_scores_ == [-loss for loss in losses]
    assert model.best_validation_score_ == -min(losses)
    if kind is FPEClassifier:
        found = log_loss(y[180:], model.predict_proba(X[180:]))
        assert min(losses) == pytest.approx(found, rel=1e-5)
    if kind is FPERegressor:
        error = np.square(model.predict(X[180:]) - y[180:]).mean()
        assert min(losses) == pytest.approx(error / y[:180].var() / 2, rel=1e-5)


def test_callables_and_scorers_see_the_estimator_so_far():
    X, y = labels()
    train, held = parts(X, y)
    seen = []

    def score(estimator, X_val, y_val):
        assert isinstance(estimator, FPEClassifier)
        assert estimator.get_params() == model.get_params()
        np.testing.assert_array_equal(X_val, X[180:])
        np.testing.assert_array_equal(y_val, y[180:])
        seen.append(estimator.n_iter_)
        return estimator.score(X_val, y_val)

    model = FPEClassifier(**QUICK, scoring=score)
    model.fit(*train, **held)
    assert seen == list(range(3, 13))
    plain = FPEClassifier(**QUICK).fit(*train, **held)
    assert model.validation_scores_ == plain.validation_scores_
    scorer = make_scorer(
        roc_auc_score, response_method="predict_proba", multi_class="ovr"
    )
    scored = FPEClassifier(**QUICK, scoring=scorer).fit(*train, **held)
    named = FPEClassifier(**QUICK, scoring="roc_auc_ovr").fit(*train, **held)
    assert scored.validation_scores_ == named.validation_scores_


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_transformer_is_scored_as_the_predictor_of_the_same_weights(task):
    kind, problem, scoring = {
        "classification": (FPEClassifier, labels, "neg_log_loss"),
        "regression": (FPERegressor, numbers, "neg_mean_absolute_error"),
    }[task]
    train, held = parts(*problem())
    model = FPETransformer(**QUICK, task=task, scoring=scoring).fit(*train, **held)
    predictor = kind(**QUICK, scoring=scoring).fit(*train, **held)
    assert model.validation_scores_ == predictor.validation_scores_
    np.testing.assert_array_equal(
        model.transform(train[0]), predictor.hidden_activations(train[0])
    )


@pytest.mark.parametrize("form", ["frame", "list", "sparse", "tensor"])
def test_scoring_of_any_form_of_input(form):
    pd = pytest.importorskip("pandas")
    sparse, torch = pytest.importorskip("scipy.sparse"), pytest.importorskip("torch")
    X, y = labels()
    form = {
        "frame": lambda X: pd.DataFrame(X, columns=list("abcdefgh")),
        "list": np.ndarray.tolist,
        "sparse": sparse.csr_array,
        "tensor": torch.from_numpy,
    }[form]
    settings = {**QUICK, "scoring": "neg_log_loss", "max_iter": 4}
    plain = FPEClassifier(**settings).fit(X, y)
    model = FPEClassifier(**settings).fit(form(X), y)
    assert model.validation_scores_ == pytest.approx(plain.validation_scores_)
    train, held = parts(X, y)
    expected = clone(model).fit(*train, **held).validation_scores_
    model.fit(form(train[0]), train[1], X_val=form(X[180:]), y_val=y[180:])
    assert model.validation_scores_ == pytest.approx(expected)


# --------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------


def weighted_score(y_true, y_pred, *, sample_weight=None):
    return np.average(y_true == y_pred, weights=sample_weight)


@pytest.mark.parametrize("scoring", ["accuracy", "callable", "scorer", "loss", None])
def test_weights_of_the_held_out_rows_count(scoring):
    X, y = labels()
    train, held = parts(X, y)
    weights = np.random.default_rng(0).integers(1, 5, 60)

    def function(estimator, X, y, sample_weight=None):
        return estimator.score(X, y, sample_weight)

    if scoring in ("callable", "scorer"):
        scoring = {"callable": function, "scorer": make_scorer(weighted_score)}[scoring]
    model = FPEClassifier(**QUICK, scoring=scoring)
    weighted = model.fit(*train, **held, sample_weight_val=weights).validation_scores_
    plain = clone(model).fit(*train, **held).validation_scores_
    rows = np.repeat(np.arange(180, 240), weights)
    repeated = clone(model).fit(*train, X_val=X[rows], y_val=y[rows]).validation_scores_
    assert weighted == pytest.approx(repeated, rel=1e-5)
    assert weighted != pytest.approx(plain, rel=1e-3)


def test_score_that_takes_no_weights_is_refused_with_weights(at_step):
    X, y = numbers()
    train, held = parts(X, y)
    for scoring in ("max_error", lambda estimator, X, y: 0.5):
        if scoring == "max_error":
            scoring = "neg_max_error"
        model = FPERegressor(**QUICK, scoring=scoring)
        model.fit(*train, **held, sample_weight_val=np.full(60, 2.0))
        steps = at_step(999, RuntimeError("never"))
        with pytest.raises(ValueError, match=r"scoring=.* takes no sample_weight"):
            model.fit(*train, **held, sample_weight_val=np.arange(1, 61))
        assert not steps


@pytest.mark.parametrize("scoring", ["neg_log_loss", "loss"])
def test_class_weight_weighs_the_held_out_rows(scoring):
    X, y = labels()
    train, held = parts(X, y)
    class_weight = {"ant": 3.0, "bee": 1.0, "caterpillar": 0.5}
    model = FPEClassifier(**QUICK, scoring=scoring, class_weight=class_weight)
    model.fit(*train, **held)
    weights = np.array([class_weight[label] for label in y[180:]])
    proba = model.predict_proba(X[180:])
    expected = -log_loss(y[180:], proba, sample_weight=weights)
    assert model.best_validation_score_ == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------
# Mistakes
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["acuracy", 3])
def test_unknown_scoring_is_an_error_before_training(scoring, at_step):
    X, y = labels()
    steps = at_step(999, RuntimeError("never"))
    with pytest.raises(ValueError, match=r"'?scoring'?"):
        FPEClassifier(**QUICK, scoring=scoring).fit(X, y)
    assert not steps


@pytest.mark.parametrize("score", [None, "high", {"accuracy": 1.0}, np.ones(2)])
def test_score_that_is_no_number_is_an_error(score):
    model = FPEClassifier(**QUICK, scoring=lambda estimator, X, y: score)
    with pytest.raises(ValueError, match=r"scoring=.* must return a number, got"):
        model.fit(*labels())


def test_score_that_is_nan_is_an_error():
    X, y = labels()
    train, held = parts(X, y)
    model = FPEClassifier(**QUICK).fit(*train, **held)
    expected = model.predict_proba(X)
    model.set_params(scoring=lambda estimator, X, y: np.nan)
    with pytest.raises(ValueError, match=r"gave NaN for the 60 held-out rows"):
        model.fit(*train, **held)
    np.testing.assert_array_equal(model.predict_proba(X), expected)


# --------------------------------------------------------------------------------------
# Many labels
# --------------------------------------------------------------------------------------


def many_labels():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1500, 12)) @ rng.standard_normal((12, 100))
    scores = X @ rng.standard_normal((100, 60)) + 10 * rng.standard_normal((1500, 60))
    return X, (scores > np.quantile(scores, 0.8, axis=0)).astype(int)


def test_early_stopping_on_many_labels_keeps_a_good_epoch():
    X, Y = many_labels()
    settings = {"expansion": 2, "max_iter": 25, "random_state": 0}
    scores = []
    for early_stopping in (False, True):
        model = FPEClassifier(**settings, early_stopping=early_stopping)
        model.fit(X[:1100], Y[:1100])
        proba = model.predict_proba(X[1100:])
        scores.append(average_precision_score(Y[1100:], proba, average="macro"))
    assert scores[1] >= scores[0] - 0.01
    assert model.best_iter_ > 5
    assert len(set(model.validation_scores_)) == len(model.validation_scores_)


def test_default_of_a_transformer_of_many_labels_is_the_loss():
    X, Y = several()
    model = FPETransformer(**QUICK).fit(X, Y)
    assert model.validation_scores_ == [-loss for loss in model.validation_loss_curve_]


# --------------------------------------------------------------------------------------
# Refit
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (FPEClassifier, labels),
        (FPEClassifier, several),
        (FPERegressor, numbers),
        (FPETransformer, labels),
    ],
)
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_refit_is_a_fit_on_all_rows_for_the_best_number_of_epochs(kind, problem, prune):
    X, y = problem()
    settings = {**QUICK, "learning_rate": "constant", "prune": prune}
    stopped = kind(**settings).fit(X, y)
    model = kind(**settings, refit=True).fit(X, y)
    for name in ("best_iter_", "best_validation_score_", "validation_scores_"):
        assert getattr(model, name) == getattr(stopped, name)
    assert model.n_iter_ == len(model.loss_curve_) == model.best_iter_
    settings |= {"early_stopping": False, "max_iter": model.best_iter_}
    expected = kind(**settings).fit(X, y)
    assert model.loss_curve_ == expected.loss_curve_
    for a, b in zip(model.coefs_, expected.coefs_, strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())


def test_refit_follows_the_course_of_the_learning_rate():
    X, y = labels()
    model = FPEClassifier(**QUICK, refit=True).fit(X, y)
    full = FPEClassifier(**{**QUICK, "early_stopping": False}).fit(X, y)
    n_epochs = model.best_iter_
    assert n_epochs > 2
    assert model.loss_curve_ == full.loss_curve_[:n_epochs]


def test_weights_of_a_refit_do_not_compete_on_rows_they_were_trained_on():
    X, y = labels()
    model = FPEClassifier(**QUICK, refit=True, warm_start=True).fit(X, y)
    model.set_params(refit=False, learning_rate_init=1e-6).fit(X, y)
    # All scores are those of weights that were trained on the held-out rows, but the
    # first of them is not taken for granted.
    assert model.best_iter_ > 0
    assert not model.learned_.history.refitted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": False}, "refit=True .* needs early_stopping=True"),
        ({"skorch_callbacks": [("a", None)]}, "refit=True trains twice|skorch_callb"),
    ],
)
def test_refit_that_makes_no_sense_is_refused(settings, message):
    X, y = labels()
    with pytest.raises(ValueError, match=message):
        FPEClassifier(**{**QUICK, **settings}, refit=True).fit(X, y)


def test_refit_with_rows_of_ones_own_is_refused():
    train, held = parts(*labels())
    with pytest.raises(ValueError, match=r"refit=True .* set refit=False"):
        FPEClassifier(**QUICK, refit=True).fit(*train, **held)


def test_attributes_of_validation_exist_after_early_stopping_only():
    X, y = labels()
    names = (
        *("validation_scores_", "validation_loss_curve_"),
        *("best_validation_score_", "best_iter_"),
    )
    model = FPEClassifier(**QUICK)
    for name in names:
        assert not hasattr(model, name)
    model.fit(X, y)
    for name in names:
        assert hasattr(model, name)
    model.set_params(early_stopping=False).fit(X, y)
    for name in names:
        with pytest.raises(AttributeError, match=f"{name} exists after a fit with"):
            getattr(model, name)


def test_earlier_weights_that_win_after_a_warm_start_are_epoch_zero():
    X, y = labels()
    model = FPEClassifier(**QUICK, warm_start=True, scoring="loss").fit(X, y)
    expected = model.predict_proba(X)
    model.set_params(learning_rate_init=30.0).fit(X, y)
    assert model.best_iter_ == 0
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)


# --------------------------------------------------------------------------------------
# Label smoothing
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_label_smoothing_makes_probabilities_less_certain(n_classes):
    X, y = labels(n_classes)
    settings = {**QUICK, "early_stopping": False, "max_iter": 40}
    plain = FPEClassifier(**settings).fit(X, y)
    smooth = FPEClassifier(**settings, label_smoothing=0.3).fit(X, y)
    assert smooth.score(X, y) > plain.score(X, y) - 0.05
    largest = [model.predict_proba(X).max(axis=1).mean() for model in (plain, smooth)]
    assert largest[1] < largest[0] - 0.05


@pytest.mark.parametrize("problem", [labels, several])
def test_loss_of_smoothed_labels_is_their_cross_entropy(problem):
    X, y = problem()
    model = FPEClassifier(
        **{**QUICK, "early_stopping": False, "max_iter": 30}, label_smoothing=0.2
    ).fit(X, y)
    proba = model.predict_proba(X)
    if problem is labels:
        targets = (y[:, None] == NAMES) * 0.8 + 0.2 / 3
        loss = -(targets * np.log(proba)).sum(axis=1).mean()
    else:
        targets = y * 0.8 + 0.1
        entropy = targets * np.log(proba) + (1 - targets) * np.log(1 - proba)
        loss = -entropy.sum(axis=1).mean()
    assert model.loss_curve_[-1] == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("value", [-0.1, 1.0, "much"])
def test_bad_label_smoothing(value):
    X, y = labels()
    with pytest.raises(ValueError, match="'label_smoothing'"):
        FPEClassifier(**QUICK, label_smoothing=value).fit(X, y)


def test_label_smoothing_is_not_for_real_targets():
    X, y = numbers()
    model = FPETransformer(**QUICK, task="regression", label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        model.fit(X, y)


# --------------------------------------------------------------------------------------
# Hidden activations
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "problem", "task"),
    [
        (FPEClassifier, labels, "classification"),
        (FPEClassifier, several, "classification"),
        (FPERegressor, numbers, "regression"),
    ],
)
@pytest.mark.parametrize("hidden", [(8,), (8, 6)])
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_hidden_activations_are_those_of_a_transformer(
    kind, problem, task, hidden, prune
):
    X, y = problem()
    settings = {**QUICK, "hidden_layer_sizes": hidden, "max_iter": 4, "prune": prune}
    model = kind(**settings).fit(X, y)
    transformer = FPETransformer(**settings, task=task).fit(X, y)
    for rows in (X, X.astype(np.float32), X[:1]):
        found = model.hidden_activations(rows)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, transformer.transform(rows))


def test_no_warnings_by_default():
    X, y = labels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FPEClassifier(**QUICK, refit=True, scoring="roc_auc_ovr").fit(X, y)
