"""Pickles, copies and clones."""

import copy
import pickle
import pickletools

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification

from sklearn_fpe import (
    FPEClassifier,
    FPERegressor,
    FPETransformer,
    ModelFileError,
    save,
)
from sklearn_fpe._engine._pruning import Gradual
from sklearn_fpe._estimators import _fitted, _parameters
from sklearn_fpe.nn import Activation

QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "max_iter": 4,
    "random_state": 0,
    "learning_rate_init": 1e-2,
}
SETTINGS = [
    {},
    {"split": "random"},
    {"split": "shared"},
    {"split": "contiguous", "prune": "structured"},
    {"hidden_layer_sizes": (6, 5), "standardize": False},
    {"expansion": 1, "early_stopping": True},
]


def a_split(weight, n_children, rng):
    return np.arange(weight.size).reshape(weight.shape) % n_children


def problem():
    return make_classification(60, 8, n_informative=6, n_classes=3, random_state=0)


def outputs(model, X):
    return model.transform(X) if isinstance(model, FPETransformer) else model.predict(X)


def reload(model):
    return pickle.loads(pickle.dumps(model))


def test_parameters_of_a_rule_may_be_numbers_of_numpy():
    X, y = problem()
    rule = Gradual(np.float64(0), np.float32(0.5), interval=np.int64(3))
    model = FPEClassifier(**QUICK, prune=rule).fit(X, y)
    np.testing.assert_array_equal(outputs(reload(model), X), outputs(model, X))


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("changes", SETTINGS)
def test_pickle_holds_the_model(kind, changes):
    X, y = problem()
    X[:, 2] += 1e7  # its centring is kept apart
    model = kind(**{**QUICK, **changes}).fit(X, y)
    for twin in (reload(model), copy.deepcopy(model), copy.copy(model)):
        np.testing.assert_array_equal(outputs(twin, X), outputs(model, X))
        assert twin.n_nonzero_ == model.n_nonzero_
        assert twin.loss_curve_ == model.loss_curve_
        assert vars(twin).keys() == vars(model).keys()


def test_pickle_holds_arrays_and_no_optimizer():
    X, y = problem()
    model = FPEClassifier(**QUICK, warmup=1)
    data = pickle.dumps(model.partial_fit(X, y).partial_fit(X, y))
    for word in (b"optim", b"skorch.", b"_rebuild_tensor", b"storage", b"cuda"):
        assert word not in data


@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor, FPETransformer])
@pytest.mark.parametrize("changes", SETTINGS)
def test_pickle_names_no_class_of_the_library_but_the_estimator(kind, changes):
    X, y = problem()
    data = pickle.dumps(kind(**{**QUICK, **changes}).fit(X, y), protocol=2)
    named = {
        argument
        for code, argument, _ in pickletools.genops(data)
        if code.name == "GLOBAL"
    }
    assert not any("torch" in name for name in named)
    assert [name for name in named if name.startswith("sklearn_fpe")] == [
        f"{kind.__module__} {kind.__name__}"
    ]


def test_pickle_holds_rules_of_the_users_own():
    X, y = problem()
    model = FPEClassifier(
        **QUICK,
        split=a_split,
        prune=Gradual(0.2, 0.6, interval=1),
        activation=Activation("softplus", torch.nn.Softplus, torch.nn.Softplus()),
        warm_start=True,
    )
    twin = reload(model.fit(X, y))
    recipe = twin.learned_.recipe
    assert (recipe.split, recipe.prune) == (
        model.learned_.recipe.split,
        model.learned_.recipe.prune,
    )
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    twin.fit(X, y)


def test_pickle_leaves_the_model_in_training():
    X, y = problem()
    one, other = (FPEClassifier(**QUICK).partial_fit(X, y) for _ in range(2))
    pickle.dumps(one)
    np.testing.assert_array_equal(
        one.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X)
    )


def test_pickle_of_pruned_weights_holds_no_zeros():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 200)), np.arange(60) % 3
    settings = {**QUICK, "hidden_layer_sizes": (64,), "max_iter": 1}
    size = {
        expansion: len(
            pickle.dumps(
                FPEClassifier(**{**settings, "expansion": expansion}, split="random")
                .fit(X, y)
                .module_
            )
        )
        for expansion in (1, 8)
    }
    # Eight times the matrix, a bit for every position.
    assert size[8] < 1.35 * size[1]


def test_joblib_with_a_memory_map(tmp_path):
    X, y = problem()
    model = FPEClassifier(**QUICK, warm_start=True).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    for mode in (None, "r"):
        loaded = joblib.load(tmp_path / "model.joblib", mmap_mode=mode)
        np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
        loaded.fit(X, y)


@pytest.mark.parametrize("calls", [1, 3])
def test_training_goes_on_after_loading(calls):
    X, y = problem()
    model = FPEClassifier(**QUICK, warmup=2)
    for _ in range(calls):
        model.partial_fit(X[:40], y[:40])
    loaded = reload(model)
    model.partial_fit(X, y)
    loaded.partial_fit(X, y)
    # All but the state of the optimizer is there.
    np.testing.assert_array_equal(
        loaded.learned_.affine.mean, model.learned_.affine.mean
    )
    assert loaded.n_iter_ == model.n_iter_
    assert loaded.phase_ == model.phase_
    np.testing.assert_allclose(
        loaded.predict_proba(X), model.predict_proba(X), atol=0.2
    )


def test_change_of_version_is_told(monkeypatch):
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    data = pickle.dumps(model)
    monkeypatch.setattr(_fitted, "__version__", "99.0")
    with pytest.warns(
        UserWarning, match=r"saved by sklearn_fpe .*this is 99.0"
    ) as told:
        loaded = pickle.loads(data)
    assert told[0].filename == __file__
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    pickle.loads(pickle.dumps(FPEClassifier()))  # nothing was learned: nothing is told


def test_device_that_is_not_there_becomes_the_cpu():
    X, y = problem()
    model = FPEClassifier(**QUICK).fit(X, y)
    data = pickle.dumps(model.set_params(device="cuda:99"))
    with pytest.warns(UserWarning, match="'cuda:99'.* set to device='cpu'"):
        loaded = pickle.loads(data)
    assert loaded.module_.layers[0].weight.device.type == "cpu"
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_device_is_resolved_where_it_is_loaded(monkeypatch):
    X, y = problem()
    data = pickle.dumps(FPEClassifier(**QUICK).fit(X, y))
    monkeypatch.setattr(
        _parameters, "resolve_device", lambda device, work=0: torch.device("meta")
    )
    assert pickle.loads(data).module_.layers[0].weight.device.type == "meta"


@pytest.mark.gpu
def test_model_of_the_gpu_loads_without_one(monkeypatch):
    X, y = problem()
    model = FPEClassifier(**QUICK, device="auto").fit(X, y)
    assert model.module_.layers[0].weight.device.type == "cuda"
    data = pickle.dumps(model)
    assert model.module_.layers[0].weight.device.type == "cuda"
    assert copy.deepcopy(model).module_.layers[0].weight.device.type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = pickle.loads(data)
    assert loaded.module_.layers[0].weight.device.type == "cpu"
    np.testing.assert_allclose(
        loaded.predict_proba(X), model.predict_proba(X), atol=1e-5
    )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda state: state.update(phase="warm-up"), "must be dense"),
        (lambda state: state["recipe"].update(budget=3), "number of parameters"),
        (lambda state: state.update(others=[deeper()]), "same shape and phase"),
    ],
)
def test_pickle_whose_parts_contradict_one_another_is_refused(damage, match):
    state = FPEClassifier(**QUICK).fit(*problem()).__getstate__()
    damage(state["_learned"])
    with pytest.raises(ModelFileError, match=match):
        FPEClassifier().__setstate__(state)


def deeper():
    """What a network of two hidden layers has learned."""
    settings = {**QUICK, "hidden_layer_sizes": (6, 5)}
    return FPEClassifier(**settings).fit(*problem()).learned_.to_state()


def test_clone_is_unfitted_and_equal():
    X, y = problem()
    model = FPEClassifier(**QUICK, feature_groups=list("aabbccdd"), split="groups")
    model.fit(X, y)
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "module_")
    np.testing.assert_array_equal(twin.fit(X, y).predict(X), model.predict(X))


@pytest.mark.parametrize("settings", [{}, {"prune": "structured", "split": "shared"}])
def test_a_network_in_double_precision_is_pickled_as_it_is(settings, tmp_path):
    X, y = load_digits(return_X_y=True)
    model = FPEClassifier((8,), max_iter=3, random_state=0, **settings).fit(X, y)
    model.module_.double()
    loaded = pickle.loads(pickle.dumps(model))
    assert {p.dtype for p in loaded.module_.parameters()} == {torch.float64}
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match="All weights must be float32, got"):
        save(model, tmp_path / "model.safetensors")
