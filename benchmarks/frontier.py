"""Test accuracy of the public estimators at equal non-zero parameters.

    python -m benchmarks.frontier --data GLYPHS.npz --text WORDNET.npz [--quick]

With ``--tasks``, ``--hidden`` or ``--methods``, other results stay in the file that is
written. A data file holds X_train, y_train, X_test, y_test.

No method has more non-zeros than a dense network of h hidden neurons, biases included,
but for the full linear probe and the dense network with twice the parameters. Every
method is tuned over the same grid of learning rates and weight decays, on every task:
they are chosen on a fifth of the training rows, held out, by the mean accuracy of the
first seeds and, among equals, by log loss, after training on the other four fifths. The
network is then trained on all training rows, once per seed, and scored on the test
rows. "defaults" is the estimator as it is, with its own epochs, batches, rate and
decay: nothing was chosen for it here; see NOTES for how the defaults came about.

With ``--keep-tries``, settings that the file has are not tried again; the networks of
all seeds are trained anew.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

from benchmarks._frontier import (
    FULL_PROBE,
    METHODS,
    NOT_TUNED,
    PRUNED_PROBE,
    TASKS,
    measure,
)
from benchmarks._report import print_table, write_json

RATES = (1e-2, 2e-2, 5e-2, 1e-1)
DECAYS = (0.0, 0.1, 0.3, 1.0)
"""Every method is tuned over all pairs of these, on every task."""

EDGE = (3.0,)
"""More decays, which are tried where the largest of DECAYS is the best."""

NOTES = (
    "The constants in the estimators' automatic learning rate and weight decay were "
    "chosen on the rows held out for tuning, but after test scores of earlier defaults "
    "on these data sets had been seen, so the rows 'defaults' are somewhat optimistic.",
)

KEPT = ("accuracy", "loss", "seconds", "n_rows")
"""What the file says of every setting that was tried."""

AT_32 = (PRUNED_PROBE, "dense + skip", "shared + skip", "learned + skip")
"""Methods that are run with 32 parents, which takes longest."""


def settings_of(quick, edge=()):
    """Return the learning rates and weight decays to choose from."""
    rates, decays = (RATES[2:3], DECAYS[:2]) if quick else (RATES, DECAYS + edge)
    return [
        {"learning_rate_init": rate, "weight_decay": decay}
        for rate, decay in itertools.product(rates, decays)
    ]


def cases_of(task, quick):
    """Return the jobs of a task without a setting and a seed."""
    widths = TASKS[task]["hidden"]
    # The full probe is the same for every number of neurons.
    return [
        {"task": task, "h": h, "method": method}
        for h in widths[: 1 if quick else None]
        for method in (AT_32 if h == 32 else METHODS)
        if h == widths[0] or method != FULL_PROBE
    ]


def run(jobs, paths, n_jobs):
    """Measure jobs in parallel, one thread each."""
    with parallel_config("loky", inner_max_num_threads=1):
        return Parallel(n_jobs=n_jobs, batch_size=1, verbose=1)(
            delayed(measure)(job, paths.get(job["task"])) for job in jobs
        )


def tune(case, paths, args, tries):
    """Return all settings that were tried for a case, with their measurements.

    `tries` are those that are known. Where the largest decay of the grid is the best,
    the larger ones of EDGE are tried as well.
    """
    n_seeds = 1 if args.quick else TASKS[case["task"]]["tuning_seeds"]
    tries = [t for t in tries if t.get("n_seeds") == n_seeds]
    for edge in ((), EDGE):
        if edge and (args.quick or _best(tries)["weight_decay"] != DECAYS[-1]):
            break
        known = [_setting(t) for t in tries]
        new = [s for s in settings_of(args.quick, edge) if s not in known]
        jobs = [
            case | {"setting": setting, "seed": seed, "tune": True}
            for setting in new
            for seed in range(n_seeds)
        ]
        measured = run(jobs, paths, args.jobs)
        for k, setting in enumerate(new):
            of_setting = measured[k * n_seeds : (k + 1) * n_seeds]
            means = {n: statistics.mean(m[n] for m in of_setting) for n in KEPT}
            means = {name: round(value, 4) for name, value in means.items()}
            tries.append(setting | means | {"n_seeds": n_seeds})
    return tries


def _best(tries):
    return max(tries, key=lambda t: (t["accuracy"], -t["loss"]))


def _setting(row):
    return {name: row[name] for name in ("learning_rate_init", "weight_decay")}


def summarize(case, setting, tries, measured):
    """Return the row of a case."""
    scores = [round(m["accuracy"], 4) for m in measured]
    return case | {
        "accuracy": statistics.mean(scores),
        "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "n_nonzero": max(m["n_nonzero"] for m in measured),
        **setting,
        "seconds": round(statistics.median(m["seconds"] for m in measured), 3),
        "scores": scores,
        "tuning": tries,
    }


def measure_case(case, paths, args, tries):
    """Choose the setting of a case, train it with every seed, and return its row."""
    setting = {}
    if case["method"] in NOT_TUNED:
        tries = []
    else:
        tries = tune(case, paths, args, tries)
        setting = _setting(_best(tries))
    seeds = range(1 if args.quick else TASKS[case["task"]]["seeds"])
    jobs = [case | {"setting": setting, "seed": seed, "tune": False} for seed in seeds]
    return summarize(case, setting, tries, run(jobs, paths, args.jobs))


def measured_before(args):
    """Return the rows that a file already has, and the names of the data files."""
    path = Path(args.json)
    found = json.loads(path.read_text()) if path.exists() else None
    if found is None or found["settings"]["quick"] != args.quick:
        return {}, {}
    rows = {position(row): row for row in found["rows"]}
    return rows, found["settings"].get("files", {})


def position(row):
    """Return where a row stands in the file."""
    return list(TASKS).index(row["task"]), row["h"], [*METHODS].index(row["method"])


def main(arguments=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", help="image embeddings (.npz); left out without a file")
    add("--text", help="text embeddings (.npz); left out without a file")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--hidden", nargs="+", type=int, help="only these numbers of neurons")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--keep-tries", action="store_true", help="try no setting twice")
    add("--quick", action="store_true", help="one seed, one width, two settings")
    add("--jobs", type=int, default=2, help="processes (default: 2)")
    add("--json", default="benchmarks/results/frontier.json")
    args = parser.parse_args(arguments)
    paths = {"glyphs": args.data, "text": args.text}
    rows, files = measured_before(args)
    files |= {name: Path(path).name for name, path in paths.items() if path}
    known = [task for task in args.tasks if paths.get(task, task) is not None]
    columns = ["task", "h", "method", "accuracy", "spread", "n_nonzero"]
    columns += ["learning_rate_init", "weight_decay", "seconds"]
    for case in [case for task in known for case in cases_of(task, args.quick)]:
        if args.hidden and case["h"] not in args.hidden:
            continue
        if case["method"] not in args.methods:
            continue
        tries = rows.get(position(case), {}).get("tuning") or []
        row = measure_case(case, paths, args, tries if args.keep_tries else [])
        print_table([row], columns)
        rows[position(row)] = row
        # After every case, so that an interrupted run leaves what it has.
        write_json(args.json, [rows[k] for k in sorted(rows)], settings(files, args))


def settings(files, args):
    """Return what the file says of how its rows were made."""
    return {
        "files": files,
        "quick": args.quick,
        "jobs": args.jobs,
        "rates": RATES,
        "decays": DECAYS,
        "edge": EDGE,
        "notes": NOTES,
        "tasks": TASKS,
    }


if __name__ == "__main__":
    main()
