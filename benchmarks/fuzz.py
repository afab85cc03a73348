"""Fuzz model files and calls of estimators, each from its own seed.

    python benchmarks/fuzz.py --files 100000 --calls 30000 --jobs 2 --json out.json
    python benchmarks/fuzz.py --replay file-0-123

Files are flipped, cut and spliced, or have other JSON and other arrays under a checksum
that fits; calls get malformed arrays, odd labels and odd parameters. A case passes if
what is wrong raises a documented error, and if whatever is let in is sound: it predicts
finite numbers, can be saved and comes back the same. It fails by any other exception or
warning, by NaN from finite rows, by code that runs while a file is loaded, by more
memory than the file's bytes allow, if it takes too long, or if the process dies.
"""

import argparse
import collections
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from functools import cache
from pathlib import Path

if __package__ in (None, ""):  # run by its path: this checkout is what is tested
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import _fuzz_calls, _fuzz_files, _fuzz_watch
from benchmarks._report import print_table, write_json
from sklearn_fpe import ModelFileError, load

LIMIT = 120
"""Seconds a case may take; cores may be shared with others."""

GRACE = 600
"""Seconds for a process to start and run its first case, before it counts as hung."""

KINDS = ("file", "call")


@cache
def audit():
    """Return the audit of this process."""
    return _fuzz_watch.Audit()


def load_or_refuse(path, measure):
    """Load a file, None if it is refused; return what it took of memory as well."""
    with warnings.catch_warnings(), measure() as peak:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(set to device='cpu'|saved by)")
        try:
            with audit().no_code():
                loaded = load(path)
        except ModelFileError:
            loaded = None
    return loaded, peak.n_bytes


def run_file(rng, folder):
    """Load a mutated file; check the error, or what was let in."""
    how, data = _fuzz_files.mutated_file(rng)
    path = folder / "model"
    path.write_bytes(data)
    # One of the two, because what a measurement takes itself is seen by the other.
    measure = (_fuzz_watch.memory_used, _fuzz_watch.memory_asked)[rng.integers(2)]
    loaded, n_bytes = load_or_refuse(path, measure)
    bound = _fuzz_watch.BYTES_PER_BYTE * len(data) + _fuzz_watch.SPARE_BYTES
    assert n_bytes <= bound, f"{len(data)} bytes took {n_bytes} bytes of memory"
    if loaded is None:
        return f"{how}: refused"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*set to device='cpu'")
        _fuzz_files.check_sound(loaded)
        _fuzz_files.check_saved_again(loaded, folder / "again")
    return f"{how}: sound"


def run_case(case, folder, limit=LIMIT):
    """Run one case, such as ``"file-0-123"``.

    Parameters
    ----------
    case : str
        Kind, seed and number.
    folder : Path
        Where files may be written.
    limit : float, default=120
        Seconds that it may take.

    Returns
    -------
    outcome : str
        What it did.
    failure : str or None
        What is wrong, the traceback; None if nothing is.
    """
    kind, seed, number = case.split("-")
    rng = np.random.default_rng([KINDS.index(kind), int(seed), int(number)])
    run = {"file": run_file, "call": _fuzz_calls.run_call}[kind]
    try:
        with _fuzz_watch.time_limit(limit):
            return run(rng, folder), None
    except (Exception, _fuzz_watch.Hang) as error:
        return f"FAILED: {describe(error)}", traceback.format_exc()
    finally:
        _fuzz_calls.clean(folder)


def describe(error):
    """Return what kind of error it is, and where it was raised, without numbers."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = frames[-1]
    for frame in reversed(frames):
        if "sklearn_fpe" in frame.filename or "benchmarks" in frame.filename:
            break
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"


# --------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------


def work(cases, connection, limit):
    """Run cases in a process of its own; say what each of them did."""
    import torch

    torch.set_num_threads(1)
    # What hides a failure of memory from the bound still must not take the machine.
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    except (ImportError, ValueError):
        pass
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        inner = Path(folder, "files")
        inner.mkdir()
        warm_up(inner)
        # A measurement collects garbage, and need not look at what stays anyway.
        gc.freeze()
        for case in cases:
            connection.send((case, *run_case(case, inner, limit)))
    connection.send(None)
    connection.close()


def warm_up(folder):
    """Import what is imported late, so that it does not count as memory or as code."""
    model, arrays = _fuzz_files.described_models()["features"]
    for data in (_fuzz_files.pack(model, arrays), b"no model"):
        (folder / "model").write_bytes(data)
        try:
            loaded = load(folder / "model")
            _fuzz_files.check_sound(loaded)
            _fuzz_files.check_saved_again(loaded, folder / "again")
        except ModelFileError:
            pass
    _fuzz_calls.clean(folder)


def supervise(cases, limit, report):
    """Have a process run cases; go on in a new one after a case that kills it."""
    context = multiprocessing.get_context("spawn")
    while cases:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(cases, theirs, limit))
        process.start()
        theirs.close()
        done, what = 0, "the process did not end"
        try:
            wait = GRACE
            while ours.poll(wait):
                answer, wait = ours.recv(), 2 * limit + 5
                if answer is None:
                    done = len(cases)
                    break
                report(*answer)
                done += 1
        except EOFError:
            process.join()
            what = f"the process died with exit code {process.exitcode}"
        if done < len(cases):
            process.kill()
            report(cases[done], f"FAILED: {what.split(' with')[0]}", what)
            done += 1
        process.join()
        cases = cases[done:]


def run(cases, jobs, limit):
    """Run cases in several processes; return outcomes and failures."""
    outcomes, failures = collections.Counter(), []
    started, lock = time.perf_counter(), threading.Lock()

    def report(case, outcome, failure):
        with lock:
            outcomes[case.split("-")[0], outcome] += 1
            if failure is not None:
                failures.append({"case": case, "outcome": outcome, "error": failure})
                print(f"{case}  {outcome}", flush=True)
            n = outcomes.total()
            if n % 1000 == 0:
                seconds = time.perf_counter() - started
                print(f"{n} of {len(cases)} cases, {seconds:.0f} s", flush=True)

    threads = [
        threading.Thread(target=supervise, args=(cases[job::jobs], limit, report))
        for job in range(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, failures


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a case")
    parser.add_argument("--json", help="where to store counts and failures")
    parser.add_argument("--replay", metavar="CASE", help="run one case, file-0-123")
    args = parser.parse_args()
    if args.replay:
        with tempfile.TemporaryDirectory() as folder:
            warm_up(Path(folder))
            outcome, failure = run_case(args.replay, Path(folder), args.limit)
        print(outcome, failure or "", sep="\n")
        return failure is not None
    cases = [
        f"{kind}-{args.seed}-{args.first + i}"
        for kind, n in (("file", args.files), ("call", args.calls))
        for i in range(n)
    ]
    outcomes, failures = run(cases, args.jobs, args.limit)
    rows = [
        {"kind": kind, "outcome": outcome, "n": n}
        for (kind, outcome), n in sorted(outcomes.items())
    ]
    print_table(rows, ["kind", "outcome", "n"])
    print(f"{len(cases)} cases, {len(failures)} failures")
    if args.json:
        write_json(args.json, rows, vars(args), failures=failures)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
