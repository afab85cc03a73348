"""Cost of fitting and predicting, as ratios to ``expansion=1`` in the same run.

    python -m benchmarks.speed [--quick] [--device cuda] [--json PATH]

Candidates take turns. A time is CPU time of the process (wall time on CUDA), the median
over rounds; a ratio is the median of the ratios to ``expansion=1`` in the same round,
its spread their interquartile range. Every split and prune rule is measured for the
headline cells; for the others, with fewer rows, those that the README recommends.
"""

import argparse
import copy
import pickle
import statistics
import time
import warnings

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from benchmarks._baselines import BareLoop, naive_masked
from benchmarks._report import print_table, write_json
from benchmarks._rss import peak_anonymous
from sklearn_fpe import FPEClassifier

HEADLINE = [(512, 32, 100), (512, 256, 100)]
"""Inputs, parents and classes of the cells that are measured in full."""

OTHERS = [
    (d, h, c)
    for d in (384, 512)
    for h in (8, 32, 256)
    for c in (10, 100, 1000)
    if (d, h, c) not in HEADLINE
]

METHODS = {
    ("structured", "contiguous"): (2, 4, 8, 16),
    ("structured", "shared"): (2, 4, 8, 16),
    ("structured", "feature"): (4, 8),
    ("magnitude", "contiguous"): (4, 8),
    ("magnitude", "shared"): (4, 8),
    ("magnitude", "random"): (4, 8),
    ("rewired", "contiguous"): (4, 8),
    ("gradual", "learned"): (4, 8),
}
"""Expansions that are measured of every prune rule and split."""

FEW_METHODS = {
    ("structured", "contiguous"): (4, 8),
    ("structured", "shared"): (4, 8),
    ("magnitude", "shared"): (4,),
    ("gradual", "learned"): (4,),
}
"""The same, for the cells that are no headline."""


def candidates(cell, args, methods):
    """Yield (name, prune, split, expansion, a function that makes the estimator)."""
    d, h, c = cell
    epochs, batch = args.epochs, args.batch_size

    def fpe(expansion, **kwargs):
        return lambda: FPEClassifier(
            (h,),
            expansion=expansion,
            learning_rate_init=1e-3,
            max_iter=epochs,
            batch_size=batch,
            random_state=0,
            device=args.device,
            **kwargs,
        )

    def mlp_classifier():
        return MLPClassifier(
            (h,), max_iter=epochs, batch_size=batch, n_iter_no_change=10**6
        )

    yield "expansion=1", None, None, 1, fpe(1)
    yield (
        "bare torch loop",
        None,
        None,
        1,
        lambda: BareLoop(h, epochs, batch, 1e-3, device=args.device),
    )
    yield "MLPClassifier", None, None, 1, mlp_classifier
    if cell in HEADLINE:
        naive = (d, h, c, 8, epochs, batch, 1e-3, args.device)
        yield "naive masked skorch", None, "random", 8, lambda: naive_masked(*naive)
    for (prune, split), expansions in methods.items():
        for expansion in expansions:
            yield (
                "FPE",
                prune,
                split,
                expansion,
                fpe(expansion, prune=prune, split=split),
            )


def measure(cell, n_rows, args, methods):
    """Fit and predict with every candidate of a cell, in turn."""
    d, _, c = cell
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, d), dtype=np.float32)
    y = rng.integers(0, c, n_rows)
    y[:c] = np.arange(c)
    tests = list(candidates(cell, args, methods))
    fitted = [None] * len(tests)

    def fit(i):
        fitted[i] = tests[i][-1]()
        fitted[i].fit(X, y)

    # The naive way is slow, and known well enough from fewer rounds.
    rounds = [
        max(2, args.repeats // 2) if test[0].startswith("naive") else args.repeats
        for test in tests
    ]
    times = {"fit": _in_turn(fit, rounds, 1, args.device)}
    for batch, n_calls in {1: 60, 256: 30, 4096: 8}.items():
        part = X[:batch]
        times[f"predict_{batch}"] = _in_turn(
            lambda i, part=part: fitted[i].predict(part),
            [2 * args.repeats] * len(tests),
            n_calls,
            args.device,
        )
    dense = fitted[0]
    return [
        {"d": d, "h": cell[1], "C": c, "rows": n_rows}
        | {"model": name, "expansion": expansion, "prune": prune, "split": split}
        | _ratios({key: (value[i], value[0]) for key, value in times.items()})
        | (_size(fitted[i], dense) if isinstance(fitted[i], FPEClassifier) else {})
        for i, (name, prune, split, expansion, _) in enumerate(tests)
    ]


def _in_turn(function, rounds, n_calls, device):
    """Time ``function(i)`` for every i in turn, after a round that warms up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = [[] for _ in rounds]
    for repetition in range(max(rounds) + 1):
        for i, n in enumerate(rounds):
            if repetition <= n:
                start = clock()
                for _ in range(n_calls):
                    function(i)
                times[i].append((clock() - start) / n_calls)
    return [of_one[1:] for of_one in times]


def _ratios(times):
    """Return medians and spreads of times and of their ratios to the first."""
    row = {}
    for name, (own, base) in times.items():
        ratios = [a / b for a, b in zip(own, base, strict=False)]
        low, _, high = statistics.quantiles(ratios, n=4)
        row[f"{name}_s"] = statistics.median(own)
        row[name] = statistics.median(ratios)
        row[f"{name}_spread"] = high - low
    return row


def _size(model, dense):
    n_bytes = len(pickle.dumps(model))
    return {
        "pickle": n_bytes / len(pickle.dumps(dense)),
        "pickle_bytes": n_bytes,
        "binds": binds(model),
    }


def binds(model):
    """Name what costs: multiplications of a step and activations, to the parent's."""
    network, shape = model.module_, model.learned_.recipe.shape
    # The first layer takes part in two products of a step, the others in three.
    dense = (2 * shape.n_inputs + 3 * shape.n_outputs) * shape.hidden[0]
    n_weights = [layer.weight.numel() for layer in network.layers]
    products = (2 * n_weights[0] + 3 * n_weights[1]) / dense
    units = len(network.parents[0]) / shape.hidden[0]
    gather = "gather" if network.reorders_columns else "no gather"
    return f"products {products:.2f}x, activations {units:.1f}x, {gather}"


def peak_memory(cell, n_rows, args):
    """Peak of anonymous memory, or of the device's, during a fit."""
    d, _, c = cell
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, d), dtype=np.float32)
    y = rng.integers(0, c, n_rows)
    rows = []
    methods = dict.fromkeys(METHODS, (8,))
    for name, prune, split, expansion, make in candidates(cell, args, methods):
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            make().fit(X, y)
            peak = torch.cuda.max_memory_allocated()
        else:
            model = make()
            peak = peak_anonymous(lambda model=model: model.fit(X, y))
        rows.append(
            {"model": name, "prune": prune, "split": split, "expansion": expansion,
             "peak_bytes": peak, "data_bytes": X.nbytes}
        )  # fmt: skip
    return rows


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the headline cells only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12_800, help="of headline cells")
    parser.add_argument("--few-rows", type=int, default=4096, help="of other cells")
    parser.add_argument("--many-rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", default="benchmarks/results/speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    warnings.simplefilter("ignore")  # convergence, and expansions above the budget
    cells = [(cell, args.rows, METHODS) for cell in HEADLINE]
    if not args.quick:
        cells += [(cell, args.few_rows, FEW_METHODS) for cell in OTHERS]
        only = {("structured", "contiguous"): (8,), ("structured", "shared"): (8,)}
        cells += [((512, 32, 100), args.many_rows, only)]
    rows = []
    columns = ["d", "h", "C", "rows", "model", "expansion", "prune", "split", "fit"]
    columns += ["fit_spread", "predict_1", "predict_256", "predict_4096", "pickle"]
    columns += ["binds"]
    for cell, n_rows, methods in cells:
        of_cell = copy.copy(args)
        if n_rows > args.rows:
            # The steps of all epochs are about as many as with fewer rows.
            of_cell.epochs = max(2, args.epochs * args.rows // n_rows)
        new = measure(cell, n_rows, of_cell, methods)
        print_table(new, columns)
        rows += new
        write_json(args.json, rows, settings=vars(args))
    memory = peak_memory(HEADLINE[0], args.rows, args)
    print_table(memory, ["model", "prune", "split", "expansion", "peak_bytes"])
    write_json(args.json, rows, settings=vars(args), memory=memory)


if __name__ == "__main__":
    main()
