"""Accuracy, size and time of models that one could use instead.

    python -m benchmarks.compared [--text PATH.npz] [--quick] [--json PATH]

Every method is tuned over four settings on a fifth of the training rows, held out, and
then trained on all training rows with every seed; RealMLP and the defaults of this
library have nothing to tune. Time is the CPU time of one fit at the chosen setting, on
one thread. Methods whose package is not installed are left out.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits

from benchmarks._frontier import load
from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier

TASKS = {
    "digits": {"parents": 4, "seeds": 5, "epochs": 50},
    "text": {"parents": 8, "seeds": 3, "epochs": 20},
    "boolean": {"parents": 8, "seeds": 4, "epochs": 50},
}
"""Parents of the expanded networks, neurons of the dense ones; seeds; epochs."""

RATES, DECAYS = (1e-2, 5e-2), (1e-2, 0.2)
"""Learning rates and weight decays of this library and of skorch."""


def grid(**values):
    """Return every combination of the values, as dicts."""
    return [
        dict(zip(values, of, strict=True)) for of in itertools.product(*values.values())
    ]


OURS = grid(learning_rate_init=RATES, weight_decay=DECAYS)


def logistic_regression(size, seed, **setting):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, **setting))


def mlp_classifier(size, seed, factor=1, **setting):
    model = MLPClassifier(
        (factor * size["parents"],),
        max_iter=size["epochs"],
        n_iter_no_change=10**6,
        random_state=seed,
        **setting,
    )
    return make_pipeline(StandardScaler(), model)


def skorch_net(size, seed, **setting):
    torch.manual_seed(seed)
    n_hidden = size["parents"]
    module = torch.nn.Sequential(
        torch.nn.Linear(size["inputs"], n_hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(n_hidden, size["classes"]),
    )
    model = NeuralNetClassifier(
        module,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=size["epochs"],
        batch_size=128,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        **setting,
    )
    return make_pipeline(StandardScaler(), model)


def real_mlp(size, seed):
    from pytabkit import RealMLP_TD_Classifier

    return RealMLP_TD_Classifier(
        device="cpu", random_state=seed, n_threads=1, verbosity=0
    )


def ours(size, seed, skip=False, dense=0, probe=False, tuned=True, **setting):
    h = size["parents"]
    params = {"max_iter": size["epochs"]} | setting if tuned else {}
    if dense:
        return FPEClassifier((dense * h,), expansion=1, random_state=seed, **params)
    if probe:
        n_outputs = 1 if size["classes"] == 2 else size["classes"]
        whole = n_outputs * (size["inputs"] + 1)
        budget = min(whole, h * (size["inputs"] + 1) + n_outputs * (h + 1))
        return FPEClassifier((), budget=budget, random_state=seed, **params)
    return FPEClassifier((h,), skip_connection=skip, random_state=seed, **params)


METHODS = {
    "LogisticRegression": (logistic_regression, grid(C=(1e-2, 1e-1, 1.0, 10.0))),
    "MLPClassifier": (
        mlp_classifier,
        grid(learning_rate_init=RATES, alpha=(1e-4, 1e-2)),
    ),
    "MLPClassifier, 2× as wide": (
        lambda size, seed, **s: mlp_classifier(size, seed, factor=2, **s),
        grid(learning_rate_init=RATES, alpha=(1e-4, 1e-2)),
    ),
    "skorch": (skorch_net, grid(lr=RATES, optimizer__weight_decay=DECAYS)),
    "dense, here": (lambda size, seed, **s: ours(size, seed, dense=1, **s), OURS),
    "dense, here, 2× as wide": (
        lambda size, seed, **s: ours(size, seed, dense=2, **s),
        OURS,
    ),
    "RealMLP": (real_mlp, [{}]),
    "linear probe, pruned": (
        lambda size, seed, **s: ours(size, seed, probe=True, **s),
        OURS,
    ),
    "expanded": (ours, OURS),
    "expanded, with skip": (
        lambda size, seed, **s: ours(size, seed, skip=True, **s),
        OURS,
    ),
    "defaults, with skip": (
        lambda size, seed: ours(size, seed, skip=True, tuned=False),
        [{}],
    ),
}
"""Functions that make a model, and the settings that are tried."""


def n_parameters(model):
    """Count the non-zero parameters of a fitted model."""
    last = model[-1] if hasattr(model, "steps") else model
    if hasattr(last, "n_nonzero_"):
        return int(last.n_nonzero_)
    if hasattr(last, "coefs_"):
        return sum(a.size for a in (*last.coefs_, *last.intercepts_))
    if hasattr(last, "coef_"):
        return last.coef_.size + last.intercept_.size
    if hasattr(last, "module_"):
        return sum(p.numel() for p in last.module_.parameters())
    return None  # RealMLP hides its network; the documentation states its layers


def fit(make, size, setting, rows, seed):
    """Fit once; return accuracy in %, CPU seconds and parameters."""
    X, X_test, y, y_test = rows
    model = make(size, seed, **setting)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence
        model.fit(X, y)
        seconds = time.process_time() - start
        found = 100 * float(np.mean(model.predict(X_test) == y_test))
    return found, seconds, n_parameters(model)


def measure(task, name, path, n_seeds, quick):
    """Tune a method on a task, then measure it."""
    make, settings = METHODS[name]
    X, _, y, _ = prepared(task, path, 0)
    size = TASKS[task] | {"inputs": X.shape[1], "classes": len(np.unique(y))}
    if quick:
        size, settings = size | {"epochs": 2}, settings[:2]
    held = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    tried = [fit(make, size, s, held, 0)[0] for s in settings] if settings[1:] else [0]
    setting = settings[int(np.argmax(tried))]
    runs = [
        fit(make, size, setting, prepared(task, path, seed), seed)
        for seed in range(n_seeds)
    ]
    scores = [round(run[0], 4) for run in runs]
    return {
        "task": task,
        "method": name,
        "parents": size["parents"],
        "accuracy": statistics.mean(scores),
        "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "n_nonzero": runs[0][2],
        "seconds": round(statistics.median(run[1] for run in runs), 3),
        "setting": setting,
        "tried": [round(score, 4) for score in tried],
        "scores": scores,
    }


def prepared(task, path, seed):
    """Return the rows of a task in float32, with labels 0, 1, ..."""
    X, X_test, y, y_test = load(task, path, seed)
    return X.astype(np.float32), X_test.astype(np.float32), y, y_test


def rows_of_others(args):
    """Return the rows that the file already has of what is not run now."""
    path = Path(args.json)
    if args.quick or not path.exists():
        return []
    return [
        row
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["task"] not in args.tasks or row["method"] not in args.methods
    ]


def position(row):
    """Return where a row stands in the file."""
    return list(TASKS).index(row["task"]), list(METHODS).index(row["method"])


def main(arguments=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="text embeddings (.npz); left out without")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, help="other than those of the task")
    parser.add_argument("--json", default="benchmarks/results/compared.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    threadpool_limits(1)
    rows = rows_of_others(args)
    for task, size in TASKS.items():
        if task not in args.tasks or (task == "text" and args.text is None):
            continue
        for name in args.methods:
            if name == "RealMLP" and importlib.util.find_spec("pytabkit") is None:
                continue
            n_seeds = 1 if args.quick else args.seeds or size["seeds"]
            rows.append(measure(task, name, args.text, n_seeds, args.quick))
            print_table(
                rows[-1:], ["task", "method", "n_nonzero", "accuracy", "seconds"]
            )
            settings = {"quick": args.quick, "tasks": TASKS}
            write_json(args.json, sorted(rows, key=position), settings)


if __name__ == "__main__":
    main()
