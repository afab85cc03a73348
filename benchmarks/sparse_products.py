"""Time the product of rows with a pruned matrix: dense, SciPy's CSR, torch's CSR.

    python -m benchmarks.sparse_products [--json PATH]

The matrices are those of predictions: a skip connection (inputs × classes) and a hidden
layer (inputs × units) at several densities, for one row, 64 and 4096 rows, in float32
on one thread. Times are medians of rounds in which the candidates take turns, as
multiples of the dense product's.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from benchmarks._report import write_json

SHAPES = {"skip": (512, 62), "hidden": (512, 64), "hidden, wide": (512, 256)}
DENSITIES = (0.02, 0.05, 0.1, 0.25)
ROWS = (1, 64, 4096)
ROUNDS = 15


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(name, shape, density, n_rows)
        for name, shape in SHAPES.items()
        for density in DENSITIES
        for n_rows in ROWS
    ]
    for row in rows:
        print(
            f"{row['matrix']:13s} density {row['density']:<5} rows {row['rows']:<5} "
            f"dense {row['dense_us']:8.1f} us, SciPy {row['scipy']:5.2f} x, "
            f"torch {row['torch']:5.2f} x"
        )
    if arguments.json:
        write_json(arguments.json, rows, {"rounds": ROUNDS})


def measure(name, shape, density, n_rows):
    """Time the three products of one matrix and one number of rows."""
    n_inputs, n_outputs = shape
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(n_outputs, n_inputs)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    X = rng.normal(size=(n_rows, n_inputs)).astype(np.float32)
    x, dense = torch.from_numpy(X), torch.from_numpy(weight)
    compressed, of_scipy = dense.to_sparse_csr(), sparse.csr_array(weight)
    products = {
        "dense": lambda: x @ dense.mT,
        "scipy": lambda: (of_scipy @ X.T).T,
        "torch": lambda: (compressed @ x.mT).mT,
    }
    n_times = max(1, 2000 // n_rows)
    times = {name: [] for name in products}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for candidate, product in products.items():
                start = time.perf_counter()
                for _ in range(n_times):
                    product()
                times[candidate].append((time.perf_counter() - start) / n_times)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "matrix": name,
        "density": density,
        "rows": n_rows,
        "dense_us": 1e6 * median["dense"],
        "scipy": median["scipy"] / median["dense"],
        "torch": median["torch"] / median["dense"],
    }


if __name__ == "__main__":
    main()
