"""Depth.

Nets of one to five hidden layers of the same width, dense and expanded by 4 in every
layer (split ``"shared"``, a tenth of the epochs as warm-up) at the same number of
non-zeros, each at its own best learning rate, chosen on validation rows as in the
section on embeddings.
"""

from benchmarks.experiments._claims import Claim, Table, listed, of_all, subplots
from benchmarks.experiments._grid import (
    LEARNING_RATES,
    mean,
    product,
    run_tuned,
    show,
    spread,
    tuned_tree,
)
from benchmarks.experiments._tasks import make_task, real_tasks, schedule
from benchmarks.experiments._training import fit_fpe, report

TITLE = "Depth"
EXPANSION = 4
NEURONS = {"digits": 8, "glyphs": 16}


def run(quick, data=None, n_jobs=1):
    jobs = product(
        task=real_tasks(data),
        depth=[1, 3] if quick else [1, 2, 3, 4, 5],
        expansion=[1, EXPANSION],
        quick=[quick],
    )
    rates, n_seeds = (LEARNING_RATES[2:3], 1) if quick else (LEARNING_RATES, 5)
    return {"rows": run_tuned(measure, jobs, n_seeds, n_jobs, data, rates)}


def measure(task, depth, expansion, lr, seed, quick, data=None):
    """Train one network."""
    settings = schedule(task, quick) | {"lr": lr, "seed": seed, "warmup": 0.1}
    hidden = (NEURONS[task],) * depth
    task = make_task(task, data=data)
    return report(fit_fpe(task, hidden, expansion, **settings), task)


def _curves(result):
    """Return {task: {depth: {expansion: rows}}}."""
    return tuned_tree(result["rows"], "task", "depth", "expansion")


def plot(result):
    curves = _curves(result)
    figure, axes = subplots(len(curves))
    for ax, (task, curve) in zip(axes, curves.items(), strict=True):
        for i, expansion in enumerate([1, EXPANSION]):
            means = [mean(best[expansion]) for best in curve.values()]
            spreads = [spread(best[expansion]) for best in curve.values()]
            label = "dense" if expansion == 1 else f"expansion {expansion}"
            ax.errorbar(
                list(curve), means, spreads, fmt="o-", color=f"C{i}", label=label
            )
        ax.set_xticks(list(curve))
        ax.set(title=f"{task}, {NEURONS[task]} neurons a layer", xlabel="Hidden layers")
    axes[0].set(ylabel="Test accuracy (%)")
    axes[0].legend()
    return figure


def tables(result):
    curves = _curves(result)
    rows = [
        [f"{task}, {depth} hidden", show(best[1]), show(best[EXPANSION])]
        for task, curve in curves.items()
        for depth, best in curve.items()
    ]
    n_seeds = len({row["seed"] for row in result["rows"]})
    header = ["case", "dense", f"expansion {EXPANSION}"]
    return [Table(f"Test accuracy in %, {n_seeds} seeds.", header, rows)]


def claims(result):
    gain, wins = {}, []
    for task, curve in _curves(result).items():
        gain[task] = [mean(b[EXPANSION]) - mean(b[1]) for b in curve.values()]
        wins += [
            mean(b[EXPANSION]) - mean(b[1]) > max(spread(b[1]), spread(b[EXPANSION]))
            for depth, b in curve.items()
            if depth > 1
        ]
    depths = list(next(iter(_curves(result).values())))
    text = listed([f"{listed(g, '{:+.1f}')} ({task})" for task, g in gain.items()])
    return [
        Claim(
            "Deeper networks gain",
            "5-layer MLP on ImageNet-1k embeddings gains",
            "Holds if at every depth above 1 the expanded net beats dense by more than "
            "the larger seed spread of the two; partly if at some.",
            of_all(wins),
            f"With {listed(depths)} hidden layers, expansion {EXPANSION} gains {text} "
            "points.",
        )
    ]
