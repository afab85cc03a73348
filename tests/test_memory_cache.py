"""The cache of the dense warm-up: `memory=`."""

from unittest import mock

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._trainer import Trainer

N_WARMUP, N_EPOCHS = 3, 5


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:120], y[:120]


def make(kind=FPEClassifier, **kwargs):
    parameters = {
        "expansion": 2,
        "max_iter": N_EPOCHS,
        "warmup": N_WARMUP,
        "random_state": 0,
        "device": "cpu",
    }
    return kind((4,), **parameters | kwargs)


def epochs_of(fit):
    """Return what `fit` returns, and the number of epochs that were trained."""
    with mock.patch.object(
        Trainer, "run_epoch", autospec=True, side_effect=Trainer.run_epoch
    ) as epoch:
        result = fit()
    return result, epoch.call_count


def state(estimator):
    tensors = estimator.module_.state_dict()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def assert_same_bits(a, b):
    assert state(a).keys() == state(b).keys()
    for name, value in state(a).items():
        np.testing.assert_array_equal(value, state(b)[name])
    assert a.loss_curve_ == b.loss_curve_
    assert a.n_iter_ == b.n_iter_
    assert a.expansion_ == b.expansion_


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("kwargs", [{}, {"early_stopping": True, "tol": 0.0}])
def test_same_bits_with_and_without(kind, kwargs, data, tmp_path):
    plain = make(kind, **kwargs).fit(*data)
    first, n_first = epochs_of(
        lambda: make(kind, memory=str(tmp_path), **kwargs).fit(*data)
    )
    again, n_again = epochs_of(
        lambda: make(kind, memory=str(tmp_path), **kwargs).fit(*data)
    )
    assert (n_first, n_again) == (N_EPOCHS, N_EPOCHS - N_WARMUP)
    assert_same_bits(plain, first)
    assert_same_bits(plain, again)
    if kwargs:
        assert plain.validation_scores_ == again.validation_scores_


@pytest.mark.parametrize(
    "change",
    [
        {"expansion": 3},
        {"split": "random"},
        {"split": "feature"},
        {"prune": "structured"},
        {"budget": 200},
        {"class_weight": {0: 1.0, 1: 1.0, 2: 1.0}},
        {"verbose": False},
    ],
    ids=str,
)
def test_what_the_warm_up_does_not_depend_on_shares_it(change, data, tmp_path):
    make(memory=str(tmp_path)).fit(*data)
    cached, n_epochs = epochs_of(
        lambda: make(memory=str(tmp_path), **change).fit(*data)
    )
    assert n_epochs == N_EPOCHS - N_WARMUP
    assert_same_bits(make(**change).fit(*data), cached)


@pytest.mark.parametrize(
    "change",
    [
        {"random_state": 1},
        {"warmup": 2},
        {"max_iter": 6},
        {"learning_rate_init": 3e-3},
        {"learning_rate": "constant"},
        {"batch_size": 32},
        {"activation": "tanh"},
        {"weight_decay": 0.1},
        {"standardize": False},
        {"precision": "bfloat16"},
        {"hidden_layer_sizes": (5,)},
        {"hidden_layer_sizes": (4, 3)},
        {"class_weight": {0: 2.0}},
        {"early_stopping": True},
    ],
    ids=str,
)
def test_what_the_warm_up_depends_on_has_its_own(change, data, tmp_path):
    make(memory=str(tmp_path)).fit(*data)
    changed = make(memory=str(tmp_path), expansion=1).set_params(**change)
    fitted, n_epochs = epochs_of(lambda: changed.fit(*data))
    assert n_epochs == changed.max_iter
    assert_same_bits(changed.set_params(memory=None).fit(*data), fitted)


def test_data_and_weights_belong_to_the_key(data, tmp_path):
    X, y = data
    make(memory=str(tmp_path)).fit(X, y)
    other_X, other_y = X.copy(), y.copy()
    other_X[0, 10] += 1
    other_y[0] = (other_y[0] + 1) % 3
    weights = np.ones(len(y))
    weights[0] = 2
    for arguments in [(other_X, y), (X, other_y), (X, y, weights), (X[1:], y[1:])]:
        _, n_epochs = epochs_of(lambda a=arguments: make(memory=str(tmp_path)).fit(*a))
        assert n_epochs == N_EPOCHS
    _, n_epochs = epochs_of(lambda: make(memory=str(tmp_path)).fit(X, y, weights * 3))
    assert n_epochs in (N_EPOCHS - N_WARMUP, N_EPOCHS)  # the scale may or may not count


def test_classifier_and_regressor_do_not_mix(data, tmp_path):
    X, y = data
    make(memory=str(tmp_path)).fit(X, y == 1)
    _, n_epochs = epochs_of(
        lambda: make(FPERegressor, memory=str(tmp_path)).fit(X, y == 1)
    )
    assert n_epochs == N_EPOCHS


def test_search_trains_a_warm_up_per_fold(data, tmp_path):
    grid = {"expansion": [1, 2], "split": ["shared", "feature"]}

    def search(memory):
        return GridSearchCV(make(memory=memory), grid, cv=2, refit=False).fit(*data)

    plain, n_plain = epochs_of(lambda: search(None))
    cached, n_cached = epochs_of(lambda: search(str(tmp_path)))
    n_candidates, n_folds = 4, 2
    n_fine_tune = n_candidates * n_folds * (N_EPOCHS - N_WARMUP)
    assert n_plain == n_fine_tune + n_candidates * n_folds * N_WARMUP
    assert n_cached == n_fine_tune + n_folds * N_WARMUP
    np.testing.assert_array_equal(
        plain.cv_results_["mean_test_score"], cached.cv_results_["mean_test_score"]
    )


def test_joblib_memory_and_folder_are_the_same(data, tmp_path):
    make(memory=joblib.Memory(str(tmp_path), verbose=0)).fit(*data)
    _, n_epochs = epochs_of(lambda: make(memory=str(tmp_path)).fit(*data))
    assert n_epochs == N_EPOCHS - N_WARMUP


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_seed_must_be_an_integer(random_state, data, tmp_path):
    model = make(memory=str(tmp_path), random_state=random_state)
    with pytest.raises(ValueError, match="integer random_state"):
        model.fit(*data)


def test_cache_is_silent(data, tmp_path, capfd):
    for _ in range(2):
        make(memory=str(tmp_path)).fit(*data)
    assert capfd.readouterr() == ("", "")
