"""When to split.

The share of the epochs before the split varies, all else stays. The learning rate is
constant, so that a late split is not also one at a small learning rate; on data of
real values it is the best of four for every point, chosen on validation rows with
the first seed, on Boolean formulas (8 clauses of 4 literals, 8 neurons) it is 0.003.
"""

from scipy.stats import spearmanr

from benchmarks.experiments import boolean
from benchmarks.experiments._claims import Claim, Table, listed, of_all, subplots
from benchmarks.experiments._grid import (
    LEARNING_RATES,
    mean,
    product,
    run_tuned,
    show,
    spread,
    tuned,
)
from benchmarks.experiments._tasks import make_task, real_tasks, schedule
from benchmarks.experiments._training import fit_fpe, report

TITLE = "When to split"
WARMUPS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
SIZES = {"boolean": (8, 2), "digits": (4, 4), "glyphs": (8, 4)}
"""Neurons and expansion."""


def run(quick, data=None, n_jobs=1):
    warmups = (0.1, 0.75) if quick else WARMUPS
    rates, n_seeds = (LEARNING_RATES[2:3], 1) if quick else (LEARNING_RATES, 6)
    rows = []
    for task in ["boolean", *real_tasks(data)]:
        jobs = product(task=[task], warmup=[None, *warmups], quick=[quick])
        of_task = [boolean.FIT["lr"]] if task == "boolean" else rates
        rows += run_tuned(measure, jobs, n_seeds, n_jobs, data, of_task)
    return {"rows": rows}


def measure(task, warmup, lr, seed, quick, data=None):
    """Train one network; a warm-up of None is the dense net."""
    neurons, expansion = SIZES[task]
    settings = {"lr": lr, "seed": seed, "constant": True, "split": "random"}
    if task == "boolean":
        settings |= {"epochs": 5 if quick else 40, "batch_size": 128}
        task = make_task("boolean", seed=seed, **boolean.TASK)
    else:
        settings |= schedule(task, quick)
        task = make_task(task, data=data)
    if warmup is None:
        warmup, expansion = 0.1, 1
    return report(fit_fpe(task, (neurons,), expansion, warmup=warmup, **settings), task)


def _curves(result):
    """Return {task: {warmup: rows}}, the dense net under None."""
    curves = {}
    for (task, warmup), rows in tuned(result["rows"], "task", "warmup").items():
        curves.setdefault(task, {})[warmup] = rows
    return curves


def _split(curve):
    return {warmup: rows for warmup, rows in curve.items() if warmup is not None}


def plot(result):
    curves = _curves(result)
    figure, axes = subplots(len(curves))
    for ax, (task, curve) in zip(axes, curves.items(), strict=True):
        split = _split(curve)
        means, spreads = zip(
            *((mean(r), spread(r)) for r in split.values()), strict=True
        )
        ax.errorbar(
            [100 * w for w in split], means, spreads, fmt="o-", label="expanded"
        )
        ax.axhline(mean(curve[None]), color="k", ls="--", label="dense")
        ax.set(title=task, xlabel="Epochs before the split (%)")
    axes[0].set(ylabel="Test accuracy (%)")
    axes[0].legend()
    return figure


def tables(result):
    curves = _curves(result)
    warmups = list(_split(next(iter(curves.values()))))
    rows = [
        [task, show(curve[None]), *(show(curve[w]) for w in warmups)]
        for task, curve in curves.items()
    ]
    header = ["task", "dense", *(f"{w:.0%}" for w in warmups)]
    return [
        Table("Test accuracy in % against the share of epochs before.", header, rows)
    ]


def claims(result):
    curves = _curves(result)
    rank, late = {}, {}
    for task, curve in curves.items():
        split = _split(curve)
        means = [mean(rows) for rows in split.values()]
        rank[task] = float(spearmanr(list(split), means).statistic)
        latest = split[max(split)]
        late[task] = mean(latest) - mean(curve[None])
    best = {
        task: max(_split(curve), key=lambda w, c=curve: mean(c[w]))
        for task, curve in curves.items()
    }
    latest = max(w for curve in curves.values() for w in _split(curve))
    return [
        Claim(
            "An earlier split is better",
            "earlier split is better",
            "Holds if warm-up and accuracy have a rank correlation of −0.7 or less on "
            "every task; partly if on some.",
            of_all([r <= -0.7 for r in rank.values()]),
            "The rank correlation is "
            + listed([f"{r:.2f} ({task})" for task, r in rank.items()])
            + "; the best of the shares tried is "
            + listed([f"{w:.0%} ({task})" for task, w in best.items()])
            + ".",
        ),
        Claim(
            "A late split still beats dense",
            "late split still beats dense",
            f"Holds if a split after {latest:.0%} of the epochs is above dense on "
            "every task; partly if on some.",
            of_all([gain > 0 for gain in late.values()]),
            f"After {latest:.0%} of the epochs the split still gains "
            + listed([f"{g:+.1f} ({task})" for task, g in late.items()])
            + " points over dense.",
        ),
    ]
