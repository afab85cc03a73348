"""Time the cells of :mod:`benchmarks.compare` once; a script that prints JSON.

It is run with the package of another commit, so it uses the public interface only.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path


def timed(function, n_calls):
    """Return the median CPU time of calls, after one that warms up."""
    function()
    times = []
    for _ in range(n_calls):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def repeat(function, X):
    """Call a function that is too fast to be timed once."""
    for _ in range(20):
        function(X)


def cells(n_calls):
    """Return {name of a cell: CPU seconds}."""
    start = time.process_time()
    import sklearn_fpe  # before NumPy and torch: their import is part of it

    found = {"import": time.process_time() - start}
    import numpy as np
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    for d, h, c, n in ((64, 4, 10, 1500), (512, 32, 100, 4096)):
        X = rng.standard_normal((n, d), dtype=np.float32)
        y = np.arange(n) % c
        size = f"{d} – {h} – {c}"
        for name, params in METHODS.items():
            model = sklearn_fpe.FPEClassifier(
                (h,), max_iter=4, batch_size=128, random_state=0, device="cpu", **params
            )
            fit = partial(model.fit, X, y)
            found[f"fit, {size}, {name}"] = timed(fit, n_calls)
            for rows in (1, 1024):
                predict = partial(repeat, model.predict, X[:rows])
                found[f"predict {rows}, {size}, {name}"] = timed(predict, n_calls)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        found["save"] = timed(partial(sklearn_fpe.save, model, path), n_calls)
        found["load"] = timed(partial(sklearn_fpe.load, path), n_calls)
    return found


METHODS = {
    "dense": {"expansion": 1},
    "structured": {"prune": "structured", "split": "contiguous"},
    "learned": {"prune": "gradual", "split": "learned"},
}
"""Parameters of the estimator."""


if __name__ == "__main__":
    times = cells(int(sys.argv[1]))
    import sklearn_fpe

    print(json.dumps({"package": sklearn_fpe.__file__, "times": times}))
