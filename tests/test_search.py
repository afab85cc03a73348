"""FPESearchCV gives the results of GridSearchCV."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import (
    make_classification,
    make_multilabel_classification,
    make_regression,
)
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch.nn import Softplus
from torch.nn.functional import softplus as softplus_of

from sklearn_fpe import FPEClassifier, FPERegressor, FPESearchCV
from sklearn_fpe._engine import _stack
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe._estimators import _candidates, _halving, _steps
from sklearn_fpe.nn import Activation

QUICK = {"hidden_layer_sizes": (4,), "max_iter": 6, "batch_size": 32, "random_state": 0}
X, Y = make_classification(
    240, 12, n_informative=8, n_classes=3, n_clusters_per_class=1, random_state=0
)
X_REAL, Y_REAL = make_regression(200, 10, noise=1.0, random_state=0)
X_MULTI, Y_MULTI = make_multilabel_classification(200, 10, n_classes=4, random_state=0)

GRIDS = {
    "hidden_layer_sizes": [(3,), (4,), (4, 3), ()],
    "expansion": [1, 2, 4],
    "split": ["random", "shared", "contiguous", "feature", "learned"],
    "prune": ["gradual", "magnitude"],
    "skip_connection": [False, True],
    "warmup": [0, 1, 0.5],
    "budget": [40, 50, None],
    "n_estimators": [1, 2],
    "activation": ["relu", "tanh", "logistic", "identity", "gelu"],
    "batch_size": ["auto", 16, 100],
    "learning_rate": ["cosine", "constant"],
    "learning_rate_init": [1e-3, 1e-2, 2e-2],
    "max_iter": [3, 5, 8],
    "standardize": [True, False],
    "weight_decay": [0.0, 0.1, 1.0],
    "early_stopping": [False, True],
    "validation_fraction": [0.1, 0.3],
    "n_iter_no_change": [1, 10],
    "tol": [1e-4, 0.5],
    "refit": [False, True],
    "precision": ["float32", "bfloat16"],
    "random_state": [0, 1, 2],
    "verbose": [False],
    "device": ["cpu"],
    "warm_start": [False, True],
    "scoring": [None, "loss", "neg_log_loss"],
    "class_weight": [None, "balanced", {0: 1.0, 1: 2.0, 2: 3.0}],
    "label_smoothing": [0.0, 0.1],
}
"""Values of every parameter that a search can vary on its own."""

NOT_VARIED = {
    "distributed": "refused",
    "feature_groups": 'only with split="groups"',
    "memory": "a folder; tested by itself",
    "skorch_callbacks": "tested by itself",
}
"""Parameters that are tested elsewhere, and why."""

TOGETHER_WITH = {
    "validation_fraction": {"early_stopping": True},
    "n_iter_no_change": {"early_stopping": True},
    "tol": {"early_stopping": True},
    "refit": {"early_stopping": True},
    "scoring": {"early_stopping": True},
}
"""Parameters without which others have no effect."""


def both(estimator, grid, X, y, fit_params=None, **settings):
    """Run the search and scikit-learn's."""
    settings = {"cv": KFold(2, shuffle=True, random_state=0), **settings}
    fit_params = fit_params or {}
    ours = FPESearchCV(clone(estimator), grid, **settings).fit(X, y, **fit_params)
    theirs = GridSearchCV(clone(estimator), grid, **settings).fit(X, y, **fit_params)
    return ours, theirs


def assert_same(ours, theirs, atol=0.02):
    """Compare scores and ranking; a prediction in a hundred or so may differ."""
    assert set(ours.cv_results_) == set(theirs.cv_results_)
    for name, values in theirs.cv_results_.items():
        if name.startswith("param"):
            assert str(ours.cv_results_[name]) == str(values), name
        elif "score" in name and "time" not in name and "rank" not in name:
            assert_allclose(ours.cv_results_[name], values, atol=atol, err_msg=name)
    # The best candidate is among the best of the other search.
    name = next(n for n in theirs.cv_results_ if n.startswith("mean_test"))
    scores = theirs.cv_results_[name]
    assert scores[ours.best_index_] >= scores[theirs.best_index_] - 2 * atol


def test_every_parameter_is_varied_or_excused():
    names = set(FPEClassifier().get_params())
    assert names == set(GRIDS) | set(NOT_VARIED)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_equals_a_separate_fit_of_every_candidate(name):
    model = FPEClassifier(**QUICK).set_params(**TOGETHER_WITH.get(name, {}))
    grid = {name: GRIDS[name]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a smaller expansion
        ours, theirs = both(model, grid, X, Y, scoring="neg_log_loss")
    assert_same(ours, theirs, atol=0.01)


@pytest.mark.parametrize(
    ("estimator", "data", "scoring"),
    [
        (FPEClassifier(**QUICK), (X, Y), None),
        (FPEClassifier(**QUICK), (X, np.array(["a", "b", "c"])[Y]), "accuracy"),
        (FPEClassifier(**QUICK), (X, Y == 1), "roc_auc"),
        (FPEClassifier(**QUICK), (X_MULTI, Y_MULTI), "f1_macro"),
        (FPERegressor(**QUICK), (X_REAL, Y_REAL), None),
        (FPERegressor(**QUICK), (X_REAL, np.c_[Y_REAL, -Y_REAL]), "r2"),
        (FPEClassifier(**QUICK), (X, Y), ["accuracy", "neg_log_loss"]),
        (make_pipeline(StandardScaler(), FPEClassifier(**QUICK)), (X, Y), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kinds_of_problems(estimator, data, scoring):
    last = _steps.final_step(estimator)
    prefix = "" if last is estimator else "fpeclassifier__"
    grid = {
        prefix + "learning_rate_init": [1e-3, 1e-2],
        prefix + "expansion": [1, 2],
        prefix + "early_stopping": [False, True],
    }
    refit = "accuracy" if isinstance(scoring, list) else True
    ours, theirs = both(
        estimator,
        grid,
        *data,
        scoring=scoring,
        refit=refit,
        return_train_score=True,
    )
    assert_same(ours, theirs)
    assert_array_equal(ours.predict(data[0]).shape, np.shape(data[1]))
    assert ours.score(*data) == pytest.approx(
        ours.best_estimator_.score(*data) if scoring is None else ours.score(*data)
    )


def test_weights_of_rows_and_of_labels_train_beside_each_other():
    # Weights of the classes of many labels belong to entries of y, not to rows.
    grid = {"class_weight": [None, "balanced", [{0: 1.0, 1: 3.0}] * Y_MULTI.shape[1]]}
    model = FPEClassifier(**QUICK)
    assert_same(*both(model, grid, X_MULTI, Y_MULTI, scoring="f1_macro"))


@pytest.mark.parametrize("split", ["shared", "contiguous"])
@pytest.mark.parametrize("prune", ["structured", "rewired", "magnitude"])
def test_dense_blocks_train_beside_others(split, prune):
    model = FPEClassifier(**QUICK, split=split, prune=prune)
    grid = {"learning_rate_init": [1e-3, 1e-2], "expansion": [1, 2, 3]}
    assert_same(*both(model, grid, X, Y, scoring="neg_log_loss"), atol=0.01)


def test_sample_weight_is_split_with_the_rows():
    weights = np.random.default_rng(0).random(len(X)) * (np.arange(len(X)) % 3)
    grid = {"learning_rate_init": [1e-3, 1e-2]}
    fit_params = {"sample_weight": weights}
    ours, theirs = both(FPEClassifier(**QUICK), grid, X, Y, fit_params)
    assert_same(ours, theirs)
    unweighted = FPESearchCV(
        FPEClassifier(**QUICK), grid, cv=KFold(2, shuffle=True, random_state=0)
    ).fit(X, Y)
    name = "mean_test_score"
    assert (ours.cv_results_[name] != unweighted.cv_results_[name]).any()


class Counting(StandardScaler):
    """A scaler that counts its fits."""

    n_fits = 0

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = shift

    def fit(self, X, y=None, sample_weight=None):
        type(self).n_fits += 1
        return super().fit(X, y, sample_weight)


def test_earlier_steps_are_fitted_once_per_split_and_setting():
    Counting.n_fits = 0
    pipeline = make_pipeline(Counting(), PCA(6), FPEClassifier(**QUICK))
    grid = {
        "counting__shift": [0.0, 1.0],
        "fpeclassifier__learning_rate_init": [1e-3, 1e-2],
    }
    weights = {"fpeclassifier__sample_weight": np.arange(len(X)) % 4 + 1.0}
    search = FPESearchCV(pipeline, grid, cv=3).fit(X, Y, **weights)
    assert Counting.n_fits == 3 * 2 + 1
    theirs = GridSearchCV(pipeline, grid, cv=3).fit(X, Y, **weights)
    assert_same(search, theirs)
    assert search.best_estimator_[0].n_features_in_ == X.shape[1]


class WithoutHash:
    """A callable that is neither pickled nor looked up."""

    __hash__ = None

    def __call__(self, rows):
        return 2 * rows

    def __reduce__(self):
        raise TypeError("cannot pickle this")

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("function", "n_fits"), [(lambda rows: 2 * rows, 4), (WithoutHash(), 8)]
)
def test_earlier_steps_that_cannot_be_pickled(function, n_fits):
    scaler = Counting()
    pipeline = make_pipeline(
        FunctionTransformer(function), scaler, FPEClassifier(**QUICK)
    )
    grid = {"fpeclassifier__expansion": [1, 2], "counting__shift": [0.0, 1.0]}
    Counting.n_fits = 0
    FPESearchCV(pipeline, grid, cv=2, refit=False, error_score="raise").fit(X, Y)
    assert Counting.n_fits == n_fits
    assert_same(*both(pipeline, grid, X, Y))


def test_an_activation_that_cannot_be_pickled():
    softplus = Activation("mine", lambda: Softplus(2.0), lambda x: softplus_of(x, 2.0))
    grid = {"expansion": [1, 2], "activation": [softplus, "relu"]}
    assert_same(*both(FPEClassifier(**QUICK), grid, X, Y))


def test_rows_of_different_lengths():
    # Such as texts in words, which the first step turns into columns.
    texts = [["a"] * (1 + i % 3) + ["b"] * (i % 2) for i in range(60)]
    model = make_pipeline(FeatureHasher(8, input_type="string"), FPEClassifier(**QUICK))
    grid = {"fpeclassifier__expansion": [1, 2]}
    assert_same(*both(model, grid, texts, np.arange(60) % 2))


def test_steps_may_be_replaced():
    pipeline = make_pipeline(StandardScaler(), FPEClassifier(**QUICK))
    grid = [
        {"standardscaler": ["passthrough", PCA(5)]},
        {"fpeclassifier": [LogisticRegression(), FPEClassifier(**QUICK, expansion=2)]},
    ]
    assert_same(*both(pipeline, grid, X, Y))


def test_shared_warm_ups_run_once(monkeypatch):
    epochs = []
    real = _stack.Stack.run_epochs

    def run_epochs(self, given):
        epochs.append([epoch.trainer.phase for epoch in given])
        real(self, given)

    monkeypatch.setattr(_stack.Stack, "run_epochs", run_epochs)
    model = FPEClassifier(**QUICK, warmup=2, prune="magnitude")
    grid = {"expansion": [1, 2, 3], "learning_rate_init": [1e-3, 1e-2]}
    FPESearchCV(model, grid, cv=2, refit=False).fit(X, Y)
    warm = [phases for phases in epochs if "warm-up" in phases]
    # Two epochs of one network per learning rate and split.
    assert [len(phases) for phases in warm] == [4, 4]


def test_candidates_of_one_shape_train_as_one(monkeypatch):
    sizes = []
    real = _stack.Stack.run_epochs
    monkeypatch.setattr(
        _stack.Stack,
        "run_epochs",
        lambda self, epochs: sizes.append(len(epochs)) or real(self, epochs),
    )
    grid = {"learning_rate_init": [1e-3, 2e-3, 1e-2], "weight_decay": [0.0, 0.1]}
    FPESearchCV(FPEClassifier(**QUICK), grid, cv=2, refit=False).fit(X, Y)
    assert set(sizes) == {3 * 2 * 2}


def test_n_jobs_does_not_change_the_results(monkeypatch):
    monkeypatch.setattr(_candidates, "MAX_TOGETHER", 4)
    grid = {"expansion": [1, 2], "learning_rate_init": [1e-3, 1e-2]}
    scores = [
        FPESearchCV(FPEClassifier(**QUICK), grid, cv=2, n_jobs=n, refit=False)
        .fit(X, Y)
        .cv_results_["split1_test_score"]
        for n in (1, 2)
    ]
    assert_array_equal(*scores)


@pytest.mark.parametrize("n_candidates", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("n_splits", [1, 2, 5, 10])
def test_groups_hold_every_pair_once(n_candidates, n_splits):
    plan = _candidates.Plan(
        None, X, Y, [{}] * n_candidates, [()] * n_splits, None, {}, {}
    )
    groups = plan.groups()
    pairs = [pair for group in groups for pair in group]
    expected = {(c, s) for c in range(n_candidates) for s in range(n_splits)}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert max(map(len, groups)) <= _candidates.MAX_TOGETHER


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.parametrize("halving", [False, True])
def test_failures_in_training_are_scored_as_asked(halving):
    grid = {"learning_rate_init": [1e-3, 1e-2, 1e30, 1e-4]}
    search = FPESearchCV(FPEClassifier(**QUICK), grid, cv=2, halving=halving)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        scores = search.fit(X, Y).cv_results_["mean_test_score"]
    assert_array_equal(np.isnan(scores), [False, False, True, False])
    with pytest.raises(FloatingPointError, match="learning_rate_init"):
        search.set_params(error_score="raise").fit(X, Y)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_weights_that_become_infinite_fail_one_candidate(monkeypatch):
    def learned(self):
        if self.settings.weight_decay == 0.5:
            raise self.diverged("The weights became infinite.")
        return original(self)

    original = Trainer.learned
    monkeypatch.setattr(Trainer, "learned", learned)
    grid = {"weight_decay": [0.1, 0.5, 1.0]}
    search = FPESearchCV(FPEClassifier(**QUICK), grid, cv=2, halving=True)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        scores = search.fit(X, Y).cv_results_["mean_test_score"]
    assert_array_equal(np.isnan(scores), [False, True, False])


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_failures_are_scored_as_asked():
    model = FPEClassifier(**QUICK, activation="identity")
    grid = {"learning_rate_init": [1e-2, 1e30], "max_iter": [6]}
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search = FPESearchCV(model, grid, cv=2, error_score=-1.0).fit(X, Y)
    assert_array_equal(search.cv_results_["mean_test_score"][1], -1.0)
    assert search.best_index_ == 0
    with pytest.raises(FloatingPointError, match="learning_rate_init"):
        FPESearchCV(model, grid, cv=2, error_score="raise").fit(X, Y)
    grid = {"learning_rate_init": [-1.0, 1e-2]}
    with pytest.warns(FitFailedWarning, match="learning_rate_init"):
        search = FPESearchCV(model, grid, cv=2).fit(X, Y)
    assert np.isnan(search.cv_results_["mean_test_score"][0])
    with pytest.raises(ValueError, match="All the 2 fits failed"):
        FPESearchCV(model, {"warmup": [-1]}, cv=2).fit(X, Y)


@pytest.mark.parametrize("kind", [FPESearchCV, GridSearchCV])
@pytest.mark.parametrize("estimator", [FPEClassifier(), make_pipeline(FPEClassifier())])
def test_an_unknown_parameter_is_an_error(kind, estimator):
    # Unlike a value that does not fit, which scores as a failed fit.
    grid = [{}, {"learning_rate": ["cosine"], "weight_decy": [0.1]}]
    with pytest.raises(ValueError, match=r"Invalid parameter '(weight_decy|learning)"):
        kind(estimator, grid, cv=2).fit(X, Y)


@pytest.mark.parametrize("where", ["_evaluate", "_fit_best"])
def test_a_failed_search_leaves_the_earlier_one(monkeypatch, where):
    def interrupt(self, *args):
        raise KeyboardInterrupt

    search = FPESearchCV(FPEClassifier(**QUICK), {"tol": [0.1, 0.2]}, cv=2).fit(X, Y)
    before, labels = vars(search).copy(), search.predict(X)
    search.set_params(cv=3)
    monkeypatch.setattr(FPESearchCV, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    for name, value in vars(search).items():
        assert not name.endswith("_") or value is before[name]
    assert {n for n in before if n.endswith("_")} <= vars(search).keys()
    np.testing.assert_array_equal(search.predict(X), labels)


def test_a_search_without_a_refit_forgets_the_best_of_the_search_before():
    search = FPESearchCV(FPEClassifier(**QUICK), {"tol": [0.1, 0.2]}, cv=2).fit(X, Y)
    search.set_params(refit=False).fit(X, Y)
    assert not hasattr(search, "best_estimator_")


def test_an_interrupt_ends_the_search(monkeypatch):
    def interrupt(self, epochs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_stack.Stack, "run_epochs", interrupt)
    search = FPESearchCV(FPEClassifier(**QUICK), {"tol": [0.1, 0.2]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(), make_pipeline(PCA(2)), StandardScaler()]
)
def test_other_estimators_are_refused(estimator):
    with pytest.raises(TypeError, match="GridSearchCV"):
        FPESearchCV(estimator, {}).fit(X, Y)


def test_many_processes_are_refused():
    model = FPEClassifier(**QUICK, distributed=True)
    with pytest.raises(ValueError, match="one process"):
        FPESearchCV(model, {"tol": [0.1]}).fit(X, Y)
    model.set_params(distributed=False)
    with pytest.raises(ValueError, match="one process"):
        FPESearchCV(model, {"distributed": [True]}).fit(X, Y)


def test_memory_and_callbacks(tmp_path):
    grid = {"expansion": [1, 2]}
    model = FPEClassifier(**QUICK, memory=tmp_path)
    assert_same(*both(model, grid, X, Y))
    assert any(tmp_path.rglob("*.pkl"))


def test_sparse_rows():
    rows = sparse.csr_array(np.where(np.abs(X) > 0.5, X, 0.0))
    grid = {"learning_rate_init": [1e-3, 1e-2]}
    assert_same(*both(FPEClassifier(**QUICK), grid, rows, Y))


def test_data_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    search = FPESearchCV(FPEClassifier(**QUICK), {"expansion": [1, 2]}, cv=2)
    search.fit(frame, Y)
    assert list(search.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        search.predict(frame.iloc[:, ::-1])


def test_state_after_a_search_and_pickling():
    before = torch.random.get_rng_state(), torch.is_grad_enabled()
    threads = torch.get_num_threads()
    search = FPESearchCV(FPEClassifier(**QUICK), {"expansion": [1, 2]}, cv=2)
    search.fit(X, Y)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1], threads) == (torch.is_grad_enabled(), torch.get_num_threads())
    again = pickle.loads(pickle.dumps(search))
    assert_array_equal(again.predict(X), search.predict(X))
    assert "FPESearchCV" in search._repr_html_()


# --------------------------------------------------------------------------------------
# Halving
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_candidates", [1, 2, 3, 8, 9, 30])
@pytest.mark.parametrize("factor", [2, 3])
def test_rungs_leave_at_most_a_few_candidates(n_candidates, factor):
    epochs = _halving.rungs(81, n_candidates, factor)
    assert epochs == sorted(set(epochs))
    assert all(1 <= epoch < 81 for epoch in epochs)
    left = n_candidates
    for _ in epochs:
        left = -(-left // factor)
    assert left <= factor or n_candidates < factor


def test_halving_trains_the_best_to_the_end():
    model = FPEClassifier(**{**QUICK, "max_iter": 9})
    grid = {"learning_rate_init": [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]}
    search = FPESearchCV(model, grid, cv=2, halving=True, factor=2).fit(X, Y)
    n_epochs = search.cv_results_["n_epochs"]
    assert n_epochs.max() == 9
    assert sorted(n_epochs)[0] == 2
    assert n_epochs[search.best_index_] == 9
    assert search.best_params_ == {"learning_rate_init": 1e-2}
    whole = FPESearchCV(model, grid, cv=2).fit(X, Y)
    last = n_epochs == 9
    assert_allclose(
        search.cv_results_["mean_test_score"][last],
        whole.cv_results_["mean_test_score"][last],
        atol=0.02,
    )


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_the_best_of_a_halved_search_was_trained_to_the_end():
    def undefined_at_the_end(model, X, y):
        return np.nan if model.n_iter_ == QUICK["max_iter"] else model.tol

    search = FPESearchCV(
        FPEClassifier(**QUICK),
        {"tol": [0.1, 0.2, 0.3]},
        cv=2,
        halving=True,
        scoring=undefined_at_the_end,
    ).fit(X, Y)
    assert search.cv_results_["n_epochs"].tolist() == [2, 2, 6]
    assert search.best_index_ == 2


def test_halving_says_what_it_needs():
    model = FPEClassifier(**QUICK)
    with pytest.raises(ValueError, match="max_iter"):
        FPESearchCV(model, {"max_iter": [3, 4]}, cv=2, halving=True).fit(X, Y)
    with pytest.raises(ValueError, match="name of the one that decides"):
        FPESearchCV(
            model,
            {"tol": [0.1, 0.2]},
            cv=2,
            halving=True,
            refit=False,
            scoring=["accuracy", "neg_log_loss"],
        ).fit(X, Y)
