"""FPESearchCV with several scores, routed arguments and messages."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn import config_context
from sklearn.datasets import make_classification
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier, FPESearchCV
from sklearn_fpe._estimators import _candidates

QUICK = {"hidden_layer_sizes": (4,), "max_iter": 4, "batch_size": 32, "random_state": 0}
GRID = {"expansion": [1, 2], "learning_rate_init": [1e-3, 5e-2]}
X, Y = make_classification(
    120, 8, n_informative=6, n_classes=3, n_clusters_per_class=1, random_state=0
)
NAMES = ["accuracy", "neg_log_loss"]


def both_scores(model, rows, y):
    """A scorer that returns two scores; the names are its own."""
    probabilities = model.predict_proba(rows)
    hits = accuracy_score(y, model.predict(rows))
    return {"hits": hits, "loss": -log_loss(y, probabilities)}


def worst_loss(results):
    """Choose a candidate that no score alone would choose."""
    return int(np.argmin(results["mean_test_neg_log_loss"]))


def assert_same_results(search, expected):
    names = {name for name in expected.cv_results_ if "_test_" in name}
    assert names <= set(search.cv_results_)
    for name in names:
        assert_allclose(search.cv_results_[name], expected.cv_results_[name], atol=1e-6)
    for name in ("best_index_", "best_score_", "best_params_"):
        assert hasattr(search, name) == hasattr(expected, name), name
    if hasattr(expected, "best_index_"):
        assert search.best_index_ == expected.best_index_
    if hasattr(expected, "best_score_"):
        assert search.best_score_ == pytest.approx(expected.best_score_)


@pytest.mark.parametrize(
    ("scoring", "refit"),
    [
        (NAMES, "accuracy"),
        (NAMES, "neg_log_loss"),
        (NAMES, False),
        (NAMES, worst_loss),
        (both_scores, "loss"),
        (both_scores, False),
    ],
)
def test_several_scores_are_those_of_a_grid_search(scoring, refit):
    settings = {"cv": 2, "scoring": scoring, "refit": refit}
    expected = GridSearchCV(FPEClassifier(**QUICK), GRID, **settings).fit(X, Y)
    search = FPESearchCV(FPEClassifier(**QUICK), GRID, **settings).fit(X, Y)
    assert search.multimetric_
    assert_same_results(search, expected)


@pytest.mark.parametrize("refit", ["accuracy", True])
def test_a_name_that_the_scorer_lacks_is_refused(refit):
    search = FPESearchCV(
        FPEClassifier(**QUICK), GRID, cv=2, scoring=both_scores, refit=refit
    )
    with pytest.raises(ValueError, match="refit"):
        search.fit(X, Y)


@pytest.mark.parametrize(
    ("scoring", "refit"), [(NAMES, "neg_log_loss"), (both_scores, "loss")]
)
def test_one_of_several_scores_decides_who_goes_on(scoring, refit):
    search = FPESearchCV(
        FPEClassifier(**QUICK | {"max_iter": 9}),
        {"learning_rate_init": [1e-5, 1e-4, 5e-2]},
        cv=2,
        scoring=scoring,
        refit=refit,
        halving=True,
    ).fit(X, Y)
    n_epochs = search.cv_results_["n_epochs"]
    assert n_epochs.min() < n_epochs.max() == n_epochs[2]
    assert search.best_index_ == 2
    search.set_params(refit=False)
    with pytest.raises(ValueError, match=r"refit to be the name .* got False"):
        search.fit(X, Y)
    search.set_params(scoring=both_scores, refit="hit")
    with pytest.raises(ValueError, match=r"one of hits, loss.* got 'hit'"):
        search.fit(X, Y)


@pytest.mark.parametrize("refit", ["hits", "loss"])
def test_a_scorer_with_names_of_its_own_decides_who_goes_on(refit):
    search = FPESearchCV(
        FPEClassifier(**QUICK | {"max_iter": 9}),
        {"learning_rate_init": [1e-5, 1e30, 5e-2], "activation": ["identity"]},
        cv=2,
        scoring=both_scores,
        refit=refit,
        error_score=-9.0,
        halving=True,
    )
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search.fit(X, Y)
    assert search.cv_results_["n_epochs"].tolist() == [3, 3, 9]
    assert search.best_index_ == 2
    with pytest.raises(ValueError, match=r"refit to be the name .* got True"):
        search.set_params(refit=True).fit(X, Y)


def test_halving_raises_the_error_of_a_fit_if_asked():
    model = FPEClassifier(**QUICK, activation="identity")
    grid = {"learning_rate_init": [1e-2, 1e30]}
    search = FPESearchCV(model, grid, cv=2, halving=True, factor=2, error_score="raise")
    with pytest.raises(FloatingPointError, match="learning_rate_init"):
        search.fit(X, Y)


def test_candidates_that_never_trained_are_dropped_in_the_first_round():
    grid = {"learning_rate_init": [-1.0, 1e-2]}
    model = FPEClassifier(**QUICK)
    search = FPESearchCV(model, grid, cv=2, halving=True, factor=2, error_score=-1.0)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search.fit(X, Y)
    assert search.cv_results_["n_epochs"].tolist() == [2, 4]


def test_arguments_are_routed_as_in_a_grid_search():
    weights = np.random.default_rng(0).uniform(0.1, 3, len(Y))
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=True),
            FPEClassifier(**QUICK)
            .set_fit_request(sample_weight=True)
            .set_score_request(sample_weight=True),
        )
        grid = {"fpeclassifier__expansion": [1, 2]}
        found = [
            kind(pipeline, grid, cv=2).fit(X, Y, sample_weight=weights)
            for kind in (FPESearchCV, GridSearchCV)
        ]
        assert_same_results(*found)
        without = FPESearchCV(pipeline, grid, cv=2).fit(X, Y)
        np.testing.assert_array_equal(
            *(search.best_estimator_[0].mean_ for search in found)
        )
    assert not np.array_equal(
        without.best_estimator_[0].mean_, found[0].best_estimator_[0].mean_
    )


def test_an_argument_without_the_name_of_a_step_is_refused():
    pipeline = make_pipeline(StandardScaler(), FPEClassifier(**QUICK))
    search = FPESearchCV(pipeline, {"fpeclassifier__expansion": [1]}, cv=2)
    message = r"such as fpeclassifier__sample_weight, got 'sample_weight'"
    with pytest.raises(ValueError, match=message):
        search.fit(X, Y, sample_weight=np.ones(len(Y)))


def test_a_search_of_no_candidates_is_refused():
    with pytest.raises(ValueError, match="there are 0 candidates and 2 splits"):
        FPESearchCV(FPEClassifier(**QUICK), [], cv=2).fit(X, Y)


def test_a_search_says_how_many_fits_it_makes(capsys):
    search = FPESearchCV(FPEClassifier(**QUICK), GRID, cv=2, verbose=1).fit(X, Y)
    assert (
        "2 folds for each of 4 candidates, totalling 8 fits" in capsys.readouterr().out
    )
    search.set_params(verbose=0).fit(X, Y)
    assert capsys.readouterr().out == ""


def test_a_search_says_which_candidates_train_together(monkeypatch, capsys):
    monkeypatch.setattr(_candidates, "MAX_TOGETHER", 3)
    search = FPESearchCV(FPEClassifier(**QUICK), GRID, cv=2, verbose=2).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"Group {number}/4: 2 candidates, 1 folds" for number in range(1, 5)
    ]
    search.set_params(halving=True).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["Group 1/1: 4 candidates, 2 folds"]


def test_a_fit_says_what_it_took_from_memory(tmp_path, capsys):
    model = FPEClassifier(**QUICK, warmup=2, memory=str(tmp_path), verbose=True)
    model.fit(X, Y)
    assert "taken from memory" not in capsys.readouterr().out
    model.fit(X, Y)
    assert "2 epochs taken from memory" in capsys.readouterr().out
