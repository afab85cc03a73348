"""Correctness and speed on a device, a GPU above all.

    python -m benchmarks.device --device cuda [--quick] [--parts steps,load]
    python -m benchmarks.device --device cpu --quick --json PATH    # a dry run

Parts:

correct   fits, predictions and gradients against the CPU; recorded steps against
          launched ones
waits     how often the host waits, in an epoch, in a step and while rows are loaded
kernels   kernels of a step
steps     time of a step: launched, recorded, TF32, bfloat16, and a bare torch loop
load      time from ``fit`` to the first step, for arrays, tensors and memory maps
predict   rows per second
memory    peak of the device's memory, in multiples of X

A step is timed from outside: two fits that differ in their epochs are timed, and the
difference is divided by the steps between them, so that the set-up cancels. Candidates
take turns; the medians over rounds are reported.
"""

import argparse
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks import _device_checks as checks
from benchmarks._baselines import BareLoop
from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine._graph import CAPTURES

CELLS = [
    (512, 32, 100, 256),
    (512, 32, 100, 4096),
    (512, 256, 100, 256),
    (512, 256, 100, 4096),
    (512, 32, 1000, 256),
    (64, 8, 10, 256),
]
"""Inputs, parents, classes and batch size."""

CANDIDATES = {
    "expansion 1": {"expansion": 1},
    "structured contiguous": {"split": "contiguous", "prune": "structured"},
    "structured shared": {"split": "shared", "prune": "structured"},
    "magnitude shared": {"split": "shared", "prune": "magnitude"},
    "default": {},
}


def make_estimator(device, **settings):
    """Make a classifier whose warm-up is an epoch."""
    common = {"learning_rate_init": 1e-3, "warmup": 1, "random_state": 0}
    return FPEClassifier(**{**common, "device": device, **settings})


def timed(function, device):
    """Return seconds of a call, work of the device included."""
    checks.synchronize(device)
    start = time.perf_counter()
    function()
    checks.synchronize(device)
    return time.perf_counter() - start


def in_turn(functions, n_rounds):
    """Return the median of what functions return, called in turn after a warm-up.

    A candidate that fails is reported by its error.
    """
    results = {name: [] for name in functions}
    for turn in range(n_rounds + 1):
        for name, function in functions.items():
            if isinstance(results[name], str):
                continue
            try:
                value = function()
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"[:200]
                continue
            if turn:
                results[name].append(value)
    return {
        name: found if isinstance(found, str) else statistics.median(found)
        for name, found in results.items()
    }


def show(rows, columns):
    """Print a table, if there are rows."""
    if rows:
        print_table(rows, columns)


def steps(args):
    """Time steps of all candidates, in microseconds."""
    rows = []
    for d, h, c, batch in args.cells:
        n_rows = args.steps_per_epoch * batch
        X, y = checks.make_data(n_rows, d, c)

        def seconds(make, X=X, y=y):
            few, many = (
                timed(lambda n=n: make(n).fit(X, y), args.device) for n in args.epochs
            )
            more = (args.epochs[1] - args.epochs[0]) * args.steps_per_epoch
            return 1e6 * (many - few) / more

        def bare(n_epochs, h=h, batch=batch):
            return BareLoop(h, n_epochs, batch, 1e-3, device=args.device)

        def candidate(settings, n_from, h=h, batch=batch):
            def run():
                with checks.recording_from(n_from):
                    return seconds(
                        lambda n: make_estimator(
                            args.device,
                            hidden_layer_sizes=(h,),
                            batch_size=batch,
                            max_iter=n,
                            **{"expansion": 8, **settings},
                        )
                    )

            return run

        functions = {"bare torch loop": lambda: seconds(bare)}
        for name, settings in CANDIDATES.items():
            functions[f"{name}, launched"] = candidate(settings, np.inf)
            if torch.device(args.device).type in CAPTURES:
                functions[f"{name}, recorded"] = candidate(settings, 1)
        structured = CANDIDATES["structured contiguous"]
        for precision in ("tf32", "bfloat16"):
            functions[f"structured contiguous, {precision}"] = candidate(
                {**structured, "precision": precision}, 1
            )
        found = in_turn(functions, args.rounds)
        base = found["bare torch loop"]
        rows += [
            {"d": d, "h": h, "C": c, "batch": batch, "candidate": name}
            | _with_ratio(value, base)
            for name, value in found.items()
        ]
        print_table(
            rows[-len(found) :], ["d", "h", "C", "batch", "candidate", "us", "to_bare"]
        )
    return rows


def _with_ratio(value, base):
    if isinstance(value, str):
        return {"us": value}
    return {"us": value, "to_bare": None if isinstance(base, str) else value / base}


def load(args):
    """Time fits of two and of four epochs; the set-up is what is left of the first."""
    rows = []
    X, y = checks.make_data(args.rows, 512, 100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, X)
        kinds = {
            "array": X,
            "float64 array": X.astype(np.float64),
            "tensor on the device": torch.from_numpy(X).to(args.device),
            "memory map": np.load(path, mmap_mode="r"),
        }
        for name, data in kinds.items():

            def fit(n_epochs, data=data):
                model = make_estimator(
                    args.device,
                    hidden_layer_sizes=(32,),
                    prune="structured",
                    max_iter=n_epochs,
                    batch_size=min(16_384, args.rows),
                )
                return timed(lambda: model.fit(data, y), args.device)

            two, four = in_turn(
                {"two": lambda: fit(2), "four": lambda: fit(4)}, args.rounds
            ).values()
            if isinstance(two, str):
                rows.append({"X": name, "error": two})
                continue
            epoch = (four - two) / 2
            rows.append(
                {"X": name, "rows": args.rows, "epoch_s": epoch}
                | {"setup_s": two - 2 * epoch}
            )
    show(rows, ["X", "rows", "epoch_s", "setup_s"])
    return rows


def predict(args):
    """Time predictions in rows per second."""
    rows = []
    for h, c in ((32, 100), (256, 1000)):
        X, y = checks.make_data(args.rows, 512, c)
        model = make_estimator(
            args.device, hidden_layer_sizes=(h,), prune="structured", max_iter=2
        )
        model.fit(X[:4096], y[:4096] % c)
        there = torch.from_numpy(X).to(args.device)
        functions = {
            "predict an array": lambda m=model, x=X: m.predict(x),
            "predict a tensor on the device": lambda m=model, x=there: m.predict(x),
            "predict_proba of an array": lambda m=model, x=X: m.predict_proba(x),
            "predict one row": lambda m=model, x=X[:1]: m.predict(x),
        }
        found = in_turn(
            {
                name: lambda f=function: timed(f, args.device)
                for name, function in functions.items()
            },
            2 * args.rounds,
        )
        for name, seconds in found.items():
            n = 1 if "one row" in name else len(X)
            rows.append({"h": h, "C": c, "what": name, "rows": n, "s": seconds})
            if not isinstance(seconds, str):
                rows[-1]["rows_per_s"] = n / seconds
    show(rows, ["h", "C", "what", "rows", "s", "rows_per_s"])
    return rows


def memory(args):
    """Measure the peak of the device's memory, in multiples of X; on CUDA only."""
    if torch.device(args.device).type != "cuda":
        return []
    rows = []
    X, y = checks.make_data(args.rows, 512, 100)
    for name in ("array", "tensor on the device"):
        data = X if name == "array" else torch.from_numpy(X).to(args.device)
        for candidate in ("structured contiguous", "default"):
            model = make_estimator(
                args.device, max_iter=2, expansion=8, **CANDIDATES[candidate]
            )
            row = {"X": name, "candidate": candidate}
            calls = {"fit": lambda m=model, x=data: m.fit(x, y)}
            calls["predict"] = lambda m=model, x=data: m.predict(x)
            for what, function in calls.items():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(args.device)
                before = torch.cuda.memory_allocated(args.device)
                function()
                peak = torch.cuda.max_memory_allocated(args.device) - before
                row[f"{what}_peak_in_X"] = peak / X.nbytes
            rows.append(row)
    show(rows, ["X", "candidate", "fit_peak_in_X", "predict_peak_in_X"])
    return rows


def correct(args):
    """Check results; print those that failed."""
    rows = checks.correctness(args.device)
    failed = [row for row in rows if not row["passed"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed")
    for row in failed:
        print("  failed:", row)
    return rows


def waits(args):
    """Count waits, see :func:`checks.waits`."""
    rows = checks.waits(args.device, lambda **s: make_estimator(args.device, **s))
    show(rows, ["what", "waits"])
    return rows


def kernels(args):
    """Count kernels, see :func:`checks.kernels`."""
    rows = checks.kernels(args.device, lambda **s: make_estimator(args.device, **s))
    show(rows, ["split", "prune", "kernels_per_step"])
    return rows


PARTS = {
    function.__name__: function
    for function in (correct, waits, kernels, steps, load, predict, memory)
}


def parse(arguments=None):
    """Read the command line; choose sizes by device and --quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and small cases")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int, help="of load, predict and memory")
    parser.add_argument("--json", default="benchmarks/results/device.json")
    args = parser.parse_args(arguments)
    on_cpu = torch.device(args.device).type == "cpu"
    args.cells = [CELLS[-1]] if on_cpu else CELLS[: 2 if args.quick else None]
    args.steps_per_epoch = 8 if on_cpu else 50
    args.epochs = (3, 6) if on_cpu else (10, 30)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.rows = args.rows or (4096 if on_cpu else 65_536 if args.quick else 1_300_000)
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts must be among {', '.join(PARTS)}, got {unknown}")
    return args


def main(arguments=None):
    """Run from the command line; return whether a check failed."""
    args = parse(arguments)
    warnings.simplefilter("ignore")  # expansions above the budget
    results = {}
    for name in args.parts.split(","):
        print(f"== {name}", flush=True)
        try:
            results[name] = PARTS[name](args)
        except Exception:  # the other parts are still worth having
            results[name] = [{"error": traceback.format_exc()}]
            print(results[name][0]["error"])
        write_json(args.json, [], vars(args), **results)
    rows = [row for part in results.values() for row in part]
    return any("error" in row or not row.get("passed", True) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
