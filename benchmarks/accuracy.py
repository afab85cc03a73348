"""Accuracy at equal non-zero parameters, every net at its own best learning rate.

    python -m benchmarks.accuracy --data PATH.npz [--quick] [--json PATH]

The file holds X_train, y_train, X_test, y_test. The learning rate of every net is
chosen on a fifth of the training rows, held out; the net is then trained on all
training rows, once per seed, and scored on the test rows.
"""

import argparse
import itertools
import statistics
import warnings
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def load(path):
    """Load (X_train, X_test, y_train, y_test) of a file, or digits."""
    if path is None:
        X, y = load_digits(return_X_y=True)
        return train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
    with np.load(path, allow_pickle=False) as data:
        X_train, X_test = (data[f"X_{k}"].astype(np.float32) for k in ("train", "test"))
        return X_train, X_test, data["y_train"], data["y_test"]


def nets(args):
    """Yield (parents, name, parameters of the estimator)."""
    for h in args.hidden:
        yield h, "dense", {"hidden_layer_sizes": (h,), "expansion": 1}
        yield (
            h,
            "dense, 2x parameters",
            {"hidden_layer_sizes": (2 * h,), "expansion": 1},
        )
        for (prune, split), expansion in itertools.product(
            args.methods, args.expansions
        ):
            yield (
                h,
                f"{prune}, {split}, expansion {expansion}",
                {
                    "hidden_layer_sizes": (h,),
                    "expansion": expansion,
                    "prune": prune,
                    "split": split,
                },
            )


def accuracy(data, params, seed):
    """Fit once; return accuracy in percent and the budget actually used."""
    X_train, X_test, y_train, y_test = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expansions whose copies exceed the budget
        model = FPEClassifier(random_state=seed, **params).fit(X_train, y_train)
    return 100 * model.score(X_test, y_test), model.n_nonzero_


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="an .npz file; default: digits")
    parser.add_argument("--quick", action="store_true", help="one seed, two expansions")
    parser.add_argument("--hidden", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--expansions", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument(
        "--methods", nargs="+", default=["magnitude/shared", "structured/contiguous"]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-iter", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", default="benchmarks/results/accuracy.json")
    args = parser.parse_args()
    args.methods = [method.split("/") for method in args.methods]
    if args.quick:
        args.seeds, args.expansions, args.max_iter = 1, [1, 4], 3
    data = load(args.data)
    X_train, _, y_train, _ = data
    held_out = train_test_split(
        X_train, y_train, test_size=0.2, random_state=0, stratify=y_train
    )
    tests = list(nets(args))
    common = {"max_iter": args.max_iter, "device": "cpu"}

    def parallel(dataset, jobs):
        with parallel_config("loky", inner_max_num_threads=1):
            return Parallel(n_jobs=args.jobs)(
                delayed(accuracy)(dataset, {**params, **common}, seed)
                for params, seed in jobs
            )

    trials = [
        ({**params, "learning_rate_init": lr}, 0)
        for (_, _, params), lr in itertools.product(tests, LEARNING_RATES)
    ]
    tuned = np.array(parallel(held_out, trials))[:, 0].reshape(len(tests), -1)
    best = tuned.argmax(axis=1)
    finals = [
        ({**params, "learning_rate_init": LEARNING_RATES[b]}, seed)
        for (_, _, params), b in zip(tests, best, strict=True)
        for seed in range(args.seeds)
    ]
    final = np.array(parallel(data, finals)).reshape(len(tests), args.seeds, 2)
    rows = []
    for (h, name, _), b, tuning, result in zip(tests, best, tuned, final, strict=True):
        scores = result[:, 0].tolist()
        rows.append(
            {
                "parents": h,
                "net": name,
                "accuracy": statistics.mean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "learning_rate": LEARNING_RATES[b],
                "n_nonzero": int(result[0, 1]),
                "scores": scores,
                "tuning": tuning.tolist(),
            }
        )
    print_table(rows, ["parents", "net", "accuracy", "spread", "learning_rate"])
    data_name = args.data and Path(args.data).name
    write_json(args.json, rows, settings=vars(args) | {"data": data_name})


if __name__ == "__main__":
    main()
