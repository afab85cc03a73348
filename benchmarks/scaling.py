"""One fit on several processes: rows per second, and what adding the gradients costs.

    python -m benchmarks.scaling [--processes 1 2] [--json PATH]

Every process has one thread and the same number of rows. A batch is measured in two
ways: of the same rows together, which the processes share, and of the same rows each,
so that it grows with the processes. The share of the all-reduce is its part of the
time of an epoch, the wait for the slowest process included.

Larger worlds are simulated, not measured. A step takes as long as the slowest of the
processes, and as a ring all-reduce: in a world of P processes, 2 (P - 1) messages of
n / P numbers one after another, each of which takes a latency and its bytes divided by
the bandwidth. The times of steps are drawn from the CPU times of those of one process,
because others may have used the cores of this machine meanwhile. Latency and bandwidth
are fitted to the measured all-reduce of two processes of this machine; for other
networks they are assumptions, which the file names.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from benchmarks._report import print_table, write_json
from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine._net import Net

CELLS = [(512, 32, 100), (512, 256, 100)]
"""Inputs, parents and classes."""

NETWORKS = {
    "default": {},
    "structured, contiguous": {"split": "contiguous", "prune": "structured"},
}
"""Settings of the estimator by name."""

LENGTHS = [10**3, 10**4, 10**5, 10**6, 4 * 10**6]
"""Numbers in a vector whose all-reduce is measured."""

ASSUMED = {
    "10 Gbit/s Ethernet": {"latency_s": 50e-6, "bytes_per_s": 1.25e9},
    "200 Gbit/s InfiniBand": {"latency_s": 5e-6, "bytes_per_s": 25e9},
}
"""Networks that are not here."""

WORLDS = [2, 4, 8, 16, 32, 64, 128, 256]
SIMULATED_STEPS = 200

ESTIMATE = {
    "rows": 10**9,
    "bytes_per_number": 2,
    "disk_bytes_per_s": 500e6,
    "network": "10 Gbit/s Ethernet",
    "processes": [16, 64, 256],
}
"""What the estimate for many rows assumes; the rest of it is measured."""


# --------------------------------------------------------------------------------------
# In a process
# --------------------------------------------------------------------------------------


def timed_fit(cell, settings, args, rank, size, batch_size):
    """Fit; return seconds of the steps, of their all-reduces, and of the epochs."""
    d, h, c = cell
    rng = np.random.default_rng(rank)
    X = rng.standard_normal((args.rows, d), dtype=np.float32)
    y = rng.integers(0, c, args.rows)
    y[:c] = np.arange(c)
    steps, cpu, sums, lengths = [], [], [], []
    train_step, all_reduce = Net.train_step, dist.all_reduce

    def timed_step(self, batch, **kwargs):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = train_step(self, batch, **kwargs)
        steps.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        return result

    def timed_sum(vector, **kwargs):
        start = time.perf_counter()
        all_reduce(vector, **kwargs)
        sums.append(time.perf_counter() - start)
        lengths.append(vector.numel())

    model = FPEClassifier(
        (h,),
        max_iter=args.epochs,
        warmup=1,
        batch_size=batch_size,
        random_state=0,
        device="cpu",
        distributed=size > 1,
        **settings,
    )
    with (
        mock.patch.object(Net, "train_step", timed_step),
        mock.patch.object(dist, "all_reduce", timed_sum),
    ):
        model.fit(X, y)
    # The first epoch is the dense warm-up.
    first = len(steps) // args.epochs
    return {
        "step_s": steps[first:],
        "cpu_s": cpu[first:],
        "sum_s": sums[first:],
        "numbers": lengths[-1] if lengths else None,
        "n_nonzero": model.n_nonzero_,
    }


def measure_messages(args):
    """Return the median time of the all-reduce of vectors of several lengths."""
    found = {}
    for n in LENGTHS:
        vector = torch.ones(n)
        times = []
        for _ in range(args.messages):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(vector)
            times.append(time.perf_counter() - start)
        found[n] = statistics.median(times)
    return found


def run_process(args):
    """Measure all there is in one of the processes, and store it."""
    rank, size, folder = args.rank, args.size, Path(args.folder)
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo",
            init_method=(folder / "rendezvous").resolve().as_uri(),
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=600),
        )
    found = {"messages": measure_messages(args) if size == 2 else None}
    batches = {"together": args.batch_size}
    if size > 1:
        batches["each"] = args.batch_size * size
    else:  # what a process does in a world whose batch is shared
        batches |= {f"1/{n}": args.batch_size // n for n in (2, 4, 8, 16)}
    found["rounds"] = [
        [
            {"cell": cell, "network": network, "batch": batch, "batch_size": batch_size}
            | timed_fit(cell, settings, args, rank, size, batch_size)
            for cell in CELLS
            for network, settings in NETWORKS.items()
            for batch, batch_size in batches.items()
        ]
        for _ in range(args.repeats)
    ]
    (folder / f"{rank}.json").write_text(json.dumps(found))


# --------------------------------------------------------------------------------------
# Outside
# --------------------------------------------------------------------------------------


def run_world(size, args):
    """Run so many processes; return what each of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scaling", "--folder", folder]
        command += ["--size", str(size), "--rows", str(args.rows)]
        command += ["--epochs", str(args.epochs), "--messages", str(args.messages)]
        command += ["--batch-size", str(args.batch_size)]
        command += ["--repeats", str(args.repeats)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment)
            for rank in range(size)
        ]
        if any(process.wait() for process in processes):
            raise SystemExit("a process failed")
        paths = [Path(folder, f"{rank}.json") for rank in range(size)]
        return fastest([json.loads(path.read_text()) for path in paths])


def fastest(world):
    """Keep the fastest round of every fit, because others may use the cores, too."""
    rounds = [process.pop("rounds") for process in world]
    for process in world:
        process["fits"] = []
    for i in range(len(rounds[0][0])):
        seconds = [
            max(sum(of_process[r][i]["step_s"]) for of_process in rounds)
            for r in range(len(rounds[0]))
        ]
        best = int(np.argmin(seconds))
        for process, of_process in zip(world, rounds, strict=True):
            process["fits"].append(of_process[best][i])
    return world


def summary(size, world, link, args):
    """Return a row for every fit of a world: rows per second and shares of time."""
    rows = []
    for fits in zip(*(process["fits"] for process in world), strict=True):
        first = fits[0]
        n_epochs = args.epochs - 1
        seconds = max(sum(fit["step_s"]) for fit in fits)
        sums = statistics.mean(sum(fit["sum_s"]) for fit in fits)
        d, h, c = first["cell"]
        rows.append(
            {"d": d, "h": h, "C": c, "network": first["network"], "processes": size}
            | {"batch": first["batch"], "batch_size": first["batch_size"]}
            | {"steps": len(first["step_s"]), "numbers": first["numbers"]}
            | {"rows_per_s": size * args.rows * n_epochs / seconds}
            | {"step_ms": 1e3 * statistics.median(first["step_s"])}
            | {"cpu_ms": 1e3 * statistics.median(first["cpu_s"])}
            | {"all_reduce_share": sums / seconds if size > 1 else 0.0}
            | {"all_reduce_ms": 1e3 * statistics.median(first["sum_s"] or [0.0])}
            | {"message_ms": 1e3 * ring(first["numbers"] or 0, size, link)}
        )
    return rows


def fit_network(messages):
    """Return latency and bandwidth of a ring of two, fitted to all-reduce times.

    Such an all-reduce is two messages of half of the numbers. The relative error is
    minimised, because the times span orders of magnitude.
    """
    n = np.array([int(length) for length in messages], dtype=float)
    times = np.array(list(messages.values()))
    design = np.stack([np.full_like(n, 2), 4 * n], axis=1) / times[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)
    return {"latency_s": max(latency, 1e-6), "bytes_per_s": 1 / max(per_byte, 1e-12)}


def ring(numbers, size, network):
    """Return the seconds of a ring all-reduce of float32 numbers."""
    message = 4 * numbers / size / network["bytes_per_s"]
    return 2 * (size - 1) * (network["latency_s"] + message)


def simulate(size, step_times, numbers, network, rng):
    """Return the mean seconds of a step of a world."""
    draws = rng.choice(step_times, (SIMULATED_STEPS, size)).max(axis=1)
    return float(draws.mean()) + ring(numbers, size, network)


def simulations(one, numbers, networks, args):
    """Simulate worlds with the batch of each, for every network and cell."""
    rng = np.random.default_rng(0)
    rows = []
    for fit in one["fits"]:
        if fit["batch"] != "together":
            continue
        n = numbers[tuple(fit["cell"]), fit["network"]]
        times = np.array(fit["cpu_s"])
        for name, network in networks.items():
            for size in WORLDS:
                step = simulate(size, times, n, network, rng)
                d, h, c = fit["cell"]
                rows.append(
                    {"d": d, "h": h, "C": c, "network": fit["network"]}
                    | {"link": name, "processes": size, "numbers": n}
                    | {"rows_per_s": size * args.batch_size / step}
                    | {"speedup": size * times.mean() / step}
                    | {"all_reduce_share": ring(n, size, network) / step}
                )
    return rows


def estimates(one, numbers, networks, args):
    """Estimate an epoch over very many rows, by arithmetic."""
    rows = []
    network = networks[ESTIMATE["network"]]
    for fit in one["fits"]:
        if fit["batch"] != "together":
            continue
        d, h, c = fit["cell"]
        n = numbers[tuple(fit["cell"]), fit["network"]]
        for size in ESTIMATE["processes"]:
            n_steps = ESTIMATE["rows"] / (size * args.batch_size)
            compute = n_steps * float(np.mean(fit["cpu_s"]))
            part = ESTIMATE["rows"] / size * d * ESTIMATE["bytes_per_number"]
            rows.append(
                {"d": d, "h": h, "C": c, "network": fit["network"], "processes": size}
                | {"steps": n_steps, "compute_h": compute / 3600}
                | {"messages_h": n_steps * ring(n, size, network) / 3600}
                | {"reading_h": part / ESTIMATE["disk_bytes_per_s"] / 3600}
                | {"GB_on_disk": part / 1e9}
                | {"GB_sent": n_steps * 2 * (size - 1) / size * 4 * n / 1e9}
            )
    return rows


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    cores = os.cpu_count() or 1
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= max(2, cores)]
    parser.add_argument("--processes", type=int, nargs="+", default=sizes)
    parser.add_argument("--rows", type=int, default=256 * 24, help="of every process")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--messages", type=int, default=50, help="of every length")
    parser.add_argument("--json", default="benchmarks/results/scaling.json")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        run_process(args)
        return
    load = os.getloadavg()[0]
    worlds = {size: run_world(size, args) for size in sorted({1, 2, *args.processes})}
    messages = worlds[2][0]["messages"]
    link = fit_network(messages)
    networks = {"this machine": link, **ASSUMED}
    rows = []
    for size, world in worlds.items():
        rows += summary(size, world, link, args)
    print_table(rows, [*list(rows[0])])
    numbers = {
        (tuple(fit["cell"]), fit["network"]): fit["numbers"]
        for fit in worlds[2][0]["fits"]
    }
    simulated = simulations(worlds[1][0], numbers, networks, args)
    print_table(simulated, [*list(simulated[0])])
    estimated = estimates(worlds[1][0], numbers, networks, args)
    print_table(estimated, [*list(estimated[0])])
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("rank", "size", "folder")
    }
    write_json(
        args.json,
        rows,
        settings,
        load_before=load,
        messages=messages,
        links=networks,
        simulated=simulated,
        estimate={"assumptions": ESTIMATE, "rows": estimated},
    )


if __name__ == "__main__":
    main()
