"""What training the candidates of a search together saves.

    python -m benchmarks.search [--json PATH]

A grid of 4 learning rates x 4 expansions x 5 folds, searched by FPESearchCV, by
GridSearchCV over the same estimator, with and without ``memory=``, by GridSearchCV over
a masked skorch net, and, over the learning rates alone, by GridSearchCV over
MLPClassifier. CPU time of one process with one thread; the ways are run in turn. The
skorch net is fitted once for every expansion, and its time is that of the whole grid
by arithmetic: 4 learning rates x 5 folds fits of each.
"""

import argparse
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier

from benchmarks._baselines import naive_masked
from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier, FPESearchCV

RATES = [1e-2, 2e-2, 5e-2, 1e-1]
EXPANSIONS = [1, 2, 4, 8]
GRID = {"learning_rate_init": RATES, "expansion": EXPANSIONS}
N_FOLDS = 5


def make_data(n_rows, n_columns, n_classes):
    """Draw labels of a noisy linear model."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_columns)).astype(np.float32)
    scores = X @ rng.standard_normal((n_columns, n_classes))
    y = (scores + 5 * rng.standard_normal(scores.shape)).argmax(axis=1)
    return X, y


def timed(function):
    """Return CPU seconds and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def ways(X, y, h, args):
    """Return what to measure, by name."""
    settings = {"max_iter": args.epochs, "batch_size": args.batch_size}
    model = FPEClassifier((h,), **settings, random_state=0, device="cpu")
    n_fitted = len(X) * (N_FOLDS - 1) // N_FOLDS

    def grid(estimator, params=GRID):
        return GridSearchCV(estimator, params, cv=N_FOLDS, refit=False).fit(X, y)

    def cached():
        with tempfile.TemporaryDirectory() as folder:
            return grid(FPEClassifier(**model.get_params() | {"memory": folder}))

    def skorch():
        for expansion in EXPANSIONS:
            net = naive_masked(
                X.shape[1],
                h,
                len(np.unique(y)),
                expansion,
                max_iter=args.epochs,
                batch_size=args.batch_size,
                lr=1e-2,
            )
            net.fit(X[:n_fitted], y[:n_fitted].astype(np.int64))

    dense = MLPClassifier((h,), **settings, random_state=0)
    return {
        "FPESearchCV": lambda: FPESearchCV(model, GRID, cv=N_FOLDS, refit=False).fit(
            X, y
        ),
        "GridSearchCV": lambda: grid(model),
        "GridSearchCV, memory": cached,
        "masked skorch net": skorch,
        "MLPClassifier": lambda: grid(dense, {"learning_rate_init": RATES}),
    }


def measure(case, args):
    """Measure a problem; return its row."""
    X, y = make_data(*case["shape"])
    seconds, scores = {}, {}
    for _ in range(args.repeats):
        for name, run in ways(X, y, case["h"], args).items():
            taken, search = timed(run)
            if name == "masked skorch net":
                taken *= len(RATES) * N_FOLDS
            seconds.setdefault(name, []).append(taken)
            if search is not None:
                scores[name] = search.cv_results_["mean_test_score"]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians["FPESearchCV"]
    difference = np.abs(scores["FPESearchCV"] - scores["GridSearchCV"])
    n_rows, n_columns, n_classes = case["shape"]
    return {
        "rows": n_rows,
        "columns": n_columns,
        "classes": n_classes,
        "h": case["h"],
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio_grid": medians["GridSearchCV"] / ours,
        "spread": [
            min(seconds["GridSearchCV"]) / max(seconds["FPESearchCV"]),
            max(seconds["GridSearchCV"]) / min(seconds["FPESearchCV"]),
        ],
        "ratio_memory": medians["GridSearchCV, memory"] / ours,
        "ratio_skorch": medians["masked skorch net"] / ours,
        # Of MLPClassifier there is one candidate for four of the others.
        "ratio_mlp_per_fit": medians["MLPClassifier"] * len(EXPANSIONS) / ours,
        "largest_score_difference": float(difference.max()),
        "median_score_difference": float(np.median(difference)),
    }


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--widths", type=int, nargs="+", default=[4, 8, 32])
    add("--rows", type=int, default=2000)
    add("--columns", type=int, default=128)
    add("--classes", type=int, default=10)
    add("--epochs", type=int, default=30)
    add("--batch-size", type=int, default=128)
    add("--repeats", type=int, default=3)
    add("--json", default="benchmarks/results/search.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # trainings that have not converged
    shape = (args.rows, args.columns, args.classes)
    rows = []
    for h in args.widths:
        rows.append(measure({"shape": shape, "h": h}, args))
        # After every width, so that an interrupted run leaves what it has.
        write_json(args.json, rows, settings=vars(args))
    columns = ["h", "ratio_grid", "ratio_memory", "ratio_skorch", "ratio_mlp_per_fit"]
    print_table(rows, [*columns, "largest_score_difference"])


if __name__ == "__main__":
    main()
