"""What the cache of the warm-up saves in a search, hashing included.

    python -m benchmarks.cache [--json PATH]

A grid of 4 expansions x 2 splits x 3 folds, with a warm-up of half the epochs, with and
without ``memory=``, in turn; CPU time of one process, an empty cache every time.
"""

import argparse
import tempfile
import time
import warnings

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV

from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier

GRID = {"expansion": [2, 4, 6, 8], "split": ["shared", "feature"]}


def make_data(n_rows):
    """Draw one noisy blob a class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 62, n_rows)
    X = rng.standard_normal((62, 512))[y] + 3 * rng.standard_normal((n_rows, 512))
    return X.astype(np.float32), y


def search(X, y, epochs, memory):
    """Run the search; return its CPU time and its scores."""
    model = FPEClassifier(
        (32,),
        warmup=0.5,
        max_iter=epochs,
        batch_size=256,
        memory=memory,
        random_state=0,
        device="cpu",
    )
    start = time.process_time()
    fitted = GridSearchCV(model, GRID, cv=3, refit=False).fit(X, y)
    return time.process_time() - start, fitted.cv_results_["mean_test_score"]


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[9000, 24_800])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="benchmarks/results/cache.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # copies that exceed the budget
    rows = []
    for n_rows in np.repeat(args.rows, args.repeats).tolist():
        X, y = make_data(n_rows)
        without, scores = search(X, y, args.epochs, None)
        with tempfile.TemporaryDirectory() as folder:
            cached, cached_scores = search(X, y, args.epochs, folder)
        same = bool((scores == cached_scores).all())
        rows.append(
            {"rows": n_rows, "without_s": without, "with_s": cached}
            | {"ratio": cached / without, "same": same}
        )
    print_table(rows, list(rows[0]))
    write_json(args.json, rows, settings=vars(args))


if __name__ == "__main__":
    main()
