"""Model files of format version 1 load for ever, and predict what they did."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sklearn_fpe import load, save

FOLDER = Path(__file__).parent / "data" / "models_v1"
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
OUTPUTS = ("predict", "predict_proba", "decision_function", "transform")


def load_any_version(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*saved by sklearn_fpe 0.1.0")
        return load(path)


@pytest.fixture(params=NAMES)
def stored(request):
    """The name of a model, and what was written beside its file."""
    with np.load(FOLDER / f"{request.param}.npz") as arrays:
        return request.param, dict(arrays)


def check(model, expected):
    X = expected["X"]
    if "feature_names_in_" in expected:
        X = pd.DataFrame(X, columns=expected["feature_names_in_"])
    for name in OUTPUTS:
        assert hasattr(model, name) == (name in expected)
    for name in expected.keys() & set(OUTPUTS):
        found = getattr(model, name)(X)
        if found.dtype.kind == "f":
            # Other machines add in another order.
            np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, expected[name])
    for name in expected.keys() - {"X", *OUTPUTS}:
        np.testing.assert_array_equal(getattr(model, name), expected[name])


def test_a_stored_model_predicts_what_it_did(stored):
    name, expected = stored
    check(load_any_version(FOLDER / f"{name}.safetensors"), expected)


def test_a_stored_model_can_be_saved_again(stored, tmp_path):
    name, expected = stored
    model = load_any_version(FOLDER / f"{name}.safetensors")
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    check(again, expected)
    assert str(again.get_params()) == str(model.get_params())


def test_a_stored_model_can_be_trained_further():
    with np.load(FOLDER / "warming_up.npz") as expected:
        X = expected["X"]
    model = load_any_version(FOLDER / "warming_up.safetensors")
    assert model.phase_ == "warm-up"
    for _ in range(3):
        model.partial_fit(X, [0, 1, 2, 0, 1])
    assert (model.phase_, model.n_iter_) == ("fine-tune", 5)
    assert model.n_nonzero_ <= model.budget_


def test_the_stored_models_hold_every_kind_of_array():
    kinds, arrays = set(), set()
    for name in NAMES:
        path = FOLDER / f"{name}.safetensors"
        assert path.stat().st_size < 40_000
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = json.loads(header.pop("__metadata__")["sklearn_fpe"])
        assert document["format_version"] == 1
        layers = document["model"]["layers"]
        kinds |= {layer["kind"] for layer in layers}
        arrays |= {
            f"{layers[int(array.split('.')[1])]['kind']}.{array.split('.')[2]}"
            if array.startswith("layers.")
            else array
            for array in header
        }
    assert kinds == {"dense", "masked", "block"}
    assert arrays == {
        *("dense.weight", "dense.bias", "masked.weight", "masked.bias", "masked.mask"),
        *("block.weight", "block.bias", "block.mask", "block.inputs", "block.outputs"),
        *("parents.0", "parents.1", "center", "scaler.mean", "scaler.scale"),
        *("moments.weight", "moments.mean", "moments.m2", "loss_curve"),
        *("targets.mean", "targets.scale", "targets.moments.weight"),
        *("targets.moments.mean", "targets.moments.m2"),
        *("validation_scores", "best_validation_score"),
    }
