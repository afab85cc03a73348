"""A split that training finds: epochs, rows, clauses, interference.

Formulas of 8 clauses of 4 literals among 32 variables are learned by 8 neurons,
expanded by 2. Drawn splits decide before the pruning which child reads which input;
the *learned* split starts with all inputs in every child and prunes gradually. The
epochs vary with 8000 rows, and the rows vary with 50 epochs. Every method has the same
number of non-zeros and, in every cell, its own learning rate of three, chosen on
validation rows of the first formula; weight decay is 0.1. Every seed is another
formula, and a rate that suits the first one can fail on another: spreads are large.

*Coverage* is the share of the clauses that some child reads whole, *collisions* the
pairs of clauses that one child reads whole, per neuron, *capacity* the mean feature
capacity of the inputs (1: no interference), all of the trained network with most rows.
"""

from scipy.stats import spearmanr

from benchmarks.experiments import boolean
from benchmarks.experiments._claims import Claim, Table, listed, subplots, verdict
from benchmarks.experiments._grid import (
    mean,
    run_tuned,
    show,
    spread,
    tuned_tree,
)
from benchmarks.experiments._tasks import make_task
from benchmarks.experiments._training import fit_fpe, report
from sklearn_fpe.inspection import (
    clause_collisions,
    clause_coverage,
    feature_capacity,
)

TITLE = "A split that training finds"
METHODS = {
    "dense": {"expansion": 1, "split": "random"},
    "random": {"expansion": 2, "split": "random"},
    "shared": {"expansion": 2, "split": "shared"},
    "feature": {"expansion": 2, "split": "feature"},
    "clause-aware": {"expansion": 2, "split": "groups"},
    "learned": {"expansion": 2, "split": "learned", "prune": "gradual"},
}
TASK = boolean.TASK | {"n_variables": 32}
FIT = {"warmup": 0.1, "batch_size": 128, "weight_decay": 0.1}
RATES = (1e-2, 3e-2, 1e-1)
EPOCHS, ROWS = (10, 25, 50, 100, 200), (1000, 2000, 4000, 8000, 16000)
OTHER = {"epochs": 50, "rows": 8000}
"""The size that does not vary."""

N_SEEDS = 5
FOUND = 0.9
RANK = 0.7
"""Rank correlation from which on interference counts as explaining accuracy."""


def run(quick, data=None, n_jobs=1):
    sweeps = {"epochs": EPOCHS[:2], "rows": ROWS[:2]} if quick else None
    jobs = [
        {"sweep": sweep, "value": value, "method": method}
        for sweep, values in (sweeps or {"epochs": EPOCHS, "rows": ROWS}).items()
        for value in values
        for method in METHODS
    ]
    rates, n_seeds = (RATES[:1], 1) if quick else (RATES, N_SEEDS)
    return {"rows": run_tuned(measure, jobs, n_seeds, n_jobs, data, rates)}


def measure(sweep, value, method, lr, seed, data=None):
    """Train one network on the formula of a seed."""
    sizes = OTHER | {sweep: value}
    task = make_task("boolean", seed=seed, n_train=sizes["rows"], **TASK)
    own = dict(METHODS[method])
    expansion = own.pop("expansion")
    settings = FIT | {"epochs": sizes["epochs"], "lr": lr, "seed": seed}
    network = fit_fpe(task, (8,), expansion, **own, **settings)
    return report(network, task) | {
        "coverage": clause_coverage(network, task.formula),
        "collisions": clause_collisions(network, task.formula),
        "capacity": float(feature_capacity(network).mean()),
    }


def _curves(result):
    """Return {sweep: {method: {value: rows of the tuned setting}}}."""
    return tuned_tree(result["rows"], "sweep", "method", "value")


def _at_most_rows(result):
    """Return {method: rows} where the most rows were trained on."""
    curves = _curves(result)["rows"]
    return {m: curves[m][max(curves[m])] for m in METHODS}


def plot(result):
    figure, axes = subplots(2, sharey=True)
    labels = {"epochs": "Epochs, 8000 rows", "rows": "Training rows, 50 epochs"}
    for ax, sweep in zip(axes, labels, strict=True):
        for i, method in enumerate(METHODS):
            curve = _curves(result)[sweep][method]
            ax.errorbar(
                list(curve),
                [mean(rows) for rows in curve.values()],
                [spread(rows) for rows in curve.values()],
                label=method,
                color=f"C{i}",
                marker="o",
                ms=3,
                lw=1,
            )
        ax.set_xscale("log")
        ax.set_xticks(list(curve), [str(value) for value in curve])
        ax.minorticks_off()
        ax.set(xlabel=labels[sweep])
    axes[0].set(ylabel="Test accuracy (%)", ylim=(None, 101))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def tables(result):
    found = []
    for sweep in ("epochs", "rows"):
        curves = _curves(result)[sweep]
        rows = [
            [str(value), *(show(curve[value]) for curve in curves.values())]
            for value in curves["dense"]
        ]
        caption = f"Test accuracy in % by {sweep}, {_n_seeds(result)} seeds."
        found.append(Table(caption, [sweep, *METHODS], rows))
    names = ("coverage", "collisions", "capacity")
    rows = [
        [method, show(rows), *(f"{mean(rows, name):.2f}" for name in names)]
        for method, rows in _at_most_rows(result).items()
    ]
    header = ["method", "test accuracy, %", *names]
    return [*found, Table("Clauses and interference, most rows.", header, rows)]


def _n_seeds(result):
    return len({row["seed"] for row in result["rows"]})


def claims(result):
    return [_gap(result), _clauses(result), _interference(result)]


def _gap(result):
    curves = _curves(result)["epochs"]
    n_epochs = max(curves["dense"])
    most = {method: curves[method][n_epochs] for method in METHODS}
    gap = mean(most["random"]) - mean(most["dense"])
    larger = max(spread(most["random"]), spread(most["dense"]))
    return Claim(
        "The gain of a random split lasts with long training",
        "gains are reported without a study of the length of training",
        "Holds if with most epochs the random split is above dense by more than the "
        "larger seed spread; partly if it is above.",
        verdict(gap > larger, gap > 0),
        f"After {n_epochs} epochs dense has {show(most['dense'])} %, random "
        f"{show(most['random'])} %, clause-aware {show(most['clause-aware'])} %, "
        f"learned {show(most['learned'])} %.",
    )


def _clauses(result):
    found = _at_most_rows(result)
    coverage = {m: mean(rows, "coverage") for m, rows in found.items()}
    collisions = {m: mean(rows, "collisions") for m, rows in found.items()}
    covers = coverage["learned"] >= FOUND
    parts = listed([f"{coverage[m]:.2f} and {collisions[m]:.2f} ({m})" for m in found])
    return Claim(
        "A learned split finds the clauses",
        "not claimed by the paper",
        f"Holds if children of the learned split cover at least {FOUND:g} of the "
        "clauses and fewer pairs collide in them than in dense neurons; partly if one "
        "of the two.",
        verdict(
            covers and collisions["learned"] < collisions["dense"],
            covers or collisions["learned"] < collisions["dense"],
        ),
        f"Coverage and collisions are {parts}.",
    )


def _interference(result):
    found = _at_most_rows(result)
    capacity = [mean(rows, "capacity") for rows in found.values()]
    accuracy = [mean(rows) for rows in found.values()]
    rank = float(spearmanr(capacity, accuracy).statistic)
    above = mean(found["learned"], "capacity") > mean(found["dense"], "capacity")
    return Claim(
        "Less interference explains the gain of a learned split",
        "interference falls when neurons are expanded",
        "Holds if the capacity of the learned split is above that of the dense network "
        f"and capacity and accuracy of the {len(found)} methods have a rank "
        f"correlation of at least {RANK:g}; partly if one of the two.",
        verdict(above and rank >= RANK, above or rank >= RANK),
        f"The rank correlation is {rank:.2f}. The learned split has a capacity of "
        f"{mean(found['learned'], 'capacity'):.2f}, the dense network "
        f"{mean(found['dense'], 'capacity'):.2f}, the clause-aware split "
        f"{mean(found['clause-aware'], 'capacity'):.2f}.",
    )
