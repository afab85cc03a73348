"""Model files: what is saved comes back, and nothing else is let in."""

import copy
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
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
from sklearn_fpe._persistence import _file

N_ROWS, N_FEATURES = 50, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_FEATURES))
CODES = np.arange(N_ROWS) % 3
REAL = X @ RNG.normal(size=(N_FEATURES, 2)) + 40
INDICATOR = np.stack([CODES > 0, X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
GROUPS = np.arange(N_FEATURES) // 2
FAR = X + np.where(np.arange(N_FEATURES) == 2, 1e5, 0)

EXPANSIONS = [
    *[(split, "magnitude") for split in ("random", "shared", "contiguous")],
    *[(split, "magnitude") for split in ("feature", "groups")],
    *[(split, "structured") for split in ("shared", "contiguous", "feature")],
]


def make(kind=FPEClassifier, **parameters):
    defaults = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 2}
    return kind(**{**defaults, "device": "cpu", "random_state": 0, **parameters})


def round_trip(estimator, folder):
    save(estimator, folder / "model.safetensors")
    return load(folder / "model.safetensors")


def outputs(estimator, X):
    """Everything that an estimator computes of X."""
    names = ("predict", "predict_proba", "decision_function", "transform")
    return [getattr(estimator, n)(X) for n in names if hasattr(estimator, n)]


def check_same(loaded, estimator, X):
    for found, expected in zip(outputs(loaded, X), outputs(estimator, X), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)


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
    assert estimator.module_.center is not None
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, FAR)
    check_same(loaded, estimator, FAR.astype(np.float32))


CASES = {
    "binary": (make(activation="tanh"), CODES > 0),
    "multiclass": (make(split="random", class_weight="balanced"), CODES),
    "multilabel": (make(prune="structured", activation="logistic"), INDICATOR),
    "dense": (make(expansion=1, activation="identity"), CODES),
    "raw": (make(standardize=False, class_weight={0: 1.0, 1: 2, 2: 0.5}), CODES),
    "stopped": (make(early_stopping=True, validation_fraction=0.2), CODES),
    "one target": (make(FPERegressor, prune="structured"), REAL[:, 0]),
    "targets": (make(FPERegressor, early_stopping=True), REAL),
    "features": (make(FPETransformer, hidden_layer_sizes=(8, 5)), CODES),
    "real features": (make(FPETransformer, task="regression"), REAL),
}


@pytest.fixture(scope="module")
def fitted():
    """Fitted estimators of every kind."""
    return {name: copy.deepcopy(e).fit(X, y) for name, (e, y) in CASES.items()}


@pytest.fixture(scope="module")
def packed(fitted, tmp_path_factory):
    """The same as JSON and arrays."""
    path = tmp_path_factory.mktemp("models") / "model"
    result = {}
    for name, estimator in fitted.items():
        save(estimator, path)
        result[name] = _file.read(path)[:2]
    return result


@pytest.mark.parametrize("name", CASES)
def test_everything_that_was_learned_comes_back(name, fitted, tmp_path):
    estimator = fitted[name]
    loaded = round_trip(estimator, tmp_path)
    check_same(loaded, estimator, X)
    # As in a pickle: all but the training that could go on.
    expected = estimator.__getstate__()
    assert vars(loaded).keys() == expected.keys() - {"_fpe_version"}
    assert loaded.get_params() == estimator.get_params()
    for attribute in expected.keys() - {"_fpe_version"}:
        check_equal(getattr(loaded, attribute), expected[attribute], attribute)
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
    estimator._targets.classes = classes
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


def test_memory_does_not_come_back(tmp_path):
    estimator = make(memory=str(tmp_path / "cache")).fit(X, CODES)
    assert round_trip(estimator, tmp_path).memory is None


# --------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------


def test_masked_layers_store_kept_values_and_bits(tmp_path):
    estimator = make(split="random", hidden_layer_sizes=(16,), expansion=4)
    estimator.fit(X, CODES)
    save(estimator, tmp_path / "model")
    _, arrays, _ = _file.read(tmp_path / "model")
    weight = estimator.module_.layers[0].weight
    n_kept = int(estimator.module_.layers[0].mask.sum())
    assert arrays["layers.0.weight"].shape == (n_kept,)
    assert n_kept < 0.5 * weight.numel()
    assert arrays["layers.0.mask"].shape == (-(-weight.numel() // 8),)


def test_the_file_is_safetensors_with_a_format_version(fitted, tmp_path):
    path = tmp_path / "model.safetensors"
    save(fitted["multiclass"], path)
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["sklearn_fpe"])
        assert "layers.0.weight" in file.keys()  # noqa: SIM118
    assert document["format_version"] == _file.FORMAT_VERSION == 1
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


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"split": a_split}, "split cannot be saved: a function is code"),
        ({"skorch_callbacks": [LRScheduler()]}, "callbacks cannot .* are code"),
        ({"random_state": np.random.RandomState(0)}, "random_state cannot be saved"),
        ({"class_weight": {0: 1, 1: 2, (2,): 3}}, "class_weight cannot be saved"),
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
    estimator._targets.classes = np.array([1, 2, 3], dtype="datetime64[D]")
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


# --------------------------------------------------------------------------------------
# Versions and devices
# --------------------------------------------------------------------------------------


def write(path, model, arrays, version="0.1.0"):
    """Write a file whose checksum fits, whatever it says."""
    path.write_bytes(_file.pack(model, arrays, version))
    return path


def test_another_version_warns(fitted, packed, tmp_path):
    path = write(tmp_path / "model", *packed["binary"], version="0.0.1")
    with pytest.warns(UserWarning, match=r"saved by sklearn_fpe 0\.0\.1"):
        loaded = load(path)
    check_same(loaded, fitted["binary"], X)


@pytest.mark.parametrize("version", [0, 2, "1", True, None, [[[]]]])
def test_another_format_is_an_error(version, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(_file, "FORMAT_VERSION", version)
    path = write(tmp_path / "model", *packed["binary"])
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="format_version must be 1"):
        load(path)


def test_a_device_that_is_not_there_becomes_the_cpu(fitted, packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    model["parameters"]["device"] = "cuda:99"
    with pytest.warns(UserWarning, match="Using the CPU"):
        loaded = load(write(tmp_path / "model", model, arrays))
    assert loaded.device == "cuda:99"
    check_same(loaded, fitted["binary"], X)


@pytest.mark.parametrize("device", ["meta", "cuda:1;x", "", 3, None, ["cpu"]])
def test_no_other_devices_are_let_in(device, packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    model["parameters"]["device"] = device
    with pytest.raises(ModelFileError, match="device"):
        load(write(tmp_path / "model", model, arrays))


# --------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------


def test_a_truncated_file_is_an_error(fitted, tmp_path):
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    data = path.read_bytes()
    for length in {*range(40), *range(0, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="truncated or too long"):
        load(path)


def test_a_flipped_bit_in_the_arrays_is_an_error(fitted, tmp_path):
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    data = path.read_bytes()
    for place in range(len(data) - 1, len(data) - 400, -37):
        path.write_bytes(
            data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        )
        with pytest.raises(ModelFileError, match="checksum"):
            load(path)


def test_what_is_no_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match="regular file"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="regular file"):
            load(tmp_path / "pipe")


def raw_file(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated"),
        (b"PK\3\4 a pickle of something", "truncated"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        (raw_file(b"{"), "JSON of the header"),
        (raw_file(b"\xff\xfe"), "JSON of the header"),
        (raw_file(b"[" * 100_000), "JSON of the header"),
        (raw_file(b'{"a": 1, "a": 2}'), "comes twice"),
        (raw_file(b'{"a": NaN}'), "no number of JSON"),
        (raw_file(b'{"a": 1e999}'), "too large"),
        (raw_file(b'{"a": ' + b"9" * 5000 + b"}"), "JSON of the header"),
        (raw_file([]), "no model file"),
        (raw_file({}), "no model file"),
        (raw_file({"__metadata__": []}), "no model file"),
        (raw_file({"__metadata__": {"sklearn_fpe": 1}}), "no model file"),
        (raw_file({"__metadata__": {"sklearn_fpe": "[["}}), "JSON of the metadata"),
        (raw_file({"__metadata__": {"sklearn_fpe": "[]"}}), "format_version"),
        (
            raw_file({"__metadata__": {"sklearn_fpe": '{"format_version": 1}'}}),
            "must have the fields",
        ),
    ],
)
def test_another_file_is_an_error(content, match, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match):
        load(path)


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", [2**62, 4]),
        ("shape", [10**6] * 10**4),
        ("shape", [-1, 4]),
        ("shape", [True]),
        ("shape", None),
        ("shape", "12"),
        ("dtype", "F16"),
        ("dtype", ["F32"]),
        ("data_offsets", [0, 2**62]),
        ("data_offsets", [-4, 8]),
        ("data_offsets", None),
    ],
)
def test_tables_that_lie_are_an_error(name, value, packed, tmp_path):
    header, rest = header_of(_file.pack(*packed["multiclass"], "0.1.0"))
    header["layers.0.bias"][name] = value
    path = tmp_path / "model"
    path.write_bytes(raw_file(header, rest))
    with pytest.raises(ModelFileError):
        load(path)


def test_no_claim_allocates_memory(packed, tmp_path):
    """Large claims in a small file and a large file of holes cost next to nothing."""
    path = tmp_path / "model"
    model, arrays = packed["multiclass"]
    claims = []
    for place, value in [
        (("layers", 0, "shape"), [2**30, 2**30]),
        (("expansion",), [2**31]),
        (
            ("targets", "classes"),
            {"dtype": "str9000000", "values": [str(i) for i in range(100, 999)]},
        ),
    ]:
        claims.append(_file.pack(with_value(model, place, value), arrays, "0.1.0"))
    header, rest = header_of(claims[0])
    header["layers.0.bias"] |= {"shape": [2**38], "data_offsets": [0, 2**40]}
    claims.append(raw_file(header, rest))
    load(write(path, model, arrays))  # what is imported late is imported
    tracemalloc.start()
    for content in claims:
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            load(path)
    with path.open("wb") as file:
        file.write((2**35).to_bytes(8, "little"))
        file.truncate(2**36)
    with pytest.raises(ModelFileError, match="header must have at most"):
        load(path)
    with path.open("wb") as file:
        file.write(raw_file({"__metadata__": {}}))
        file.truncate(2**36)
    with pytest.raises(ModelFileError):
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_nothing_is_run(fitted, tmp_path):
    """No import, no compilation, no unpickling, no process, no file but the model."""
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    code = f"""
import sys
import sklearn_fpe._persistence as p
path = {str(path)!r}
p.load(path)
seen = []
def hook(event, args):
    family = event.split(".")[0]
    if family in ("exec", "compile", "import", "pickle", "os", "subprocess", "marshal",
                  "socket", "shutil", "ctypes", "code") or (
        event == "open" and args[0] != path
    ):
        seen.append((event, str(args)[:80]))
sys.addaudithook(hook)
p.load(path)
seen_good, seen[:] = list(seen), []
data = bytearray(open(path, "rb").read())
data[-1] ^= 1
open(path, "wb").write(data)
try:
    p.load(path)
except p.ModelFileError:
    print("refused", seen_good, seen)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout == "refused [] []\n", result.stdout + result.stderr


# --------------------------------------------------------------------------------------
# Sound checksum, unsound model
# --------------------------------------------------------------------------------------


def with_value(model, place, value):
    """Return a copy of JSON with another value at a place."""
    model = copy.deepcopy(model)
    inner = model
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return model


@pytest.mark.parametrize(
    ("case", "place", "value", "match"),
    [
        ("binary", ["class"], "Exception", "class must be one of"),
        ("binary", ["class"], "FPERegressor", "parameters must be among"),
        ("binary", ["parameters", "memory"], "/tmp/x", "parameters must be among"),
        ("binary", ["parameters", "skorch_callbacks"], [], "must be among"),
        ("binary", ["parameters", "__class__"], 1, "parameters must be among"),
        ("binary", ["parameters", "max_iter"], -1, "max_iter"),
        ("binary", ["parameters", "max_iter"], 2**70, "max_iter must be an integer"),
        ("binary", ["parameters", "split"], "os.system", "split"),
        ("binary", ["parameters", "tol"], {"float": "nan"}, "tol must be one of"),
        ("binary", ["parameters", "tol"], {"call": "x"}, "must have the fields dict"),
        ("binary", ["parameters", "expansion"], [[[[[[1]]]]]], "nested deeper"),
        ("binary", ["made_with", "activation"], "softmax", "activation"),
        ("binary", ["made_with", "hidden_layer_sizes"], {"tuple": [0]}, "hidden_layer"),
        ("binary", ["made_with", "hidden_layer_sizes"], {"tuple": [6, 6]}, "expansion"),
        ("binary", ["made_with", "hidden_layer_sizes"], {"tuple": [2]}, r"\[0, 2\)"),
        ("binary", ["expansion"], [1], "more than 1 times"),
        ("binary", ["expansion"], [9], "at most the inputs"),
        ("binary", ["budget"], 1, "number of parameters"),
        ("binary", ["phase"], "done", "phase must be one of"),
        ("binary", ["phase"], "warm-up", "must be dense"),
        ("binary", ["n_iter"], 3, "n_iter"),
        ("binary", ["n_iter"], True, "n_iter"),
        ("binary", ["seeds"], {}, "seeds must have the fields"),
        ("binary", ["seeds", "init"], 2**32, "seed init"),
        ("binary", ["feature_names"], ["a"], "feature_names must be a list of 8"),
        ("binary", ["feature_names"], [1] * 8, "feature_names must be texts"),
        ("binary", ["layers"], [], "layers must be a list of 2"),
        ("binary", ["layers", 0, "kind"], "conv", "kind of layers.0"),
        ("binary", ["layers", 0, "kind"], "masked", "shape of layers.0"),
        ("binary", ["layers", 0, "shape"], [2, 4, 7], "layers.0"),
        ("binary", ["layers", 0, "shape"], [0, 4, 6], "shape of layers.0"),
        ("dense", ["layers", 0, "shape"], [6, 7], "layers.0 must have 8 inputs"),
        ("dense", ["layers", 1, "shape"], [4, 6], "layers.1.bias"),
        ("binary", ["targets"], {"one_dimensional": True}, "must have the fields kind"),
        ("features", ["made_with", "task"], "regression", "fields one_dimensional"),
        ("multilabel", ["targets", "classes", "values"], [0, 1, 3], "of a multilabel"),
        ("binary", ["targets", "kind"], "multiclass", "classes of a multiclass"),
        ("binary", ["targets", "classes", "dtype"], "int64", "numbers of type int64"),
        ("binary", ["targets", "classes", "dtype"], "V9", "type of The classes"),
        (
            "binary",
            ["targets", "classes", "dtype"],
            "str999999999999",
            "must hold texts",
        ),
        ("binary", ["targets", "classes", "values"], [True, False], "increasing order"),
        ("binary", ["targets", "classes", "values"], [True, True], "increasing order"),
        (
            "binary",
            ["targets", "classes"],
            {"dtype": "object", "values": ["a", 1]},
            "increasing order",
        ),
        (
            "binary",
            ["targets", "classes"],
            {"dtype": "uint8", "values": [0, 256]},
            "fit the type uint8",
        ),
        (
            "binary",
            ["targets", "classes"],
            {"dtype": "float16", "values": [0.0, 1e30]},
            "fit the type float16",
        ),
        ("raw", ["made_with", "class_weight"], {"dict": [[0, "x"]]}, "class_weight"),
        ("raw", ["made_with", "class_weight"], {"dict": [[0]]}, "class_weight"),
        ("one target", ["targets", "one_dimensional"], 1, "one_dimensional"),
        ("targets", ["targets", "one_dimensional"], True, "one_dimensional"),
        ("targets", ["targets", "extra"], True, "targets must have the fields"),
    ],
)
def test_validation_finds_what_json_gets_wrong(
    case, place, value, match, packed, tmp_path
):
    model, arrays = packed[case]
    path = write(tmp_path / "model", with_value(model, place, value), arrays)
    with pytest.raises(ModelFileError, match=match):
        load(path)


def edited(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("case", "name", "edit", "match"),
    [
        ("dense", "layers.0.weight", lambda a: edited(a, 0, np.nan), "finite"),
        ("dense", "layers.0.weight", lambda a: edited(a, 0, 3e38), "too large"),
        ("dense", "layers.1.bias", lambda a: edited(a, 0, np.inf), "finite"),
        ("dense", "layers.0.weight", lambda a: a.astype(float), "must be float32"),
        ("dense", "layers.0.weight", lambda a: a.ravel(), "of shape"),
        ("dense", "parents.0", lambda a: edited(a, 0, -1), r"in \[0, 6\)"),
        ("dense", "parents.0", lambda a: edited(a, 0, 6), r"in \[0, 6\)"),
        ("dense", "parents.0", lambda a: edited(a, 0, 5), "no parent more"),
        ("multiclass", "layers.0.mask", lambda a: a ^ 1, "layers.0.weight"),
        ("multiclass", "layers.0.mask", lambda a: a[:-1], "layers.0.mask"),
        ("multiclass", "layers.0.weight", lambda a: a[:-1], "layers.0.weight"),
        ("binary", "layers.0.inputs", lambda a: edited(a, (0, 0), 8), r"in \[0, 8\)"),
        ("binary", "layers.0.inputs", lambda a: a * 0, "name no input twice"),
        ("one target", "scaler.scale", lambda a: edited(a, 0, 0), "above zero"),
        ("one target", "scaler.scale", lambda a: edited(a, 0, 5e-324), "above zero"),
        ("one target", "scaler.mean", lambda a: a[:-1], "scaler.mean"),
        ("one target", "scaler.mean", lambda a: a * 0 + 1e300, "too large"),
        ("one target", "targets.scale", lambda a: -a, "above zero"),
        ("one target", "targets.scale", lambda a: a * 0 + 1e300, "too large"),
        ("one target", "moments.m2", lambda a: -a - 1, "negative"),
        ("one target", "moments.weight", lambda a: a * 0, "above zero"),
        ("one target", "moments.weight", lambda a: None, "moments"),
        ("one target", "loss_curve", lambda a: a * np.nan, "finite"),
        ("one target", "loss_curve", lambda a: None, "missing"),
        ("one target", "spare", lambda a: np.zeros(3), "of no use"),
        ("one target", "center", lambda a: np.zeros(3, np.float32), "center"),
    ],
)
def test_validation_finds_what_arrays_get_wrong(
    case, name, edit, match, packed, tmp_path
):
    model, arrays = packed[case]
    arrays = dict(arrays)
    found = edit(arrays.pop(name, None))
    if found is not None:
        arrays[name] = np.asarray(found)
    with pytest.raises(ModelFileError, match=match):
        load(write(tmp_path / "model", model, arrays))


def test_outputs_that_a_layer_has_not_are_found(tmp_path):
    estimator = make(prune="structured", hidden_layer_sizes=(11,), expansion=3)
    save(estimator.fit(X, CODES), tmp_path / "model")
    model, arrays, _ = _file.read(tmp_path / "model")
    outputs = arrays["layers.0.outputs"]
    for wrong, match in [
        (outputs[::-1], "must increase"),
        (outputs[:0], "must increase"),
        (outputs[1:], "keep nothing"),
        (outputs * 0 + 99, r"in \[0, "),
    ]:
        path = write(tmp_path / "model", model, arrays | {"layers.0.outputs": wrong})
        with pytest.raises(ModelFileError, match=match):
            load(path)


def test_a_bit_too_many_is_found(tmp_path):
    estimator = make(split="random", hidden_layer_sizes=(6,)).fit(X[:, :7], CODES)
    save(estimator, tmp_path / "model")
    model, arrays, _ = _file.read(tmp_path / "model")
    n_bits = estimator.module_.layers[0].mask.numel()
    assert n_bits % 8, "the last byte of the mask has room"
    mask = arrays["layers.0.mask"].copy()
    mask[-1] |= 1
    with pytest.raises(ModelFileError, match="end in zero bits"):
        load(write(tmp_path / "model", model, arrays | {"layers.0.mask": mask}))


def test_a_parameter_younger_than_the_file_has_its_default(packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    del model["parameters"]["precision"]
    loaded = load(write(tmp_path / "model", model, arrays))
    assert loaded.precision == FPEClassifier().precision


# --------------------------------------------------------------------------------------
# Fuzzing
# --------------------------------------------------------------------------------------

HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**63, 10**30, 0.5, -1e300, 1e38),
    *("", "x", "\0", "../../x", "__import__('os')", "é" * 300, [], {}, [[]], [0] * 99),
    *({"tuple": []}, {"dict": [[1, 2]]}, {"float": "inf"}, {"array": {}}),
    {"array": {"dtype": "str4", "values": ["a", "b"]}},
]
SPECIAL = [np.nan, np.inf, -np.inf, 0, -1, 1, 1e30, -3e38, 1e-45, 255]


def places(value, place=()):
    """All places in JSON."""
    if place:
        yield place
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*place, key))


def mutate_bytes(rng, data, other):
    """Flip, cut, splice, repeat or overwrite bytes."""
    data = bytearray(data)
    length = 8 + int.from_bytes(data[:8], "little")
    kind = rng.integers(6)
    # Half of all damage goes to the header.
    end = length if rng.random() < 0.5 else len(data)
    a, b = np.sort(rng.integers(0, end, 2))
    if kind == 0:
        for place in rng.integers(0, end, rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:
        data[a:b] = other[a : a + rng.integers(1, len(other))]
    elif kind == 3:
        del data[a:b]
    elif kind == 4:
        data[:8] = int(rng.integers(0, 2**62) >> rng.integers(62)).to_bytes(8, "little")
    else:
        data[a : a + 4] = rng.bytes(rng.integers(1, 8))
    return bytes(data)


def mutate_json(rng, model, other):
    """Replace, drop, repeat or transplant parts of the JSON."""
    model = copy.deepcopy(model)
    for _ in range(rng.integers(1, 3)):
        found = list(places(model))
        place = found[rng.integers(len(found))]
        *inner, last = place
        parent = model
        for key in inner:
            parent = parent[key]
        kind = rng.integers(6)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif kind == 2 and isinstance(parent[last], int):
            parent[last] += int(rng.integers(-3, 4))
        elif kind == 3:
            theirs = list(places(other))
            value = other
            for key in theirs[rng.integers(len(theirs))]:
                value = value[key]
            parent[last] = copy.deepcopy(value)
        else:
            parent[last] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
        if not isinstance(model, dict) or not model:
            break
    return model


def mutate_arrays(rng, arrays, other):
    """Change values, shapes and types; drop, add and exchange arrays."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    name = list(arrays)[rng.integers(len(arrays))]
    array = arrays[name]
    kind = rng.integers(8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[f"{name}x"] = array
    elif kind == 2:
        arrays[name] = array.astype(_any(rng, list(_file.DTYPES.values())))
    elif kind == 3:
        arrays[name] = _any(
            rng,
            [array.ravel(), array[None], array[:-1] if array.ndim else array, array.T],
        )
    elif kind == 4:
        arrays[name] = other.get(name, array)
    elif kind == 5 and array.size:
        raw = bytearray(array.tobytes())
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        arrays[name] = np.frombuffer(raw, array.dtype).reshape(array.shape)
    elif array.size:
        flat = array.reshape(-1)
        value = np.array(SPECIAL[rng.integers(len(SPECIAL))])
        flat[rng.integers(array.size)] = value.astype(array.dtype)
    return arrays


def _any(rng, options):
    return options[rng.integers(len(options))]


def check_sound(estimator):
    """Check that what was loaded predicts finite numbers of the right shape."""
    n_features = estimator.n_features_in_
    names = getattr(estimator, "feature_names_in_", None)
    for rows in (X, X[:1].astype(np.float32)):
        given = np.resize(rows, (len(rows), n_features))
        if names is not None:
            given = pd.DataFrame(given, columns=names)
        for output in outputs(estimator, given):
            assert len(output) == len(rows)
            if output.dtype.kind == "f":
                assert np.isfinite(output).all()
        if isinstance(estimator, FPETransformer):
            assert estimator.transform(given).shape[1] == estimator._n_features_out
        elif isinstance(estimator, FPEClassifier):
            assert estimator.predict_proba(given).shape[1] == len(estimator.classes_)
            known = np.isin(estimator.predict(given), estimator.classes_)
            assert known.all() or estimator._targets.kind == "multilabel"
    assert estimator.n_nonzero_ >= 1
    assert all(np.isfinite(c.data).all() for c in estimator.coefs_)


def fuzz(packed, path, seed, n):
    """Load `n` mutated files; return how many were let in."""
    rng = np.random.default_rng(seed)
    names = list(packed)
    n_sound = 0
    for i in range(n):
        (model, arrays), (other, other_arrays) = (
            packed[_any(rng, names)],
            packed[_any(rng, names)],
        )
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if i % 3 == 0:
                data = _file.pack(model, arrays, "0.1.0")
                data = mutate_bytes(rng, data, _file.pack(other, other_arrays, "1"))
            elif i % 3 == 1:
                data = _file.pack(mutate_json(rng, model, other), arrays, "0.1.0")
            else:
                arrays = mutate_arrays(rng, arrays, other_arrays)
                data = _file.pack(model, arrays, "0.1.0")
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*(Using the CPU|saved by)")
                loaded = load(path)
        except ModelFileError:
            continue
        try:
            check_sound(loaded)
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {i}: {error!r}") from error
        n_sound += 1
    return n_sound


N_FUZZ = int(os.environ.get("FPE_FUZZ_FILES", "300"))


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_refused_or_sound(seed, packed, tmp_path):
    n_sound = fuzz(packed, tmp_path / "model", seed, N_FUZZ)
    # Both happen, or the mutations are none: a changed bias is still a bias.
    assert 0.02 * N_FUZZ < n_sound < 0.6 * N_FUZZ


def test_a_file_that_shrinks_while_it_is_read_is_an_error(packed, tmp_path):
    class Shrinking:
        def __init__(self, data):
            self.data, self.place = data, 0

        def read(self, n):
            part = self.data[self.place : self.place + n]
            self.place += n
            return part

    data = _file.pack(*packed["binary"], "0.1.0")
    with pytest.raises(ModelFileError, match="shorter while it was read"):
        _file._read(Shrinking(data[:-5]), len(data))


def test_a_path_may_be_text(fitted, tmp_path):
    path = str(tmp_path / "model.safetensors")
    save(fitted["binary"], path)
    assert Path(path).exists()
    check_same(load(path), fitted["binary"], X)
