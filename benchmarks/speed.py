"""Cost of fitting and predicting, as ratios to ``expansion=1`` in the same run.

    python -m benchmarks.speed [--quick] [--device cuda] [--json PATH]

Candidates are interleaved; a figure is the median over repetitions of the CPU time of
the process (wall time on CUDA), and its spread the interquartile range over the median.
"""

import argparse
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

SPLITS = (
    ("structured", "contiguous"),
    ("structured", "shared"),
    ("structured", "feature"),
    ("magnitude", "contiguous"),
    ("magnitude", "shared"),
    ("magnitude", "random"),
)


def candidates(cell, args):
    """Yield (name, prune, split, expansion, a function that makes the estimator)."""
    d, h, c = cell
    common = {"max_iter": args.epochs, "batch_size": args.batch_size}

    def fpe(expansion, **kwargs):
        return lambda: FPEClassifier(
            (h,),
            expansion=expansion,
            learning_rate_init=1e-3,
            random_state=0,
            device=args.device,
            **common,
            **kwargs,
        )

    yield "expansion=1", None, None, 1, fpe(1)
    yield (
        "bare torch loop",
        None,
        None,
        1,
        lambda: BareLoop(h, args.epochs, args.batch_size, 1e-3, device=args.device),
    )
    yield (
        "MLPClassifier",
        None,
        None,
        1,
        lambda: MLPClassifier(
            (h,),
            max_iter=args.epochs,
            batch_size=args.batch_size,
            n_iter_no_change=10**6,
            random_state=0,
        ),
    )
    if not args.quick or c == 100:
        naive = (d, h, c, 8, args.epochs, args.batch_size, 1e-3)
        yield "naive masked skorch", None, "random", 8, lambda: naive_masked(*naive)
    for prune, split in SPLITS:
        for expansion in args.expansions:
            masked = prune == "magnitude" or split == "feature"
            if masked and args.quick and expansion not in (4, 8):
                continue
            yield (
                "FPE",
                prune,
                split,
                expansion,
                fpe(expansion, prune=prune, split=split),
            )


def measure(cell, n_rows, args):
    """Fit and predict with every candidate of a cell, in turn."""
    d, _, c = cell
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, d), dtype=np.float32)
    y = rng.integers(0, c, n_rows)
    y[:c] = np.arange(c)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    tests = list(candidates(cell, args))
    fits = [[] for _ in tests]
    predicts = [{1: [], 256: [], 4096: []} for _ in tests]
    fitted = [None] * len(tests)
    for repetition in range(args.repeats + 1):
        for i, test in enumerate(tests):
            # The naive way is slow, and known well enough from fewer repetitions.
            if test[0].startswith("naive") and repetition > args.repeats // 2:
                continue
            model = test[-1]()
            start = clock()
            model.fit(X, y)
            elapsed = clock() - start
            fitted[i] = model
            if repetition:  # the first round warms up caches and threads
                fits[i].append(elapsed)
    for repetition in range(2 * args.repeats + 1):
        for i, model in enumerate(fitted):
            for batch, times in predicts[i].items():
                part, n_calls = X[:batch], {1: 60, 256: 30, 4096: 8}[batch]
                start = clock()
                for _ in range(n_calls):
                    model.predict(part)
                if repetition:
                    times.append((clock() - start) / n_calls)
    return [_row(cell, test, fits, predicts, fitted, i) for i, test in enumerate(tests)]


def _row(cell, test, fits, predicts, fitted, i):
    name, prune, split, expansion, _ = test
    d, h, c = cell
    row = {
        "d": d, "h": h, "C": c, "model": name, "expansion": expansion,
        "prune": prune, "split": split,
        "fit_s": statistics.median(fits[i]),
        "fit": statistics.median(fits[i]) / statistics.median(fits[0]),
        "fit_spread": _spread(fits[i]),
    }  # fmt: skip
    for batch, times in predicts[i].items():
        base = statistics.median(predicts[0][batch])
        row[f"predict_{batch}_s"] = statistics.median(times)
        row[f"predict_{batch}"] = statistics.median(times) / base
    if isinstance(fitted[i], FPEClassifier):
        size = len(pickle.dumps(fitted[i]))
        row["pickle"] = size / len(pickle.dumps(fitted[0]))
        row["pickle_bytes"] = size
        row["binds"] = binds(fitted[i])
    return row


def _spread(times):
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)


def binds(model):
    """Name what costs: multiplications and activations against the parent's."""
    network = model.module_
    dense = (model._sizes.n_inputs + model._sizes.n_outputs) * model._sizes.hidden[0]
    products = sum(layer.weight.numel() for layer in network.layers) / dense
    units = len(network.parents[0]) / model._sizes.hidden[0]
    gather = "gather" if getattr(network.layers[0], "gathers", False) else "no gather"
    return f"products {products:.2f}x, activations {units:.1f}x, {gather}"


def peak_memory(cell, n_rows, args):
    """Peak of anonymous memory, or of the device's, during a fit."""
    d, _, c = cell
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, d), dtype=np.float32)
    y = rng.integers(0, c, n_rows)
    rows = []
    for name, prune, split, expansion, make in candidates(cell, args):
        if name == "FPE" and expansion != 8:
            continue
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
    parser.add_argument("--quick", action="store_true", help="the cells of the README")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--expansions", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--cells", nargs="+", help="d,h,C ...")
    parser.add_argument("--json", default="benchmarks/results/speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    warnings.simplefilter("ignore")  # convergence, and expansions above the budget
    if args.cells:
        cells = [tuple(int(v) for v in cell.split(",")) for cell in args.cells]
    elif args.quick:
        cells = [(512, 32, 100), (512, 256, 100)]
    else:
        cells = [
            (d, h, c) for d in (384, 512) for h in (8, 32, 256) for c in (10, 100, 1000)
        ]
    rows = []
    columns = ["d", "h", "C", "model", "expansion", "prune", "split", "fit"]
    columns += ["fit_spread", "predict_1", "predict_256", "predict_4096", "pickle"]
    columns += ["binds"]
    for cell in cells:
        new = measure(cell, args.rows, args)
        print_table(new, columns)
        rows += new
        write_json(args.json, rows, settings=vars(args))
    memory = peak_memory(cells[0], args.rows, args)
    print_table(memory, ["model", "prune", "split", "expansion", "peak_bytes"])
    write_json(args.json, rows, settings=vars(args), memory=memory)


if __name__ == "__main__":
    main()
