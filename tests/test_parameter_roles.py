"""Every parameter acts on the warm-up or does not; the cache knows which.

A parameter in the first table is in the key of a cached warm-up, as it is. One in the
second is resolved first, because several values mean the same. The rest, which is
``NOT_OF_WARM_UP`` without these, acts after the warm-up or beside it.
"""

from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe._estimators._constraints import NOT_OF_WARM_UP

ESTIMATORS = [FPEClassifier, FPERegressor, FPETransformer]
N_WARMUP, N_EPOCHS = 3, 5

OF_WARM_UP = {
    "activation": ["tanh", "gelu"],
    "label_smoothing": [0.1],
    "learning_rate": ["constant"],
    "max_iter": [N_EPOCHS + 1],
    "precision": ["bfloat16"],
    "random_state": [1],
    "skip_connection": [True],
    "standardize": [False],
}
"""Parameters in the key, with other values."""

RESOLVED = {
    "batch_size": [32],  # as rows per step
    "class_weight": [{0: 2.0, 1: 1.0, 2: 1.0}, {0: 0.0}],  # as weights of rows
    "device": [],  # as device; there may be one only
    "hidden_layer_sizes": [(5,), (4, 3)],  # as widths
    "learning_rate_init": [3e-3, 0.06],
    "weight_decay": [0.1, 0.0],
    "task": ["regression"],  # as loss and targets
    "warmup": [2, 0.4],  # as number of epochs
}
"""Parameters in the key as resolved, with other values."""

SAME = {
    "batch_size": [16],
    "class_weight": [{0: 1.0, 1: 1.0, 2: 1.0}],
    "device": [torch.device("cpu")],
    "hidden_layer_sizes": [4, [4], np.array([4])],
    "warmup": [np.int64(3), 0.6],
    "random_state": [np.int64(0)],
    "max_iter": [np.int32(N_EPOCHS)],
    "learning_rate_init": [np.float64(0.1)],  # that of "auto" for 64 columns
    "weight_decay": [0.097],  # 64 / 60 * (64 / 120)**0.5 * 4 / 32, with 4 parents
    "label_smoothing": [0],
    "standardize": [np.True_],
    "learning_rate": [np.str_("cosine")],
}
"""Other values that mean the same."""

AFTER_WARM_UP = {
    "budget": [100],
    "expansion": [1, 3, [2]],
    "feature_groups": [list(range(64))],
    "n_iter_no_change": [np.inf],
    "prune": ["structured", "gradual"],
    "scoring": ["accuracy"],
    "split": ["random", "contiguous"],
    "tol": [0.5],
    "validation_fraction": [0.3],
    "verbose": [False, 0],
    "warm_start": [True],
}
"""Parameters that do not act on the warm-up, with other values."""

BESIDE = {
    *("distributed", "early_stopping", "memory", "n_estimators", "refit"),
    "skorch_callbacks",
}
"""Parameters that act through the rows, or that a cache cannot be used with."""


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:120], y[:120]


def make(kind, memory, **settings):
    common = {
        "hidden_layer_sizes": (4,),
        "expansion": 2,
        "max_iter": N_EPOCHS,
        "warmup": N_WARMUP,
        "batch_size": 16,
        "random_state": 0,
        "device": "cpu",
        "memory": memory,
    }
    return kind(**common | settings)


def n_epochs_of(model, data):
    """Fit; return the number of epochs that were trained."""
    with mock.patch.object(
        Trainer, "run_epoch", autospec=True, side_effect=Trainer.run_epoch
    ) as epoch:
        model.fit(*data)
    return epoch.call_count


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_parameter_has_one_role(kind):
    of_warm_up, resolved = set(OF_WARM_UP), set(RESOLVED)
    others = set(AFTER_WARM_UP) | BESIDE
    assert not of_warm_up & NOT_OF_WARM_UP
    assert resolved | others == NOT_OF_WARM_UP
    assert not resolved & others
    parameters = set(kind().get_params())
    assert parameters <= of_warm_up | NOT_OF_WARM_UP
    every = set().union(*(kind().get_params() for kind in ESTIMATORS))
    assert every == of_warm_up | NOT_OF_WARM_UP


def pairs(table):
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize(("name", "value"), pairs(OF_WARM_UP | RESOLVED))
def test_change_of_what_acts_on_the_warm_up_misses_the_cache(
    kind, name, value, data, tmp_path
):
    if name not in kind().get_params():
        pytest.skip("not a parameter of this estimator")
    make(kind, tmp_path).fit(*data)
    changed = make(kind, tmp_path, **{name: value})
    assert n_epochs_of(changed, data) == changed.max_iter
    plain = make(kind, None, **{name: value}).fit(*data)
    assert changed.loss_curve_ == plain.loss_curve_


@pytest.mark.parametrize("kind", [FPEClassifier, FPETransformer])
@pytest.mark.parametrize(("name", "value"), pairs(SAME | AFTER_WARM_UP))
def test_change_of_anything_else_hits_the_cache(kind, name, value, data, tmp_path):
    if name not in kind().get_params():
        pytest.skip("not a parameter of this estimator")
    make(kind, tmp_path).fit(*data)
    changed = make(kind, tmp_path, **{name: value})
    assert n_epochs_of(changed, data) == changed.max_iter - N_WARMUP
    plain = make(kind, None, **{name: value}).fit(*data)
    assert changed.loss_curve_ == plain.loss_curve_


def test_change_of_the_batch_size_that_means_the_same_hits_the_cache(data, tmp_path):
    for batch_size in (120, 121, 10**6):
        model = make(FPEClassifier, tmp_path, batch_size=batch_size)
        n_warmup = 0 if batch_size > 120 else N_WARMUP
        assert n_epochs_of(model, data) == N_EPOCHS - N_WARMUP + n_warmup


def test_own_activation_has_its_own_warm_up(data, tmp_path):
    from torch.nn import Softplus, functional

    from sklearn_fpe.nn import Activation

    make(FPEClassifier, tmp_path).fit(*data)
    softplus = Activation("relu", Softplus, functional.softplus)
    model = make(FPEClassifier, tmp_path, activation=softplus)
    assert n_epochs_of(model, data) == N_EPOCHS
    again = make(FPEClassifier, tmp_path, activation=softplus)
    assert n_epochs_of(again, data) == N_EPOCHS - N_WARMUP
    assert again.loss_curve_ == model.loss_curve_


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint16])
def test_tensors_of_any_dtype_hit_the_cache(dtype, data, tmp_path):
    X, y = torch.from_numpy(data[0]).to(dtype), data[1]
    make(FPEClassifier, tmp_path).fit(X, y)
    model = make(FPEClassifier, tmp_path)
    assert n_epochs_of(model, (X, y)) == N_EPOCHS - N_WARMUP
    assert model.loss_curve_ == make(FPEClassifier, None).fit(X, y).loss_curve_
    # The same bits of another dtype are other numbers.
    if dtype is not torch.uint16:
        other = X.view(torch.uint16)
        model = make(FPEClassifier, tmp_path)
        assert n_epochs_of(model, (other, y)) == N_EPOCHS


def test_folder_may_be_a_path(data, tmp_path):
    make(FPEClassifier, str(tmp_path)).fit(*data)
    assert n_epochs_of(make(FPEClassifier, tmp_path), data) == N_EPOCHS - N_WARMUP


def test_number_of_threads_belongs_to_the_key(data, tmp_path, monkeypatch):
    make(FPEClassifier, tmp_path).fit(*data)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert n_epochs_of(make(FPEClassifier, tmp_path), data) == N_EPOCHS
