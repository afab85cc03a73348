"""Does the fall of interference predict the gain?

A dense and an expanded net (split ``"shared"``, a tenth of the epochs as warm-up,
learning rate 0.01) are trained at several widths and expansions. Two measures of
interference are taken of the first layer of each trained net: the mean *feature
capacity* and the mean absolute *cosine similarity* of neurons
(:mod:`sklearn_fpe.inspection`). The relative gain, log of the ratio of accuracies
(expanded over dense, means over seeds), is regressed by least squares on the logs of
the fold changes of both measures and an intercept. R² is that of the fit; that of
leaving one width out at a time says how far it carries.
"""

import numpy as np

from benchmarks.experiments._claims import (
    Claim,
    Table,
    listed,
    of_all,
    subplots,
    verdict,
)
from benchmarks.experiments._grid import group, mean, product, run_jobs
from benchmarks.experiments._tasks import make_task, real_tasks, schedule
from benchmarks.experiments._training import fit_fpe, report
from sklearn_fpe.inspection import feature_capacity, mean_cosine_similarity

TITLE = "Interference as a predictor of the gain"
NEURONS = {
    "digits": (3, 4, 5, 6, 8, 10, 12, 16, 24, 32),
    "glyphs": (4, 5, 6, 7, 8, 10, 12, 16, 24, 32),
}
EXPANSIONS = (2, 4, 8)
GOAL = 0.8


def run(quick, data=None, n_jobs=1):
    jobs = [
        {"task": task, "neurons": neurons, "quick": quick} | job
        for task in real_tasks(data)
        for neurons in (NEURONS[task][1::2] if quick else NEURONS[task])
        for job in product(
            expansion=(1, 4) if quick else (1, *EXPANSIONS),
            seed=range(1 if quick else 10),
        )
    ]
    return {"rows": run_jobs(measure, jobs, n_jobs, data)}


def measure(task, neurons, quick, expansion, seed, data=None):
    """Train one network and measure its interference."""
    settings = schedule(task, quick) | {"lr": 1e-2, "seed": seed, "warmup": 0.1}
    task = make_task(task, data=data)
    network = fit_fpe(task, (neurons,), expansion, **settings)
    return report(network, task) | {
        "capacity": float(feature_capacity(network).mean()),
        "cosine": mean_cosine_similarity(network),
    }


def points(result):
    """Return {(task, expansion): array of (width, log gain, two log fold changes)}."""
    names = ("test", "capacity", "cosine")
    cells = {
        key: [mean(rows, name) for name in names]
        for key, rows in group(result["rows"], "task", "neurons", "expansion").items()
    }
    found = {}
    for (task, neurons, expansion), cell in cells.items():
        if expansion > 1:
            folds = np.log(np.divide(cell, cells[task, neurons, 1]))
            found.setdefault((task, expansion), []).append([neurons, *folds])
    return {key: np.array(rows) for key, rows in found.items()}


def regress(rows):
    """Return R², R² of leaving one width out, and the predicted log gains."""
    width, gain = rows[:, 0], rows[:, 1]
    X = np.column_stack([np.ones(len(rows)), rows[:, 2:]])

    def predict(train, test):
        return X[test] @ np.linalg.lstsq(X[train], gain[train], rcond=None)[0]

    everything = np.ones(len(rows), dtype=bool)
    fitted = predict(everything, everything)
    left_out = np.empty(len(rows))
    for w in np.unique(width):
        left_out[width == w] = predict(width != w, width == w)
    total = np.square(gain - gain.mean()).sum()
    scores = [1 - np.square(gain - p).sum() / total for p in (fitted, left_out)]
    return *scores, fitted


def _pooled(found):
    """Put all expansions of a task together."""
    return {
        task: np.vstack([rows for (name, _), rows in found.items() if name == task])
        for task in dict.fromkeys(name for name, _ in found)
    }


def plot(result):
    found = points(result)
    tasks = list(_pooled(found))
    figure, axes = subplots(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        of_task = [(a, rows) for (name, a), rows in found.items() if name == task]
        for i, (expansion, rows) in enumerate(of_task):
            r2, _, fitted = regress(rows)
            label = f"expansion {expansion}, R² = {r2:.2f}"
            ax.plot(np.exp(fitted), np.exp(rows[:, 1]), "o", color=f"C{i}", label=label)
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], color="k", lw=0.8)
        ax.set(title=task, xlabel="Predicted ratio of accuracies")
        ax.legend(fontsize="small")
    axes[0].set(ylabel="Measured ratio of accuracies")
    return figure


def tables(result):
    found = points(result)
    named = {f"{task}, expansion {a}": rows for (task, a), rows in found.items()}
    named |= {f"{task}, all expansions": rows for task, rows in _pooled(found).items()}
    lines = []
    for name, rows in named.items():
        r2, left_out, _ = regress(rows)
        single = [regress(rows[:, [0, 1, column]])[0] for column in (2, 3)]
        lines.append(
            [name, str(len(rows)), *(f"{v:.2f}" for v in (r2, left_out, *single))]
        )
    header = [
        "case",
        "nets",
        "R²",
        "R², width left out",
        "capacity alone",
        "cosine alone",
    ]
    return [
        Table("Least squares of the relative gain on the fold changes.", header, lines)
    ]


def claims(result):
    found = points(result)
    fixed = {
        f"{task}, expansion {a}": regress(rows)[:2] for (task, a), rows in found.items()
    }
    pooled = {task: regress(rows)[0] for task, rows in _pooled(found).items()}
    good = [r2 >= GOAL for r2, _ in fixed.values()]
    by_task = {}
    for (task, _), reached in zip(found, good, strict=True):
        by_task.setdefault(task, []).append(reached)
    left_out = [r2 for _, r2 in fixed.values()]
    paper = "their fold change predicts the relative gain (least squares)"
    return [
        Claim(
            "Interference predicts the gain over widths",
            paper,
            f"Holds if R² is at least {GOAL} at every expansion on every real data "
            "set; partly if at every expansion on at least one of them.",
            verdict(all(good), any(all(cases) for cases in by_task.values())),
            f"R² over widths is at least {GOAL} in {sum(good)} of {len(good)} cases: "
            + listed([f"{r2:.2f} ({name})" for name, (r2, _) in fixed.items()])
            + ". There are few widths for three coefficients: for widths left out of "
            f"the fit R² is {min(left_out):.2f} to {max(left_out):.2f}.",
        ),
        Claim(
            "Interference predicts the gain over widths and expansions together",
            paper,
            f"Holds if one fit for all expansions has an R² of at least {GOAL} on "
            "every real data set; partly if on some.",
            of_all([r2 >= GOAL for r2 in pooled.values()]),
            "One fit for all has an R² of "
            + listed([f"{r2:.2f} ({task})" for task, r2 in pooled.items()])
            + ".",
        ),
    ]
