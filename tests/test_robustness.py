"""Interrupts, exhausted memory, divergence, global state, threads."""

import copy
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._trainer import Trainer

QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "max_iter": 6,
    "warmup": 2,
    "random_state": 0,
}
ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]


def problem():
    return make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


def outputs(model, X):
    return model.transform(X) if isinstance(model, FPETransformer) else model.predict(X)


# --------------------------------------------------------------------------------------
# Interrupts. An epoch has four steps.
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("step", [1, 6, 9, 15, 24])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_interrupt_is_raised_and_keeps_the_earlier_model(
    at_step, kind, step, early_stopping
):
    X, y = problem()
    settings = {**QUICK, "batch_size": 16, "early_stopping": early_stopping}
    model = kind(**settings).fit(X, y)
    expected, attributes = outputs(model, X), vars(model).copy()
    at_step(step, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X[:, :5], y > 0)
    assert vars(model) == attributes
    np.testing.assert_array_equal(outputs(model, X), expected)
    outputs(pickle.loads(pickle.dumps(model)), X)
    model.fit(X[:, :5], y > 0)
    assert model.n_features_in_ == 5


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("step", [1, 9])
def test_interrupt_of_a_first_fit_leaves_nothing(at_step, kind, step):
    X, y = problem()
    model = kind(**QUICK)
    at_step(step, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert vars(model) == vars(kind(**QUICK))
    with pytest.raises(NotFittedError):
        outputs(model, X)
    assert not hasattr(model, "n_iter_")


def test_interrupt_of_a_warm_started_fit_keeps_the_earlier_model(at_step):
    X, y = problem()
    model = FPEClassifier(**QUICK, warm_start=True).fit(X, y)
    other = copy.deepcopy(model).fit(X, y)
    expected = model.predict_proba(X)
    at_step(5, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    assert (model.n_iter_, len(model.loss_curve_)) == (6, 6)
    # It goes on from there as if nothing had happened.
    np.testing.assert_array_equal(
        model.fit(X, y).predict_proba(X), other.predict_proba(X)
    )


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
def test_interrupt_stops_a_search(at_step, kind):
    X, y = problem()
    steps = at_step(9, KeyboardInterrupt)
    search = GridSearchCV(
        kind(**QUICK), {"expansion": [1, 2]}, cv=2, error_score=np.nan
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y)
    assert len(steps) == 9
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize("n_calls", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("a bug")])
def test_error_in_partial_fit_leaves_the_model_as_it_was(at_step, n_calls, error):
    X, y = problem()
    model = FPEClassifier(**QUICK)
    for _ in range(n_calls):
        model.partial_fit(X, y)
    expected, scaler = model.predict_proba(X), model.learned_.affine.mean.copy()
    at_step(3, error)
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        model.partial_fit(10 * X + 1, y)
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    np.testing.assert_array_equal(model.learned_.affine.mean, scaler)
    assert model.n_iter_ == len(model.loss_curve_) == n_calls
    model.partial_fit(X, y)
    assert model.n_iter_ == n_calls + 1


def test_error_in_the_first_partial_fit_leaves_nothing(at_step):
    X, y = problem()
    at_step(2, KeyboardInterrupt)
    model = FPEClassifier(**QUICK)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    # The next call is a first one: other classes, other columns.
    model.partial_fit(X[:, :6], y + 5)
    np.testing.assert_array_equal(model.classes_, [5, 6, 7])


# --------------------------------------------------------------------------------------
# Memory and divergence
# --------------------------------------------------------------------------------------


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_exhausted_memory_says_what_to_change(at_step, error, method):
    X, y = problem()
    at_step(3, error)
    model = FPEClassifier(**QUICK, batch_size=16, device="cpu")
    with pytest.raises(MemoryError) as caught:
        getattr(model, method)(X, y)
    for part in ("device='cpu' ran out", "batch_size (it is 16)", "n_jobs", "device="):
        assert part in str(caught.value)
    assert caught.value.__cause__ is error
    assert not hasattr(model, "module_")


def test_other_errors_stay_what_they_are(at_step):
    X, y = problem()
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    at_step(3, error)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        FPEClassifier(**QUICK).fit(X, y)


@pytest.mark.parametrize("kind", [FPERegressor, FPEClassifier])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_divergence_raises_with_advice(kind, early_stopping):
    X, y = problem()
    model = kind(
        **QUICK,
        learning_rate_init=1e30,
        activation="identity",
        early_stopping=early_stopping,
    )
    with pytest.raises(FloatingPointError) as caught:
        model.fit(X, y)
    for part in ("Lower learning_rate_init", "1e+30", "standardize=True", "extreme"):
        assert part in str(caught.value)
    assert not hasattr(model, "module_")
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), FloatingPointError)


def test_divergence_of_a_partial_fit_leaves_the_model_as_it_was():
    X, y = problem()
    model = FPEClassifier(**QUICK, activation="identity").partial_fit(X, y)
    expected = model.predict_proba(X)
    model.set_params(learning_rate_init=1e30)
    for _ in range(9):
        try:
            model.partial_fit(X, y)
        except FloatingPointError:
            break
        expected = model.predict_proba(X)
    else:
        pytest.fail("no divergence")
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_weights_that_diverge_in_the_last_step_are_noticed(monkeypatch):
    X, y = problem()
    real = Trainer.run_epoch

    def epoch(self, *args):
        real(self, *args)
        with torch.no_grad():
            self.network.layers[0].weight.mul_(torch.inf)

    monkeypatch.setattr(Trainer, "run_epoch", epoch)
    model = FPEClassifier(**{**QUICK, "max_iter": 1, "warmup": 0})
    with pytest.raises(FloatingPointError, match="weights became infinite"):
        model.fit(X, y)
    assert not hasattr(model, "module_")


def test_divergence_in_a_search_is_a_failed_fit():
    X, y = problem()
    model = FPEClassifier(**QUICK, activation="identity")
    search = GridSearchCV(model, {"learning_rate_init": [1e-2, 1e30]}, cv=2)
    with pytest.warns(match="fits failed out of"), pytest.warns(match="non-finite"):
        search.fit(X, y)
    assert search.best_params_ == {"learning_rate_init": 1e-2}


# --------------------------------------------------------------------------------------
# Global state
# --------------------------------------------------------------------------------------


def global_state():
    return (
        *np.random.get_state()[1:3],  # noqa: NPY002
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        dict(os.environ),
        list(warnings.filters),
    )


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("seed", [None, 3])
def test_global_state_is_the_same_after_as_before(kind, seed):
    X, y = problem()
    # The first call in bfloat16 imports torch's compiler, which sets a variable.
    kind(**{**QUICK, "precision": "bfloat16"}).fit(X, y)
    before = global_state()
    settings = {**QUICK, "random_state": seed, "early_stopping": True}
    for split in ("random", "shared", "feature"):
        outputs(kind(**settings, split=split).fit(X, y), X)
    model = kind(**{**settings, "early_stopping": False, "precision": "bfloat16"})
    model.partial_fit(X, y).partial_fit(X, y)
    for a, b in zip(before, global_state(), strict=True):
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("prune", ["magnitude", "structured"])
def test_one_seed_gives_equal_bytes(kind, prune):
    X, y = problem()
    settings = {**QUICK, "prune": prune, "early_stopping": True}
    fits = []
    for noise in (1, 2):
        np.random.seed(noise)  # noqa: NPY002  global generators do not matter
        torch.manual_seed(noise)
        fits.append(kind(**settings).fit(X, y))
    one, other = (pickle.dumps(model) for model in fits)
    assert one == other
    other = kind(**{**settings, "random_state": 1}).fit(X, y)
    assert not np.array_equal(outputs(fits[0], X), outputs(other, X))


def test_without_a_seed_fits_differ():
    X, y = problem()
    settings = {**QUICK, "random_state": None}
    np.random.seed(0)  # noqa: NPY002
    one = FPEClassifier(**settings).fit(X, y)
    np.random.seed(0)  # noqa: NPY002
    assert one.loss_curve_ != FPEClassifier(**settings).fit(X, y).loss_curve_


def test_random_state_instance_moves_on():
    X, y = problem()
    settings = {**QUICK, "random_state": np.random.RandomState(0)}
    model = FPEClassifier(**settings)
    first = model.fit(X, y).loss_curve_
    assert model.fit(X, y).loss_curve_ != first
    settings["random_state"] = np.random.RandomState(0)
    assert FPEClassifier(**settings).fit(X, y).loss_curve_ == first


def test_uses_of_randomness_are_independent_streams():
    X, y = problem()
    # Neither the split nor the expansion moves what comes before and beside them.
    curves = [
        FPEClassifier(**{**QUICK, **changes}).fit(X, y).loss_curve_[:2]
        for changes in ({}, {"split": "random"}, {"expansion": 3}, {"expansion": 1})
    ]
    assert curves[0] == curves[1] == curves[2] == curves[3]


def threads_of_torch(estimator, X, y):
    return torch.get_num_threads()


def test_search_in_parallel_does_not_over_subscribe():
    X, y = make_regression(60, 8, random_state=0)
    before = torch.get_num_threads()
    model = FPERegressor(**QUICK)
    threads = cross_val_score(model, X, y, cv=2, n_jobs=2, scoring=threads_of_torch)
    assert threads.max() <= max(1, os.cpu_count() // 2)
    assert torch.get_num_threads() == before


def test_search_in_parallel_gives_what_it_gives_alone():
    X, y = problem()
    grid = {"expansion": [1, 2], "split": ["shared", "random"]}
    searches = [
        GridSearchCV(FPEClassifier(**QUICK), grid, cv=2, n_jobs=n_jobs).fit(X, y)
        for n_jobs in (1, 2)
    ]
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_allclose(*scores, atol=0.02)
    assert searches[1].best_estimator_.predict(X).shape == (60,)
