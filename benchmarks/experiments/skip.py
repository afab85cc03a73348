"""What expansion adds without a skip connection, and with one.

Networks with and without a skip connection are expanded by 1 (dense), 2, 4 and 8, with
the learned split and gradual pruning, and have the same number of non-zeros, that of
the dense network without a skip connection. Learning rate and weight decay are chosen
for every network on validation rows of the first seed, among six pairs. Every seed of
the Boolean task is another formula; the others have other initial weights and batches.
"""

from benchmarks.experiments import boolean
from benchmarks.experiments._claims import Claim, Table, listed, of_all, subplots
from benchmarks.experiments._grid import (
    mean,
    product,
    run_tuned,
    show,
    spread,
    tuned_tree,
)
from benchmarks.experiments._tasks import FROM_FILES, make_task, real_tasks, schedule
from benchmarks.experiments._training import fit_fpe, report

TITLE = "Expansion with and without a skip connection"
NEURONS = {"boolean": 8, "digits": 4, "glyphs": 8, "text": 8}
EXPANSIONS = (1, 2, 4, 8)
RATES, DECAYS = (1e-2, 3e-2), (0.1, 0.3, 1.0)
N_SEEDS = 5
KINDS = {False: "without", True: "with"}


def tasks_of(data):
    """Return the names of the tasks that can be run."""
    more = ["text"] if "text" in (data or {}) else []
    return ["boolean", *real_tasks(data), *more]


def run(quick, data=None, n_jobs=1):
    jobs = [
        {"quick": quick} | job
        for job in product(
            task=tasks_of(data),
            skip=list(KINDS),
            expansion=EXPANSIONS[::2] if quick else EXPANSIONS,
        )
    ]
    n_seeds, rates, decays = (
        (1, RATES[:1], DECAYS[:1]) if quick else (N_SEEDS, RATES, DECAYS)
    )
    rows = run_tuned(measure, jobs, n_seeds, n_jobs, data, rates, lambda job: decays)
    return {"rows": rows}


def measure(task, skip, expansion, quick, lr, weight_decay, seed, data=None):
    """Train one network."""
    hidden = (NEURONS[task],)
    if task == "boolean":
        settings = {"epochs": 4 if quick else 60, "batch_size": 128}
        task = make_task("boolean", seed=seed, **boolean.TASK)
    else:
        settings = schedule(task, quick)
        task = make_task(task, data=data)
    rules = {"split": "learned", "prune": "gradual", "skip": skip, "warmup": 0.1}
    settings |= {"lr": lr, "weight_decay": weight_decay, "seed": seed}
    return report(fit_fpe(task, hidden, expansion, **rules, **settings), task)


def _curves(result):
    """Return {task: {skip: {expansion: rows of the tuned setting}}}."""
    return tuned_tree(result["rows"], "task", "skip", "expansion")


def plot(result):
    found = _curves(result)
    figure, axes = subplots(len(found))
    for ax, (task, curves) in zip(axes, found.items(), strict=True):
        for skip, curve in curves.items():
            ax.errorbar(
                list(curve),
                [mean(rows) for rows in curve.values()],
                [spread(rows) for rows in curve.values()],
                label=f"{KINDS[skip]} a skip connection",
                marker="o",
                ms=4,
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(curve), [str(value) for value in curve])
        ax.set(title=f"{task}, {NEURONS[task]} neurons", xlabel="Expansion")
    axes[0].set(ylabel="Test accuracy (%)")
    axes[0].legend(fontsize="small", loc="lower right")
    return figure


def tables(result):
    found = _curves(result)
    rows = [
        [task, KINDS[skip], *(show(of_expansion) for of_expansion in curve.values())]
        for task, curves in found.items()
        for skip, curve in curves.items()
    ]
    expansions = [str(a) for a in next(iter(found.values()))[False]]
    n_seeds = len({row["seed"] for row in result["rows"]})
    header = ["task", "skip connection", *(f"expansion {a}" for a in expansions)]
    return [Table(f"Test accuracy in %, {n_seeds} seeds.", header, rows)]


def gain(curve):
    """Return what the best expansion adds to 1, and the larger spread of the two."""
    best = max((a for a in curve if a > 1), key=lambda a: mean(curve[a]))
    larger = max(spread(curve[best]), spread(curve[1]))
    return mean(curve[best]) - mean(curve[1]), larger


def claims(result):
    return [_judge(result, skip) for skip in KINDS]


def _judge(result, skip):
    gains = {task: gain(curves[skip]) for task, curves in _curves(result).items()}
    texts = [f"{a:+.1f} (spread {b:.1f}; {task})" for task, (a, b) in gains.items()]
    embeddings = [task for task in gains if task in FROM_FILES]
    more = ""
    if skip and embeddings:
        most = max(gains[task][0] for task in embeddings)
        more = f" On embeddings it is at most {most:.1f} points."
    return Claim(
        f"Expansion gains {KINDS[skip]} a skip connection",
        "expansion gains; skip connections are not studied",
        "Holds if the best expansion is above expansion 1 by more than the larger seed "
        "spread of the two on every task; partly if on some.",
        of_all([a > b for a, b in gains.values()]),
        f"The gain of the best expansion in points is {listed(texts)}.{more}",
    )
