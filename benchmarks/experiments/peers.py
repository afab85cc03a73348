"""Other ways to spend the same parameters.

At the same number of non-zeros as a dense net: Fixed Parameter Expansion by 4 with a
shared and with independent splits; a static random mask, SET and RigL on a net of four
times the neurons; four times the neurons trained dense, then pruned; DropConnect at the
parent's width, and with four times the neurons of which a step trains a budget's worth
(it keeps all weights for prediction and so has more); dense nets with 1, 1.2 and 2
times the parameters. All use AdamW, the same learning rate schedule, epochs and order
of batches, and each its own best learning rate of 0.001, 0.003, 0.01 and 0.03, chosen
on validation rows with the first seed; nothing else was tuned for any of them. The
peers are written out in ``benchmarks/experiments/_peers.py``.
"""

from benchmarks.experiments import _peers
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
from benchmarks.experiments._loop import accuracy
from benchmarks.experiments._tasks import make_task, schedule

TITLE = "Other ways to spend the same parameters"
EXPANSION = 4
METHODS = {
    "FPE, shared split": (_peers.fpe, {"split": "shared"}),
    "FPE, random split": (_peers.fpe, {"split": "random"}),
    "static random mask": (_peers.static_mask, {}),
    "SET": (_peers.static_mask, {"rewire": "SET"}),
    "RigL": (_peers.static_mask, {"rewire": "RigL"}),
    "train wide, then prune": (_peers.train_wide_then_prune, {}),
    "DropConnect": (_peers.dropconnect, {}),
    "DropConnect, wide": (_peers.dropconnect, {"wide": True}),
    "dense": (_peers.dense, {}),
    "dense, 1.2×": (_peers.dense, {"factor": 1.2}),
    "dense, 2×": (_peers.dense, {"factor": 2.0}),
}
OURS = "FPE, shared split"


def cases(quick, data):
    """Return (task, neurons) of every case."""
    if quick:
        return [("glyphs" if data else "digits", 4)]
    return [
        ("digits", 4),
        *([("glyphs", 8), ("glyphs", 32)] if data else [("synthetic", 8)]),
    ]


def run(quick, data=None, n_jobs=1):
    jobs = [
        {"task": task, "neurons": neurons, "quick": quick} | job
        for task, neurons in cases(quick, data)
        for job in product(
            method=list(METHODS),
        )
    ]
    rates, n_seeds = (LEARNING_RATES[2:3], 1) if quick else (LEARNING_RATES, 6)
    return {"rows": run_tuned(measure, jobs, n_seeds, n_jobs, data, rates)}


def measure(task, neurons, quick, method, lr, seed, data=None):
    """Train one network by one method."""
    settings = schedule(task, quick) | {"lr": lr, "seed": seed}
    task = make_task(task, data=data)
    function, options = METHODS[method]
    network, n_nonzero = function(task, neurons, EXPANSION, **options, **settings)
    return {
        "validation": accuracy(network, task.validation),
        "test": accuracy(network, task.test),
        "n_nonzero": n_nonzero,
    }


def _cases(result):
    found = {}
    for (task, neurons, method), rows in tuned(
        result["rows"], "task", "neurons", "method"
    ).items():
        found.setdefault(f"{task}, {neurons} neurons", {})[method] = rows
    return found


def plot(result):
    found = _cases(result)
    figure, axes = subplots(len(found), width=4.0, height=3.8, sharey=True)
    for ax, (name, best) in zip(axes, found.items(), strict=True):
        for position, (method, rows) in enumerate(best.items()):
            color = "C1" if method.startswith("FPE") else "C0"
            color = (
                "0.5" if rows[0]["n_nonzero"] > best["dense"][0]["n_nonzero"] else color
            )
            ax.errorbar(mean(rows), position, xerr=spread(rows), fmt="o", color=color)
        ax.axvline(mean(best[OURS]), color="C1", lw=0.8, ls=":")
        ax.set(title=name, xlabel="Test accuracy (%)")
    axes[0].set_yticks(range(len(METHODS)), METHODS)
    axes[0].invert_yaxis()
    figure.suptitle(
        "Orange: FPE, grey: more parameters than the others", fontsize="small"
    )
    return figure


def tables(result):
    found = _cases(result)
    rows = [
        [
            method,
            *(
                text
                for best in found.values()
                for text in (
                    show(best[method]),
                    str(best[method][0]["n_nonzero"]),
                    f"{best[method][0]['lr']:g}",
                )
            ),
        ]
        for method in METHODS
    ]
    header = [
        "method",
        *(f"{n}: {c}" for n in found for c in ("%", "non-zeros", "rate")),
    ]
    n_seeds = len({row["seed"] for row in result["rows"]})
    return [Table(f"Test accuracy in %, {n_seeds} seeds.", header, rows)]


def _compare(result, peers, title, paper):
    """Judge whether FPE is as good as the best of `peers`, case by case."""
    met, parts = [], []
    for name, best in _cases(result).items():
        peer = max(peers, key=lambda p, b=best: mean(b[p]))
        larger = max(spread(best[OURS]), spread(best[peer]))
        met.append(mean(best[OURS]) >= mean(best[peer]) - larger)
        parts.append(
            f"{mean(best[OURS]):.1f} against {mean(best[peer]):.1f} % "
            f"({peer + '; ' if len(peers) > 1 else ''}{name})"
        )
    best_of = "the best of these" if len(peers) > 1 else "it"
    return Claim(
        title,
        paper,
        f"Holds if FPE with the shared split is not below {best_of} by more than the "
        "larger seed spread of the two, in every case; partly if in some.",
        of_all(met),
        f"FPE reaches {listed(parts)}.",
    )


def claims(result):
    claim = "matches or beats DropConnect at equal non-zeros"
    dropconnect = ["DropConnect", "DropConnect, wide"]
    return [
        _compare(result, dropconnect, "As good as DropConnect", claim),
        _compare(
            result,
            ["dense, 1.2×"],
            "As good as a dense net with 1.2 times the parameters",
            "32 neurons at α=4 equals a dense net with 1.2× or more parameters",
        ),
        _compare(
            result,
            ["dense, 2×"],
            "As good as a dense net with twice the parameters",
            "not claimed by the paper",
        ),
        _compare(
            result,
            ["static random mask", "SET", "RigL"],
            "As good as sparse training from scratch",
            "not claimed by the paper",
        ),
        _compare(
            result,
            ["train wide, then prune"],
            "As good as training wide, then pruning",
            "not claimed by the paper",
        ),
    ]
