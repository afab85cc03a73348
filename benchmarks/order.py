"""Shared against contiguous blocks where the order of the columns has a meaning.

    python -m benchmarks.order [--json PATH]

Time series: noisy chirps, neighbouring columns are alike. One-hot columns: the class
depends on pairs of categories, which stand side by side ("near") or far apart ("far").
"""

import argparse
import statistics
import warnings

import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.model_selection import train_test_split

from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier


def time_series(rng, n_samples=4000, length=128, n_classes=10):
    """Draw chirps whose frequency and position tell the class."""
    y = rng.integers(0, n_classes, n_samples)
    t, label = np.arange(length), y[:, None]
    wave = np.sin(2 * np.pi * (2 + label / 2) * t / length + rng.random((n_samples, 1)))
    envelope = np.exp(-(((t - 20 - 8 * label) / 40) ** 2))
    noise = rng.standard_normal((n_samples, length))
    return (wave * envelope + 0.7 * noise).astype(np.float32), y


def one_hot(rng, near, n_samples=6000, n_variables=16, n_levels=8, n_classes=8):
    """Draw categories; the class is the argmax of a sum of random pair effects."""
    levels = rng.integers(0, n_levels, (n_samples, n_variables))
    order = np.arange(n_variables)
    pairs = (
        order.reshape(-1, 2) if near else np.c_[order, order[::-1]][: len(order) // 2]
    )
    effects = rng.standard_normal((len(pairs), n_levels, n_levels, n_classes))
    score = sum(
        effect[levels[:, i], levels[:, j]]
        for effect, (i, j) in zip(effects, pairs, strict=True)
    )
    X = np.eye(n_levels, dtype=np.float32)[levels].reshape(n_samples, -1)
    return X, score.argmax(axis=1)


def accuracy(X, y, params, seed):
    """Fit on three quarters, score on the rest."""
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copies that exceed the budget
        model = FPEClassifier(random_state=seed, max_iter=20, device="cpu", **params)
        return 100 * model.fit(X_train, y_train).score(X_test, y_test)


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", default="benchmarks/results/order.json")
    args = parser.parse_args()
    tasks = {
        "time series": time_series(np.random.default_rng(0)),
        "one-hot, far": one_hot(np.random.default_rng(0), near=False),
        "one-hot, near": one_hot(np.random.default_rng(0), near=True),
    }
    nets = [{"expansion": 1}] + [
        {"expansion": 4, "prune": prune, "split": split}
        for prune in ("magnitude", "structured")
        for split in ("shared", "contiguous")
    ]
    rows = []
    for task, (X, y) in tasks.items():
        for width in (8, 32):
            for net in nets:
                params = {"hidden_layer_sizes": (width,), **net}
                with parallel_config("loky", inner_max_num_threads=1):
                    scores = Parallel(n_jobs=args.jobs)(
                        delayed(accuracy)(X, y, params, s) for s in range(args.seeds)
                    )
                row = {"task": task, "parents": width, **net}
                row |= {
                    "accuracy": statistics.mean(scores),
                    "spread": statistics.stdev(scores),
                }
                rows.append(row)
    columns = ["task", "parents", "expansion", "prune", "split", "accuracy", "spread"]
    print_table(rows, columns)
    write_json(args.json, rows, settings=vars(args))


if __name__ == "__main__":
    main()
