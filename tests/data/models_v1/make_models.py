"""Write the model files of this folder, each beside rows and what it makes of them.

    python tests/data/models_v1/make_models.py

The files were written once, by version 0.1.0, and are never written again: they stand
for the files that users have. ``test_files.py`` checks that each still loads and
predicts what it did. A new format version gets a folder of its own.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer, save

FOLDER = Path(__file__).parent
N_FEATURES = 8
GROUPS = np.arange(N_FEATURES) // 2
OUTPUTS = ("predict", "predict_proba", "decision_function", "transform")
FACTS = ("n_iter_", "budget_", "n_nonzero_", "phase_", "loss_curve_", "classes_")


def a_split(weight, n_children, rng):
    return np.arange(weight.size).reshape(weight.shape) % n_children


def fit(kind, X, y, **parameters):
    defaults = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 6}
    model = kind(**{**defaults, "device": "cpu", "random_state": 0, **parameters})
    return model.fit(X, y)


def partial_fit(X, y, n_calls, **parameters):
    model = FPEClassifier((6,), expansion=2, device="cpu", random_state=0, **parameters)
    for _ in range(n_calls):
        model.partial_fit(X, y)
    return model


def models():
    """Yield name, model and rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, N_FEATURES))
    codes = (X[:, 0] > 0).astype(int) + (X[:, 1] + X[:, 2] > 0)
    real = X @ rng.normal(size=(N_FEATURES, 2)) + 40
    indicator = np.stack([codes > 0, X[:, 3] > 0, X[:, 4] > 0], axis=1).astype(int)
    names = np.array(["ash", "birch", "cédar"])[codes]
    frame = pd.DataFrame(X, columns=[f"column {i} é" for i in range(N_FEATURES)])
    far = X + np.where(np.arange(N_FEATURES) == 2, 1e5, 0)
    groups = {"split": "groups", "feature_groups": GROUPS}
    classifiers = {
        "labels_and_names": (frame, names, {"class_weight": "balanced"}),
        "binary": (X, codes > 0, {"activation": "tanh", "warmup": 2}),
        "multilabel": (X, indicator, {"activation": "logistic", "split": "random"}),
        "dense": (X, codes, {"expansion": 1, "activation": "identity"}),
        "split_shared": (X, codes, {"split": "shared"}),
        "split_contiguous": (X, codes, {"split": "contiguous", "expansion": 4}),
        "split_random": (X, codes, {"split": "random", "expansion": 4}),
        "split_feature": (X, codes, {"split": "feature"}),
        "split_groups": (X, codes, groups),
        "structured": (X, codes, {"prune": "structured", "expansion": 3}),
        "structured_uneven": (
            *(X, codes),
            {"prune": "structured", "expansion": 3, "hidden_layer_sizes": 11},
        ),
        "two_layers": (X, codes, {"hidden_layer_sizes": [8, 5], "expansion": (2, 3)}),
        "far_columns": (far, codes, {"split": "contiguous"}),
        "raw": (X, codes, {"standardize": False, "class_weight": {0: 1.0, 1: 2, 2: 1}}),
        "stopped": (X, codes, {"early_stopping": True, "n_iter_no_change": np.inf}),
    }
    for name, (rows, y, parameters) in classifiers.items():
        yield name, fit(FPEClassifier, rows, y, **parameters), rows
    model = fit(FPEClassifier, X, codes, split=a_split)
    yield "split_callable", model.set_params(split="random"), X
    yield "warming_up", partial_fit(X, codes, 2, warmup=4), X
    yield "partial_fit", partial_fit(X, names, 4, warmup=2), X
    yield "target", fit(FPERegressor, X, real[:, 0], split="shared"), X
    yield "targets", fit(FPERegressor, X, real, early_stopping=True), X
    hidden = np.array([8, 5])
    yield "features", fit(FPETransformer, X, names, hidden_layer_sizes=hidden), X
    yield "real_features", fit(FPETransformer, X, real, task="regression"), X


def describe(model, X):
    """Return five rows, the outputs and the facts that the file must keep."""
    X = X[:5]
    found = {"X": np.asarray(X)}
    for name in OUTPUTS:
        if hasattr(model, name):
            found[name] = getattr(model, name)(X)
    for name in (*FACTS, "validation_scores_", "feature_names_in_"):
        if hasattr(model, name):
            value = np.asarray(getattr(model, name))
            found[name] = value.astype(str) if value.dtype == object else value
    return found


if __name__ == "__main__":
    for name, model, X in models():
        save(model, FOLDER / f"{name}.safetensors")
        np.savez_compressed(FOLDER / f"{name}.npz", **describe(model, X))
