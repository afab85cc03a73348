"""warm_start and partial_fit."""

import copy
import functools
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._loss import Softmax
from sklearn_fpe._engine._recipe import Settings
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe.nn import MLP, Affine

# Rules that fit and partial_fit have in common.
QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "random_state": 0,
    "split": "shared",
    "prune": "magnitude",
    "weight_decay": 0.0,
    "learning_rate_init": 1e-2,
}


def classification(n_samples=80, n_classes=3):
    return make_classification(
        n_samples, 8, n_informative=6, n_classes=n_classes, random_state=0
    )


def regression(n_samples=80):
    return make_regression(n_samples, 8, random_state=0)


PROBLEMS = [
    (FPEClassifier, classification),
    (FPERegressor, regression),
    (FPETransformer, classification),
]


def outputs(model, X):
    if isinstance(model, FPEClassifier):
        return model.decision_function(X)
    return model.predict(X) if isinstance(model, FPERegressor) else model.transform(X)


# --------------------------------------------------------------------------------------
# warm_start
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_warm_start_goes_on_with_partition_masks_and_scale(kind, problem):
    X, y = problem()
    model = kind(**QUICK, max_iter=4, warm_start=True).fit(X, y)
    kept = [coef.toarray() != 0 for coef in model.coefs_]
    budget, losses = model.n_nonzero_, model.loss_curve_
    scaler = copy.deepcopy(model.learned_.affine)
    model.set_params(max_iter=3).fit(X + 1.0, y)
    assert model.n_iter_ == 3
    assert model.loss_curve_[:4] == losses
    assert len(model.loss_curve_) == 7
    assert model.phase_ == "fine-tune"
    assert model.n_nonzero_ == budget
    for before, after in zip(kept, model.coefs_, strict=True):
        np.testing.assert_array_equal(before, after.toarray() != 0)
    np.testing.assert_array_equal(model.learned_.affine.mean, scaler.mean)


def test_warm_start_improves_and_a_cold_start_repeats():
    X, y = classification()
    cold = FPEClassifier(**QUICK, max_iter=4).fit(X, y)
    warm = FPEClassifier(**QUICK, max_iter=4, warm_start=True).fit(X, y)
    assert warm.loss_curve_ == cold.loss_curve_
    first = cold.predict_proba(X)
    np.testing.assert_array_equal(cold.fit(X, y).predict_proba(X), first)
    for _ in range(3):
        warm.fit(X, y)
    assert warm.loss_curve_[-1] < cold.loss_curve_[-1]
    # Every epoch has a shuffle of its own.
    assert len(set(warm.loss_curve_)) == len(warm.loss_curve_) == 16


def test_warm_start_runs_the_schedule_of_the_learning_rate_again():
    X, y = classification()
    rates = []
    model = FPEClassifier(**QUICK, max_iter=3, warm_start=True)
    real = Trainer.run_epoch

    def run_epoch(self, epoch):
        rates.append(epoch.rate)
        real(self, epoch)
        assert self.net.optimizer_.param_groups[0]["lr"] == epoch.rate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", run_epoch)
        model.fit(X, y)
        model.set_params(max_iter=5).fit(X, y)
    expected = [learning_rate("cosine", 1e-2, epoch, 3) for epoch in range(3)]
    expected += [learning_rate("cosine", 1e-2, epoch, 5) for epoch in range(5)]
    assert rates == expected


def learning_rate(name, initial, epoch, n_epochs):
    settings = Settings(
        loss=Softmax(),
        max_iter=n_epochs,
        n_warmup=0,
        batch_size=None,
        learning_rate=name,
        learning_rate_init=initial,
        weight_decay=0.0,
        standardize=True,
        bfloat16=False,
        device=torch.device("cpu"),
    )
    return settings.rate_at(epoch)


@given(n_epochs=st.integers(1, 200), initial=st.floats(1e-8, 10), data=st.data())
def test_learning_rate_falls_from_its_initial_value_towards_zero(
    n_epochs, initial, data
):
    epoch = data.draw(st.integers(0, n_epochs - 1))
    rate = learning_rate("cosine", initial, epoch, n_epochs)
    assert 0 < rate < initial or n_epochs == 1
    if epoch:
        assert rate < learning_rate("cosine", initial, epoch - 1, n_epochs)
    assert learning_rate("constant", initial, epoch, n_epochs) == initial


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_layer_sizes", (7,)),
        ("expansion", 3),
        ("split", "random"),
        ("prune", "structured"),
        ("budget", 60),
        ("activation", "tanh"),
        ("standardize", False),
        ("class_weight", {0: 2.0}),
        ("feature_groups", list("aabbccdd")),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_shapes_the_network_must_stay(name, value, method):
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    expected = model.predict_proba(X)
    model.set_params(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must stay .* to continue with"):
        getattr(model, method)(X, y)
    # The model there is was left alone.
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_the_task_must_stay():
    X, y = classification()
    model = FPETransformer(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    model.set_params(task="regression")
    with pytest.raises(
        ValueError, match=r"task must stay 'classification' .*, got 'regression'"
    ):
        model.fit(X, y)


@pytest.mark.parametrize("parameter", ["split", "prune"])
def test_what_partial_fit_cannot_do_says_what_it_can(parameter):
    X, y = classification()
    value = {"split": "learned", "prune": "gradual"}[parameter]
    settings = {**QUICK, "split": "auto", "prune": "auto", parameter: value}
    with pytest.raises(ValueError, match="partial_fit") as caught:
        FPEClassifier(**settings).partial_fit(X, y)
    named = re.findall(r'"(\w+)"', str(caught.value).partition(f"set {parameter}=")[2])
    assert named
    for name in named:
        FPEClassifier(**{**settings, parameter: name}).partial_fit(X, y)


@pytest.mark.parametrize("dense", [{"expansion": 1}, {"hidden_layer_sizes": ()}])
def test_partial_fit_needs_no_split_where_nothing_is_split(dense):
    X, y = classification()
    model = FPEClassifier(**{**QUICK, "split": "learned", **dense})
    assert model.partial_fit(X, y).n_iter_ == 1


def test_equal_settings_in_another_form_are_no_change():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    model.set_params(hidden_layer_sizes=[6], expansion=np.int64(2), max_iter=1)
    assert model.fit(X, y).n_iter_ == 1


def test_warm_start_needs_the_same_outputs():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="y must hold only the classes"):
        model.fit(X, y + 1)
    with pytest.raises(ValueError, match="y must be multiclass targets"):
        model.fit(X, np.eye(3)[y])
    with pytest.raises(ValueError, match="X has 5 features, but"):
        model.fit(X[:, :5], y)
    X, y = regression()
    model = FPERegressor(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="y must have 1 columns"):
        model.fit(X, np.column_stack([y, y]))


def test_warm_start_with_early_stopping():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=3, warm_start=True, early_stopping=True)
    first = model.fit(X, y).validation_scores_
    model.fit(X, y)
    assert model.validation_scores_[: len(first)] == first
    assert len(model.validation_scores_) == len(first) + 3
    assert model.best_validation_score_ >= max(model.validation_scores_[len(first) :])
    # What is gone on with without scores is not what was scored.
    model.set_params(early_stopping=False).fit(X, y)
    assert not hasattr(model, "validation_scores_")
    assert not hasattr(model, "best_validation_score_")


def test_weights_that_were_better_before_a_warm_start_are_kept():
    X, y = classification(160)
    held = {"X_val": X[120:], "y_val": y[120:]}
    model = FPEClassifier(**QUICK, max_iter=20, warm_start=True, early_stopping=True)
    before = model.fit(X[:120], y[:120], **held).predict_proba(X)
    best = model.best_validation_score_
    n_before = len(model.validation_scores_)
    model.set_params(learning_rate_init=30.0).fit(X[:120], y[:120], **held)
    assert max(model.validation_scores_[n_before:]) < best
    assert model.best_validation_score_ == best
    np.testing.assert_allclose(model.predict_proba(X), before, atol=1e-5)
    # Weights that were never scored do not compete with those that are.
    model.set_params(early_stopping=False).fit(X[:120], y[:120])
    n_before = len(model.loss_curve_)
    model.set_params(early_stopping=True).fit(X[:120], y[:120], **held)
    scores = model.validation_scores_[-(len(model.loss_curve_) - n_before) :]
    assert model.best_validation_score_ == max(scores)


class HalfAndHalf:
    """A split that is equal to nothing but itself."""

    def __call__(self, weight, n_children, rng):
        return np.tile(np.arange(weight.shape[1]) % n_children, (len(weight), 1))


def by_offset(offset, weight, n_children, rng):
    row = (np.arange(weight.shape[1]) + offset) % n_children
    return np.tile(row, (len(weight), 1))


@pytest.mark.parametrize("split", [functools.partial(by_offset, 1), HalfAndHalf()])
def test_training_goes_on_with_any_callable_split(split):
    X, y = classification()
    model = FPEClassifier(**{**QUICK, "split": split}, max_iter=2, warm_start=True)
    assert model.fit(X, y).fit(X, y).partial_fit(X, y).n_iter_ == 3
    assert pickle.loads(pickle.dumps(model)).partial_fit(X, y).n_iter_ == 4


def test_warm_start_of_a_loaded_model():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=2, warm_start=True).fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        loaded.fit(X, y).predict_proba(X), model.fit(X, y).predict_proba(X)
    )


def test_warm_start_after_partial_fit_finishes_the_warm_up():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=6, warmup=4, warm_start=True)
    model.partial_fit(X, y)
    assert model.phase_ == "warm-up"
    model.fit(X, y)
    assert model.phase_ == "fine-tune"
    assert model.expansion_ == (2,)
    assert model.n_iter_ == 6
    assert len(model.loss_curve_) == 7


def test_rest_of_a_warm_up_is_not_taken_from_the_cache(tmp_path):
    X, y = classification()
    settings = {**QUICK, "max_iter": 6, "warmup": 4, "memory": str(tmp_path)}
    FPEClassifier(**settings).fit(X, y)
    settings |= {"max_iter": 5, "warm_start": True}
    one = FPEClassifier(**settings).partial_fit(X, y).fit(X, y)
    settings["memory"] = None
    other = FPEClassifier(**settings).partial_fit(X, y).fit(X, y)
    assert one.loss_curve_ == other.loss_curve_


# --------------------------------------------------------------------------------------
# partial_fit
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
@pytest.mark.parametrize("warmup", [0, 2])
def test_one_call_is_one_epoch_and_the_split_comes_after_warmup_calls(
    kind, problem, warmup
):
    X, y = problem()
    model = kind(**QUICK, warmup=warmup)
    for call in range(1, 5):
        assert model.partial_fit(X, y) is model
        assert model.n_iter_ == len(model.loss_curve_) == call
        is_split = call > warmup
        assert model.phase_ == ("fine-tune" if is_split else "warm-up")
        assert model.expansion_ == ((2,) if is_split else (1,))
        assert (model.coefs_[0].shape[1] > 6) == is_split
        assert model.n_nonzero_ <= model.budget_
        assert np.isfinite(outputs(model, X)).all()


def test_warmup_as_a_fraction_counts_against_max_iter():
    X, y = classification()
    model = FPEClassifier(**QUICK, warmup=0.25, max_iter=8)
    phases = [model.partial_fit(X, y).phase_ for _ in range(4)]
    assert phases == ["warm-up", "warm-up", "fine-tune", "fine-tune"]


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_calls_with_all_rows_are_a_fit(kind, problem):
    X, y = problem()
    settings = {**QUICK, "max_iter": 5, "warmup": 2, "learning_rate": "constant"}
    whole, parts = kind(**settings).fit(X, y), kind(**settings)
    for _ in range(5):
        parts.partial_fit(X, y)
    # Statistics of rows seen several times differ in rounding.
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-3)
    np.testing.assert_allclose(
        outputs(parts, X), outputs(whole, X), atol=2e-3 * np.std(outputs(whole, X))
    )


def test_it_learns_from_a_stream():
    X, y = classification(400)
    model = FPEClassifier(**{**QUICK, "learning_rate_init": 0.05}, warmup=5)
    for start in [*range(0, 400, 20)] * 4:
        rows = slice(start, start + 20)
        model.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    assert model.score(X, y) > 0.6


@pytest.mark.parametrize("n_rows", [4, 20])
def test_it_learns_from_a_few_rows_at_a_time(n_rows):
    X, y = regression(120)
    X, y = 1e3 + 50 * X, -1e6 + 1e3 * y
    model = FPERegressor(**{**QUICK, "learning_rate_init": 0.02}, warmup=60)
    for start in [*range(0, 120, n_rows)] * (3 * n_rows):
        rows = slice(start, start + n_rows)
        model.partial_fit(X[rows], y[rows])
    assert model.score(X, y) > 0.5


def test_statistics_run_until_the_split_and_then_stand():
    X, y = classification()
    X = X * np.linspace(1, 1e3, 8) + np.arange(8)
    weights = np.random.default_rng(0).random(80) + 0.5
    model = FPEClassifier(**QUICK, warmup=2)
    pieces = [slice(0, 30), slice(30, 50), slice(50, 80), slice(0, 30)]
    for call, rows in enumerate(pieces):
        model.partial_fit(X[rows], y[rows], sample_weight=weights[rows])
        # The call that splits takes its rows into the statistics as well.
        seen = slice(0, pieces[min(call, 2)].stop)
        mean = np.average(X[seen], axis=0, weights=weights[seen])
        variance = np.average((X[seen] - mean) ** 2, axis=0, weights=weights[seen])
        np.testing.assert_allclose(model.learned_.affine.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(
            model.learned_.affine.scale, np.sqrt(variance), rtol=1e-9
        )


@settings(max_examples=20)
@given(
    mean=arrays(float, (2, 5), elements=st.floats(-5, 5)),
    scale=arrays(float, (2, 5), elements=st.floats(0.1, 10)),
    seed=st.integers(0, 99),
)
def test_new_statistics_leave_the_function_unchanged(mean, scale, seed):
    rng = np.random.default_rng(seed)
    network = MLP.dense([5, 4, 5], generator=torch.Generator().manual_seed(seed))
    X = torch.from_numpy(rng.normal(size=(20, 5)))
    means, scales = torch.from_numpy(mean), torch.from_numpy(scale)
    with torch.no_grad():
        before = network((X - means[0]) / scales[0])
        old, new = (Affine(m, s) for m, s in zip(mean, scale, strict=True))
        network.change_input(old, new)
        after = network((X - means[1]) / scales[1])
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        network.change_output(old, new)
        outputs = network((X - means[1]) / scales[1])
    torch.testing.assert_close(
        outputs * scales[1] + means[1],
        after * scales[0] + means[0],
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(("kind", "problem"), PROBLEMS)
def test_re_expression_leaves_the_predictions_unchanged(monkeypatch, kind, problem):
    X, y = problem()
    model = kind(**QUICK, warmup=10)
    X[:20, 3] = 2.0  # constant at first
    classes = {} if kind is FPERegressor else {"classes": [0, 1, 2]}
    model.partial_fit(X[:20], y[:20], **classes)
    before = outputs(model, X[:20])
    # An epoch that learns nothing leaves the re-expression alone.
    monkeypatch.setattr(Trainer, "run_epoch", lambda *args: None)
    model.partial_fit(100 + 7 * X[20:], y[20:])
    np.testing.assert_allclose(
        outputs(model, X[:20]), before, rtol=1e-3, atol=1e-3 * np.abs(before).max()
    )


def test_optimizer_goes_on_between_calls():
    X, y = classification()
    one = FPEClassifier(**QUICK, warmup=0).partial_fit(X, y)
    other = copy.deepcopy(one)  # without the state of the optimizer
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert not np.array_equal(
        one.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X)
    )


def test_classes_are_given_on_the_first_call():
    X, y = classification()
    rows = y < 2
    model = FPEClassifier(**QUICK)
    model.partial_fit(X[rows], y[rows], classes=[2, 0, 1])
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    assert model.predict_proba(X).shape == (80, 3)
    model.partial_fit(X, y)
    model.partial_fit(X, y, classes=[0, 1, 2])
    model.partial_fit(X[:1], y[:1])  # a single class is enough later on
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="y must hold only the classes"):
        model.partial_fit(X, y + 1)


def test_bad_classes():
    X, y = classification()
    with pytest.raises(ValueError, match="at least two classes, got 1 class"):
        FPEClassifier(**QUICK).partial_fit(X, y, classes=[2])
    with pytest.raises(ValueError, match="y must hold only the classes"):
        FPEClassifier(**QUICK).partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="classes must be None for real targets"):
        FPETransformer(**QUICK, task="regression").partial_fit(X, y, classes=[0, 1])


def test_string_and_multilabel_targets():
    X, y = classification()
    labels = np.array(["a", "b", "c"])[y]
    model = FPEClassifier(**QUICK)
    model.partial_fit(X[:1], labels[:1], classes=["a", "b", "c"])
    assert model.partial_fit(X, labels).predict(X).dtype == labels.dtype
    X, Y = make_multilabel_classification(60, 8, n_classes=3, random_state=0)
    model = FPEClassifier(**QUICK).partial_fit(X, Y).partial_fit(X, Y)
    assert model.predict(X).shape == Y.shape
    with pytest.raises(ValueError, match="y must hold only the classes"):
        model.partial_fit(X, Y[:, :2])


@pytest.mark.parametrize("classes", [["a", "b", "c"], [1, 2, 3], [0, 1]])
def test_classes_of_an_indicator_matrix_are_its_columns(classes):
    # Others would make a model whose pickle and whose file cannot be loaded.
    X, Y = make_multilabel_classification(60, 8, n_classes=3, random_state=0)
    model = FPEClassifier(**QUICK)
    with pytest.raises(ValueError, match="classes must be the numbers of the columns"):
        model.partial_fit(X, Y, classes=classes)
    model.partial_fit(X, Y, classes=[2, 0, 1])
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_partial_fit_goes_on_after_fit():
    X, y = classification()
    model = FPEClassifier(**QUICK, max_iter=3).fit(X, y)
    kept = model.coefs_[0].toarray() != 0
    model.partial_fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 4
    assert model.phase_ == "fine-tune"
    np.testing.assert_array_equal(model.coefs_[0].toarray() != 0, kept)
    model.fit(X, y)  # and fit begins anew
    assert model.n_iter_ == len(model.loss_curve_) == 3


def test_warm_started_fit_between_partial_fits_counts():
    X, y = classification()
    model = FPEClassifier(**QUICK, warmup=0, max_iter=3, warm_start=True)
    model.partial_fit(X, y)
    model.fit(X, y)
    expected = copy.deepcopy(model).partial_fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(model.partial_fit(X, y).predict_proba(X), expected)


def test_parameters_of_the_optimizer_may_change():
    X, y = classification()
    plain, decayed = (FPEClassifier(**QUICK, warmup=0) for _ in range(2))
    plain.partial_fit(X, y)
    decayed.partial_fit(X, y).set_params(weight_decay=10.0)
    one, other = (m.partial_fit(X, y).coefs_[1] for m in (plain, decayed))
    assert abs(other).sum() < abs(one).sum()


def test_early_stopping_is_not_for_partial_fit():
    X, y = classification()
    model = FPEClassifier(**QUICK, early_stopping=True, max_iter=2)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping"):
        model.fit(X, y).partial_fit(X, y)


def test_call_that_fails_changes_nothing():
    X, y = classification()
    for calls in (1, 3):  # in the warm-up and after the split
        model = FPEClassifier(**QUICK, warmup=2)
        twin = FPEClassifier(**QUICK, warmup=2)
        for _ in range(calls):
            model.partial_fit(X, y)
            twin.partial_fit(X, y)
        for bad in ((X * np.nan, y), (X, y + 1), (X[:, 1:], y), (X[:9], y)):
            with pytest.raises(ValueError, match=r"X|y|inconsistent numbers"):
                model.partial_fit(*bad)
        np.testing.assert_array_equal(
            model.partial_fit(X, y).predict_proba(X),
            twin.partial_fit(X, y).predict_proba(X),
        )


def test_a_call_that_fails_at_its_end_keeps_the_scores_of_before():
    X, y = classification()
    model = FPEClassifier(**QUICK, early_stopping=True, max_iter=3).fit(X, y)
    before, scores = dict(vars(model)), model.validation_scores_
    model.set_params(early_stopping=False, learning_rate_init=1e38, batch_size=80)
    with pytest.raises(FloatingPointError, match="weights became infinite"):
        model.partial_fit(X, y)
    assert vars(model).keys() == before.keys()
    assert model.validation_scores_ == scores
    # A call that succeeds trains weights that were never scored.
    model.set_params(learning_rate_init=1e-2).partial_fit(X, y)
    assert not hasattr(model, "validation_scores_")


def test_a_call_of_a_regressor_that_fails_changes_no_prediction():
    X, y = regression()
    model = FPERegressor(**QUICK)
    for _ in range(2):
        model.partial_fit(X, y)
    expected, twin = model.predict(X), copy.copy(model)
    model.set_params(learning_rate_init=1e30)
    with pytest.raises(FloatingPointError):
        model.partial_fit(X, 100 * y + 1000)
    np.testing.assert_array_equal(model.predict(X), expected)
    np.testing.assert_array_equal(twin.predict(X), expected)
