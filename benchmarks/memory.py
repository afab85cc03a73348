"""Anonymous memory that a fit on a memory map adds, as sampled while it runs.

    python -m benchmarks.memory [--rows 1281167] [--columns 512] [--json PATH]

The map is made in a temporary directory. Mapped file pages are the kernel's business
and do not count. Every setting has a process of its own: what an allocator keeps of
earlier fits would hide growth.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks._report import print_table, write_json
from benchmarks._rss import peak_anonymous
from sklearn_fpe import FPEClassifier


def make_map(path, n_rows, n_columns, n_classes, seed=0):
    """Write class means plus noise to a float32 map, block by block; return y."""
    rng = np.random.default_rng(seed)
    X = np.memmap(path, np.float32, "w+", shape=(n_rows, n_columns))
    y = rng.integers(0, n_classes, n_rows)
    means = rng.standard_normal((n_classes, n_columns), dtype=np.float32)
    for start in range(0, n_rows, 8192):
        rows = slice(start, start + 8192)
        noise = rng.standard_normal((len(y[rows]), n_columns), dtype=np.float32)
        X[rows] = means[y[rows]] + 2 * noise
    X.flush()
    return y


def measure(path, shape, y, settings):
    """Fit and predict on the map; return what was seen of one setting."""
    torch.set_num_threads(1)
    X = np.memmap(path, np.float32, "r", shape=shape)
    model = FPEClassifier(
        (32,),
        max_iter=2,
        warmup=1,
        learning_rate_init=1e-3,
        random_state=0,
        device="cpu",
        **settings,
    )
    start = time.perf_counter()
    fit = peak_anonymous(lambda: model.fit(X, y))
    seconds = time.perf_counter() - start
    predict = peak_anonymous(lambda: model.predict(X))
    return {
        "settings": str(settings),
        "fit_peak_MB": fit / 1e6,
        "predict_peak_MB": predict / 1e6,
        "fit_s": seconds,
        "map_MB": X.nbytes / 1e6,
        "accuracy_of_10000": model.score(X[:10_000], y[:10_000]),
    }


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--json", default="benchmarks/results/memory.json")
    args = parser.parse_args()
    shape = args.rows, args.columns
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.f32"
        y = make_map(path, *shape, args.classes)
        for settings in (
            {"expansion": 4, "prune": "structured", "split": "contiguous"},
            {"expansion": 4},
            {"expansion": 4, "early_stopping": True, "validation_fraction": 0.01},
        ):
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned) as pool:
                rows.append(pool.submit(measure, path, shape, y, settings).result())
            print_table(rows[-1:], list(rows[-1]))
    write_json(args.json, rows, settings=vars(args))


if __name__ == "__main__":
    main()
