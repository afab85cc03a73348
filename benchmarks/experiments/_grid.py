"""Run many small trainings, and bring what they measured together."""

from statistics import fmean, stdev

import torch
from joblib import Parallel, delayed

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates that every network of a real-valued task is tuned over."""


def run_jobs(function, jobs, n_jobs, data=None):
    """Call ``function(data=data, **job)`` for every job, in parallel.

    Returns the rows: each job, with what was measured of it.
    """
    if n_jobs == 1:
        measured = [function(data=data, **job) for job in jobs]
    else:
        parallel = Parallel(n_jobs=n_jobs)
        measured = parallel(delayed(_one_thread)(function, data, job) for job in jobs)
    return [job | row for job, row in zip(jobs, measured, strict=True)]


def run_tuned(
    function, jobs, n_seeds, n_jobs, data=None, rates=LEARNING_RATES, decays=None
):
    """Run jobs at every setting with the first seed, at the best one with the others.

    A setting is a learning rate and, if `decays` maps a job to several, a weight decay.
    Best is the highest validation accuracy; the test rows have no part in the choice.
    Every job gets the same effort; see :func:`tuned`.
    """
    choices = [
        [
            {"lr": rate} | decay
            for rate in rates
            for decay in (
                [{"weight_decay": d} for d in decays(job)] if decays else [{}]
            )
        ]
        for job in jobs
    ]
    tries = [
        job | choice | {"seed": 0}
        for job, of_job in zip(jobs, choices, strict=True)
        for choice in of_job
    ]
    first = run_jobs(function, tries, n_jobs, data)
    others, start = [], 0
    for job, of_job in zip(jobs, choices, strict=True):
        end = start + len(of_job)
        best = max(range(start, end), key=lambda i: first[i]["validation"])
        choice = of_job[best - start]
        others += [job | choice | {"seed": seed} for seed in range(1, n_seeds)]
        start = end
    return first + run_jobs(function, others, n_jobs, data)


def _one_thread(function, data, job):
    """Run a job in a worker process: nets are too small for two threads."""
    torch.set_num_threads(1)
    return function(data=data, **job)


def product(**values):
    """Return the jobs of a grid, the last name varying fastest."""
    jobs = [{}]
    for name, choices in values.items():
        jobs = [job | {name: choice} for job in jobs for choice in choices]
    return jobs


def group(rows, *names):
    """Group rows by the values of `names`, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def tuned(rows, *names):
    """Per group, keep the rows of the setting that was run with all seeds.

    Where several were, the one with the best mean validation accuracy.
    """
    return {
        key: max(
            _by_setting(of_key).values(),
            key=lambda rows: (len(rows), mean(rows, "validation")),
        )
        for key, of_key in group(rows, *names).items()
    }


def tuned_tree(rows, *names):
    """Return what :func:`tuned` does as dicts in dicts, the last name innermost."""
    found = {}
    for key, of_key in tuned(rows, *names).items():
        place = found
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = of_key
    return found


def _by_setting(rows):
    settings = {}
    for row in rows:
        key = row["lr"], row.get("weight_decay")
        settings.setdefault(key, []).append(row)
    return settings


def mean(rows, name="test"):
    return fmean(row[name] for row in rows)


def spread(rows, name="test"):
    """Return the standard deviation over seeds; 0 of a single seed."""
    return stdev(row[name] for row in rows) if len(rows) > 1 else 0.0


def gains(rows, baseline):
    """Return the differences of two groups, seed by seed, in points."""
    of_seed = {row["seed"]: row["test"] for row in baseline}
    return [row["test"] - of_seed[row["seed"]] for row in rows]


def show(rows):
    """Format mean ± standard deviation."""
    return f"{mean(rows):.1f} ± {spread(rows):.1f}"
