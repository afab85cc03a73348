"""The tasks and methods of :mod:`benchmarks.frontier`, and one measurement."""

import time
import warnings
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

from benchmarks.experiments import _peers
from benchmarks.experiments._tasks import Task
from sklearn_fpe import FPEClassifier
from sklearn_fpe.datasets import make_dnf

FORMULA = {"n_clauses": 8, "clause_size": 4, "n_variables": 64, "density": 0.4}
BOOLEAN_ROWS = 10_000, 5_000
"""Rows to train and to test on; every seed is a formula of its own."""

TASKS = {
    "digits": {
        "hidden": (4,),
        "seeds": 5,
        "tuning_seeds": 3,
        "expansion": 4,
        "fit": {"max_iter": 50},
    },
    "boolean": {
        "hidden": (8,),
        "seeds": 10,
        "tuning_seeds": 3,
        "expansion": 2,
        "fit": {"max_iter": 60, "batch_size": 128},
    },
    "text": {
        "hidden": (4, 8, 16, 32),
        "seeds": 3,
        "tuning_seeds": 1,
        "expansion": 4,
        "fit": {"max_iter": 20, "batch_size": 256},
    },
    "glyphs": {
        "hidden": (4, 8, 16),
        "seeds": 3,
        "tuning_seeds": 1,
        "expansion": 4,
        "fit": {"max_iter": 20, "batch_size": 256},
    },
}

FULL_PROBE, PRUNED_PROBE = "linear probe, full", "linear probe, pruned"
DENSE, DEFAULTS, DEFAULTS_SKIP = "dense", "defaults", "defaults + skip"
NOT_TUNED = (DEFAULTS, DEFAULTS_SKIP)
"""Methods that are the estimator as it is."""

METHODS = {
    FULL_PROBE: {"hidden_layer_sizes": ()},
    PRUNED_PROBE: {"hidden_layer_sizes": (), "prune": "gradual"},
    DENSE: {"expansion": 1},
    "dense, 2x parameters": {"expansion": 1},
    "dense + skip": {"expansion": 1, "prune": "gradual", "skip_connection": True},
    "magnitude, shared": {"prune": "magnitude", "split": "shared"},
    "structured, contiguous": {"prune": "structured", "split": "contiguous"},
    "rewired, contiguous": {"prune": "rewired", "split": "contiguous"},
    "gradual, shared": {"prune": "gradual", "split": "shared"},
    "learned": {"prune": "gradual", "split": "learned"},
    "shared + skip": {"prune": "gradual", "split": "shared", "skip_connection": True},
    "learned + skip": {"prune": "gradual", "split": "learned", "skip_connection": True},
    DEFAULTS: {},
    DEFAULTS_SKIP: {"skip_connection": True},
}
"""Parameters of the estimator that make the methods; peers are networks of PEERS."""

PEERS = {
    "SET": (_peers.static_mask, {"rewire": "SET"}),
    "RigL": (_peers.static_mask, {"rewire": "RigL"}),
    "RigL, whole output": (
        _peers.static_mask,
        {"rewire": "RigL", "whole_output": True},
    ),
    "wide, pruned once": (_peers.train_wide_then_prune, {}),
    "wide, pruned gradually": (_peers.train_wide_then_prune, {"gradual": True}),
    "DropConnect": (_peers.dropconnect, {}),
}
"""Functions and options of the methods that are not the estimator's."""

METHODS |= dict.fromkeys(PEERS)


@lru_cache(maxsize=2)
def load(task, path, seed):
    """Return (X_train, X_test, y_train, y_test) of a task."""
    if task == "boolean":
        n_train, n_test = BOOLEAN_ROWS
        X, y, _ = make_dnf(n_train + n_test, **FORMULA, random_state=seed)
        X = 2.0 * X - 1.0
        return X[:n_train], X[n_train:], y[:n_train], y[n_train:]
    if task == "digits":
        X, y = load_digits(return_X_y=True)
        return train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
    with np.load(path, allow_pickle=False) as data:
        X_train, X_test = (data[f"X_{k}"].astype(np.float32) for k in ("train", "test"))
        return X_train, X_test, data["y_train"], data["y_test"]


@lru_cache(maxsize=2)
def hold_out(task, path, seed):
    """Split the training rows of a seed into rows to train and to choose on."""
    X, _, y, _ = load(task, path, seed)
    return train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)


def parameters(task, method, h, n_inputs, n_classes):
    """Return the parameters of the estimator, but for rate, decay and seed."""
    n_outputs = 1 if n_classes == 2 else n_classes
    own = METHODS[method]
    params = {"hidden_layer_sizes": (2 * h if "2x" in method else h,), **own}
    if method in NOT_TUNED:
        return params
    params |= TASKS[task]["fit"]
    if "hidden_layer_sizes" not in own:
        params = {"expansion": TASKS[task]["expansion"]} | params
    if method == PRUNED_PROBE:
        budget = h * (n_inputs + 1) + n_outputs * (h + 1)
        params["budget"] = min(budget, n_outputs * (n_inputs + 1))
    return params


def measure(job, path):
    """Fit once; return accuracy in percent, log loss, non-zeros and CPU seconds."""
    seed = job["seed"]
    load_rows = hold_out if job["tune"] else load
    X, X_test, y, y_test = load_rows(job["task"], path, seed)
    fit = fit_peer if job["method"] in PEERS else fit_estimator
    start = time.process_time()
    network, predict = fit(job, X, y)
    seconds = time.process_time() - start
    chances = predict(X_test).astype(np.float64)
    chances /= chances.sum(axis=1, keepdims=True)  # in float32 they sum to 1 roughly
    labels = np.unique(y)
    return {
        "accuracy": 100 * accuracy_score(y_test, labels[chances.argmax(1)]),
        "loss": log_loss(y_test, chances, labels=labels),
        "n_nonzero": network.n_nonzero,
        "seconds": seconds,
        "n_rows": len(X),
    }


def fit_estimator(job, X, y):
    """Fit the estimator; return its network and the function of probabilities."""
    params = parameters(
        job["task"], job["method"], job["h"], X.shape[1], len(np.unique(y))
    )
    model = FPEClassifier(
        **params, **job["setting"], random_state=job["seed"], device="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a smaller expansion than was asked for
        model.fit(X, y)
    return model.module_, model.predict_proba


def fit_peer(job, X, y):
    """Train a peer; return its network and the function of probabilities."""
    rows = torch.from_numpy(X.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    task = Task(rows, rows, rows, len(np.unique(y)))
    fit = TASKS[job["task"]]["fit"]
    function, own = PEERS[job["method"]]
    network = function(
        task,
        job["h"],
        TASKS[job["task"]]["expansion"],
        seed=job["seed"],
        lr=job["setting"]["learning_rate_init"],
        weight_decay=job["setting"]["weight_decay"],
        epochs=fit["max_iter"],
        batch_size=fit.get("batch_size", 64),  # as the estimator has on digits
        **own,
    )

    @torch.inference_mode()
    def predict_proba(X):
        outputs = network(torch.from_numpy(X.astype(np.float32)))
        if task.n_outputs == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs.softmax(dim=1).numpy()

    return network, predict_proba
