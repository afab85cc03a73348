"""Model files: what is saved comes back."""

import copy
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from model_files import (
    CASES,
    CODES,
    N_FEATURES,
    REAL,
    X,
    check_same,
    described_models,
    fitted_models,
    make,
    unpack,
    write,
)
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import LRScheduler

from sklearn_fpe import (
    FPEClassifier,
    FPERegressor,
    FPETransformer,
    ModelFileError,
    load,
    save,
)
from sklearn_fpe._engine._pruning import Gradual
from sklearn_fpe.nn import Activation, SplitRule
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

GROUPS = np.arange(N_FEATURES) // 2
FAR = X + np.where(np.arange(N_FEATURES) == 2, 1e5, 0)

EXPANSIONS = [
    *[(split, "magnitude") for split in ("random", "shared", "contiguous")],
    *[(split, "magnitude") for split in ("feature", "groups")],
    *[(split, "structured") for split in ("shared", "contiguous", "feature")],
    *[(split, "gradual") for split in ("random", "shared", "learned")],
]


@pytest.fixture
def fitted():
    return fitted_models()


@pytest.fixture
def packed():
    return described_models()


def round_trip(estimator, folder):
    save(estimator, folder / "model.safetensors")
    return load(folder / "model.safetensors")


def check_equal(found, expected, name):
    """Check that two things are the same in all their parts."""
    assert type(found) is type(expected), name
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=name)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            check_equal(found[key], value, f"{name}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            check_equal(a, b, f"{name}[{i}]")
    elif hasattr(expected, "__dict__"):
        check_equal(vars(found), vars(expected), name)
    else:
        assert found == expected, name


# --------------------------------------------------------------------------------------
# Round trips
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(6,), (8, 5)])
@pytest.mark.parametrize(("split", "prune"), EXPANSIONS)
def test_predictions_are_the_same_bits(split, prune, hidden, tmp_path):
    estimator = make(
        hidden_layer_sizes=hidden, split=split, prune=prune, feature_groups=GROUPS
    ).fit(FAR, CODES)
    assert estimator.module_.input_mean is not None
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, FAR)
    check_same(loaded, estimator, FAR.astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_everything_that_was_learned_comes_back(name, fitted, tmp_path):
    estimator = fitted[name]
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, X)
    # As in a pickle: all but the training that could go on.
    check_equal(loaded.__getstate__(), estimator.__getstate__(), "state")
    for found, made in zip(loaded.coefs_, estimator.coefs_, strict=True):
        np.testing.assert_array_equal(found.toarray(), made.toarray())
        assert found.nnz == made.nnz
    check_equal(loaded.intercepts_, estimator.intercepts_, "intercepts_")
    assert not loaded.module_.training
    assert all(p.requires_grad for p in loaded.module_.parameters())


@pytest.mark.parametrize("n_calls", [1, 2, 3])
@pytest.mark.parametrize("kind", [FPEClassifier, FPERegressor])
def test_partial_fit_goes_on_as_after_a_pickle(kind, n_calls, tmp_path):
    estimator = make(kind, warmup=2, split="shared")
    y = CODES if kind is FPEClassifier else REAL
    for _ in range(n_calls):
        estimator.partial_fit(X, y)
    assert estimator.phase_ == ("fine-tune" if n_calls == 3 else "warm-up")
    loaded = round_trip(estimator, tmp_path)
    unpickled = pickle.loads(pickle.dumps(estimator))
    for _ in range(3):
        loaded.partial_fit(X[::2] + 1, y[::2])
        unpickled.partial_fit(X[::2] + 1, y[::2])
        check_same(loaded, unpickled, X)
    assert (loaded.phase_, loaded.n_iter_) == (unpickled.phase_, unpickled.n_iter_)
    assert loaded.loss_curve_ == unpickled.loss_curve_


def test_a_warm_start_goes_on_as_after_a_pickle(tmp_path):
    estimator = make(warm_start=True, split="random").fit(X, CODES)
    loaded = round_trip(estimator, tmp_path)
    unpickled = pickle.loads(pickle.dumps(estimator))
    check_same(loaded.fit(X, CODES), unpickled.fit(X, CODES), X)


@pytest.mark.parametrize(
    "classes",
    [
        np.array([-5, 0, 2**60]),
        np.array([1, 250, 255], dtype=np.uint8),
        np.array([0, 2**64 - 1], dtype=np.uint64),
        np.array([False, True]),
        np.array([-1.0, 0.0, 2.0], dtype=np.float32),
        np.array([0.1, 1 / 3]),
        np.array(["", "x" * 9, "ü\ud800"], dtype="U12"),
        np.array(["no", "yes"], dtype=object),
        np.array([3, 5, 8], dtype=object),
    ],
    ids=lambda classes: f"{classes.dtype}-{len(classes)}",
)
def test_labels_of_any_type_come_back(classes, tmp_path):
    estimator = make().fit(X, CODES % len(classes))
    # Set afterwards, since fit takes only some of them.
    estimator.learned_.targets.classes = classes
    loaded = round_trip(estimator, tmp_path)
    np.testing.assert_array_equal(loaded.classes_, classes, strict=True)
    assert [type(c) for c in loaded.classes_] == [type(c) for c in classes]
    check_same(loaded, estimator, X)


def test_feature_names_come_back(tmp_path):
    frame = pd.DataFrame(X, columns=[f"column {i} é" for i in range(N_FEATURES)])
    estimator = make(FPETransformer).fit(frame, CODES)
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, frame)
    np.testing.assert_array_equal(
        loaded.feature_names_in_, estimator.feature_names_in_, strict=True
    )
    out = loaded.get_feature_names_out()
    np.testing.assert_array_equal(out, estimator.get_feature_names_out())
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame.rename(columns=str.upper))


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden_layer_sizes": 6, "expansion": np.int64(2), "verbose": 0},
        {"hidden_layer_sizes": [8, 5], "expansion": (2, 1), "tol": np.float32(0.5)},
        {"hidden_layer_sizes": np.array([8, 5]), "expansion": np.array([2, 2])},
        {"split": "groups", "feature_groups": [f"group {g}" for g in GROUPS]},
        {"split": "groups", "feature_groups": np.array(list("aabbccdd"))},
        {"split": "groups", "feature_groups": GROUPS.astype(np.int16)},
        {"class_weight": {0: 1, 1: 0.5, 2: np.float64(3)}, "random_state": None},
        {"early_stopping": True, "n_iter_no_change": np.inf},
        {"device": torch.device("cpu"), "budget": 60, "warmup": 1},
        {"hidden_layer_sizes": ()},
        {"hidden_layer_sizes": (), "skip_connection": True, "label_smoothing": 0.1},
        {"split": "learned", "prune": Gradual(0.0, 0.5, interval=3, skip_factor=4)},
        {"prune": Gradual(np.float64(0), np.float32(0.5), interval=np.int64(3))},
        {"activation": "gelu", "skip_connection": True, "prune": "gradual"},
        {"early_stopping": True, "scoring": "neg_log_loss", "refit": True},
    ],
)
def test_parameters_come_back(parameters, tmp_path):
    estimator = make(**parameters).fit(X, CODES)
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, X)
    for name, value in estimator.get_params().items():
        found = getattr(loaded, name)
        if isinstance(value, torch.device):
            assert found == str(value)
        else:
            np.testing.assert_array_equal(found, value)
            if not isinstance(value, np.generic):
                assert type(found) is type(value)


@pytest.mark.parametrize(
    "class_weight",
    [[{0: 1, 1: 2.5}] * 3, {0: {1: 4}, 2: {0: 1, 1: 3}}, {1: {}}],
)
def test_class_weights_of_several_labels_come_back(class_weight, tmp_path):
    indicator = np.stack([k == CODES for k in range(3)], axis=1).astype(int)
    estimator = make(class_weight=class_weight, warmup=1).partial_fit(X, indicator)
    loaded = round_trip(estimator, tmp_path)
    assert loaded.class_weight == class_weight
    unpickled = pickle.loads(pickle.dumps(estimator))
    for model in (loaded, unpickled):
        model.set_params(class_weight=class_weight).fit(X, indicator)
    check_same(loaded, unpickled, X)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"prune": PRUNES["magnitude"], "split": SPLITS["random"]}, True),
        ({"activation": ACTIVATIONS["silu"], "prune": Gradual()}, True),
        ({"prune": Gradual(0.2)}, False),
    ],
)
def test_registered_rules_are_saved_by_name(parameters, names, tmp_path):
    estimator = make(**parameters).fit(X, CODES)
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, X)
    for name, rule in parameters.items():
        assert getattr(loaded, name) == (rule.name if names else rule)
    recipe, found = estimator.learned_.recipe, loaded.learned_.recipe
    for name in ("prune", "split", "activation"):
        assert getattr(found, name) == getattr(recipe, name)


@pytest.mark.parametrize("kind", [str, Path])
def test_memory_does_not_come_back(kind, tmp_path):
    estimator = make(memory=kind(tmp_path / "cache")).fit(X, CODES)
    assert round_trip(estimator, tmp_path).memory is None


# --------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------


def test_masked_layers_store_kept_values_and_bits(tmp_path):
    estimator = make(split="random", hidden_layer_sizes=(16,), expansion=4)
    estimator.fit(X, CODES)
    save(estimator, tmp_path / "model")
    _, arrays = unpack((tmp_path / "model").read_bytes())
    weight = estimator.module_.layers[0].weight
    n_kept = int(estimator.module_.layers[0].mask.sum())
    assert arrays["network.layers.0.weight"].shape == (n_kept,)
    assert n_kept < 0.5 * weight.numel()
    assert arrays["network.layers.0.mask"].shape == (-(-weight.numel() // 8),)


def test_the_file_is_safetensors_with_a_format_version(fitted, tmp_path):
    path = tmp_path / "model.safetensors"
    save(fitted["multiclass"], path)
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["sklearn_fpe"])
        assert "network.layers.0.weight" in file.keys()  # noqa: SIM118
    assert document["format_version"] == 2
    assert document["model"]["class"] == "FPEClassifier"


def test_the_same_model_is_the_same_file(fitted, tmp_path):
    for name in ("a", "b"):
        save(fitted["multiclass"], tmp_path / name)
    save(load(tmp_path / "a"), tmp_path / "c")
    contents = {(tmp_path / name).read_bytes() for name in "abc"}
    assert len(contents) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def a_split(weight, n_children, rng):
    return np.arange(weight.size).reshape(weight.shape) % n_children


class MyPrune(type(PRUNES["magnitude"])):
    pass


SOFTPLUS = Activation("softplus", torch.nn.Softplus, torch.nn.functional.softplus)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"split": a_split}, "split cannot be saved: a function is code"),
        ({"skorch_callbacks": [LRScheduler()]}, "callbacks cannot .* are code"),
        ({"random_state": np.random.RandomState(0)}, "random_state cannot be saved"),
        ({"class_weight": {0: 1, 1: 2, (2,): 3}}, "class_weight cannot be saved"),
        ({"scoring": a_split}, "scoring cannot be saved: a function is code"),
        ({"split": SplitRule("mine", a_split)}, "split cannot be saved"),
        ({"split": SplitRule("shared", a_split)}, "split cannot be saved"),
        ({"prune": MyPrune()}, "prune cannot be saved"),
        ({"activation": SOFTPLUS}, "activation cannot be saved"),
    ],
)
def test_code_in_parameters_is_an_error(parameters, match, tmp_path):
    estimator = make().fit(X, CODES).set_params(**parameters)
    path = tmp_path / "model"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=match):
        save(estimator, path)
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_a_function_split_can_be_saved(tmp_path):
    estimator = make(split=a_split).fit(X, CODES).set_params(split="random")
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, X)
    loaded.partial_fit(X, CODES)


def test_an_activation_of_the_users_own_cannot_be_replaced(tmp_path):
    estimator = make(activation=SOFTPLUS).fit(X, CODES).set_params(activation="relu")
    with pytest.raises(ValueError, match="activation cannot be saved"):
        save(estimator, tmp_path / "model")


def test_other_objects_are_an_error(tmp_path):
    class Heir(FPEClassifier):
        pass

    pipeline = make_pipeline(StandardScaler(), make()).fit(X, CODES)
    for estimator in (pipeline, Heir().fit(X, CODES), None):
        with pytest.raises(TypeError, match="estimator must be one of FPEClassifier"):
            save(estimator, tmp_path / "model")
    with pytest.raises(NotFittedError):
        save(make(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_labels_without_a_form_are_an_error(tmp_path):
    estimator = make().fit(X, CODES)
    estimator.learned_.targets.classes = np.array([1, 2, 3], dtype="datetime64[D]")
    with pytest.raises(ValueError, match="class labels cannot be saved"):
        save(estimator, tmp_path / "model")


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    estimator = make().fit(X, CODES)
    with torch.no_grad():
        estimator.module_.layers[0].bias[0] = np.nan
    with pytest.raises(ValueError, match=r"cannot be saved: .* finite"):
        save(estimator, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_extra_is_named(fitted, tmp_path, monkeypatch):
    save(fitted["binary"], tmp_path / "model")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for function in (lambda p: save(fitted["binary"], p), load):
        with pytest.raises(ImportError, match=r"sklearn-fpe\[safetensors\]"):
            function(tmp_path / "model")


def test_a_path_may_be_text(fitted, tmp_path):
    path = str(tmp_path / "model.safetensors")
    save(fitted["binary"], path)
    assert Path(path).exists()
    check_same(load(path), fitted["binary"], X)


# --------------------------------------------------------------------------------------
# Versions and devices
# --------------------------------------------------------------------------------------


def test_another_version_warns(fitted, packed, tmp_path):
    path = write(tmp_path / "model", *packed["binary"], version="0.0.1")
    with pytest.warns(UserWarning, match=r"saved by sklearn_fpe 0\.0\.1"):
        loaded = load(path)
    check_same(loaded, fitted["binary"], X)


@pytest.mark.parametrize("version", [0, 3, "1", True, None, [[[]]]])
def test_another_format_is_an_error(version, packed, tmp_path):
    path = write(tmp_path / "model", *packed["binary"], format_version=version)
    with pytest.raises(ModelFileError, match=r"format_version must be in \[1, 2\]"):
        load(path)


def test_a_device_that_is_not_there_becomes_the_cpu(fitted, packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    model["parameters"]["device"] = "cuda:99"
    with pytest.warns(UserWarning, match="set to device='cpu'"):
        loaded = load(write(tmp_path / "model", model, arrays))
    assert loaded.device == "cpu"
    check_same(loaded, fitted["binary"], X)


@pytest.mark.parametrize("device", ["meta", "cuda:1;x", "", 3, None, ["cpu"]])
def test_no_other_devices_are_let_in(device, packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    model["parameters"]["device"] = device
    with pytest.raises(ModelFileError, match="device"):
        load(write(tmp_path / "model", model, arrays))
