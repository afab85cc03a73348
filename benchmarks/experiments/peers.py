"""Other ways to spend the same parameters.

Fixed Parameter Expansion and its variants beside other ways to spend the parameters of
a dense net, all trained by the library's engine with the same optimizer, learning rate
schedule, epochs and order of batches.
"""

from benchmarks.experiments import _peers, boolean
from benchmarks.experiments._claims import Claim, Table, listed, of_all, subplots
from benchmarks.experiments._grid import (
    LEARNING_RATES,
    group,
    mean,
    product,
    run_tuned,
    show,
    spread,
    tuned,
)
from benchmarks.experiments._tasks import QUICK_EPOCHS, make_task
from benchmarks.experiments._training import report

TITLE = "Other ways to spend the same parameters"
METHODS = {
    "FPE, shared split": (_peers.fpe, {"split": "shared"}),
    "FPE, random split": (_peers.fpe, {"split": "random"}),
    "FPE, structured": (_peers.fpe, {"split": "contiguous", "prune": "structured"}),
    "FPE, rewired blocks": (_peers.fpe, {"split": "contiguous", "prune": "rewired"}),
    "FPE, learned split": (_peers.fpe, {"split": "learned", "prune": "gradual"}),
    "FPE, skip connection": (
        _peers.fpe,
        {"split": "shared", "prune": "gradual", "skip": True},
    ),
    "FPE, learned split, skip connection": (
        _peers.fpe,
        {"split": "learned", "prune": "gradual", "skip": True},
    ),
    "static random mask": (_peers.static_mask, {}),
    "SET": (_peers.static_mask, {"rewire": "SET"}),
    "RigL": (_peers.static_mask, {"rewire": "RigL"}),
    "RigL, whole output layer": (
        _peers.static_mask,
        {"rewire": "RigL", "whole_output": True},
    ),
    "train wide, then prune": (_peers.train_wide_then_prune, {}),
    "train wide, prune gradually": (_peers.train_wide_then_prune, {"gradual": True}),
    "pruned linear probe": (_peers.linear_probe, {"pruned": True}),
    "full linear probe": (_peers.linear_probe, {}),
    "DropConnect": (_peers.dropconnect, {}),
    "DropConnect, wide": (_peers.dropconnect, {"wide": True}),
    "dense": (_peers.dense, {}),
    "dense, 1.2×": (_peers.dense, {"factor": 1.2}),
    "dense, 2×": (_peers.dense, {"factor": 2.0}),
}
"""Functions and their options."""

DESCRIPTIONS = {
    ("FPE, shared split",): "Fixed Parameter Expansion (FPE) by 4, by 2 on Boolean "
    "formulas, with one random split for all neurons, pruned by magnitude",
    ("FPE, random split",): "FPE with a random split for every neuron",
    ("FPE, structured",): "FPE with a contiguous split and structured pruning",
    ("FPE, rewired blocks",): "FPE with a contiguous split whose dense blocks are "
    "rewired, towards the largest gradients, until 75 % of the epochs",
    ("FPE, learned split",): "FPE whose children start with all inputs of their "
    "parent and are pruned gradually",
    ("FPE, skip connection",): "FPE with the shared split and weights from the inputs "
    "straight to the outputs, pruned gradually together",
    ("FPE, learned split, skip connection",): "FPE with both of these",
    ("static random mask", "SET", "RigL"): "a static random mask, SET and RigL on a "
    "net with the neurons of all children",
    ("RigL, whole output layer",): "RigL with all outgoing weights kept, so that only "
    "the first layer is sparse",
    ("train wide, then prune",): "the same wide net trained dense, then pruned by "
    "magnitude at half time",
    ("train wide, prune gradually",): "the same wide net pruned gradually",
    ("pruned linear probe",): "one linear layer from inputs to outputs, pruned "
    "gradually; where it has fewer weights than the budget, it stays whole",
    ("DropConnect",): "DropConnect at the parent's width",
    ("DropConnect, wide",): "DropConnect on the wide net with a budget's worth of "
    "weights in a step; it predicts with all weights",
    ("full linear probe",): "the whole linear layer, which may have more non-zeros",
    ("dense, 1.2×", "dense, 2×"): "dense nets with 1.2 and 2 times the parameters",
}
"""What the page says of methods, if all of them were measured."""

OURS = "FPE, shared split"
EXPANSIONS = {"boolean": 2}
EXPANSION = 4
"""Of all other tasks."""

SCHEDULES = {
    "boolean": {"epochs": 60, "batch_size": 128},
    "digits": {"epochs": 50, "batch_size": 64},
    "synthetic": {"epochs": 15, "batch_size": 128},
    "glyphs": {"epochs": 20, "batch_size": 256},
    "text": {"epochs": 20, "batch_size": 256},
}
N_TRAIN = {"glyphs": 20_000, "text": 20_000}
"""Training rows, where the default is fewer or more."""

N_SEEDS = 5


def cases(quick, data):
    """Return (task, neurons) of every case."""
    data = data or {}
    if quick:
        return [("glyphs" if "glyphs" in data else "digits", 4)]
    found = [("boolean", 8), ("digits", 4)]
    if not data:
        found += [("synthetic", 8)]
    if "glyphs" in data:
        found += [("glyphs", n) for n in (8, 32)]
    if "text" in data:
        found += [("text", n) for n in (8, 32)]
    return found


WEIGHT_DECAYS = {"glyphs": (0.1, 1.0), "text": (0.1, 1.0)}
"""Weight decays that every method is tuned over, where they are not 0 and 0.1."""


def weight_decays(job):
    """Return the weight decays that a method is tuned over."""
    return WEIGHT_DECAYS.get(job["task"], (0.0, 0.1))


def run(quick, data=None, n_jobs=1):
    jobs = [
        {"task": task, "neurons": neurons, "quick": quick} | job
        for task, neurons in cases(quick, data)
        for job in product(method=METHODS)
    ]
    if quick:
        rows = run_tuned(
            measure, jobs, 1, n_jobs, data, LEARNING_RATES[2:3], lambda job: [0.0]
        )
    else:
        rows = run_tuned(
            measure, jobs, N_SEEDS, n_jobs, data, LEARNING_RATES, weight_decays
        )
    return {"rows": rows}


def measure(task, neurons, quick, method, lr, weight_decay, seed, data=None):
    """Train one network by one method."""
    settings = SCHEDULES[task] | ({"epochs": QUICK_EPOCHS} if quick else {})
    settings |= {"lr": lr, "weight_decay": weight_decay, "seed": seed}
    options = boolean.TASK if task == "boolean" else {}
    if task in N_TRAIN and not quick:
        options = options | {"n_train": N_TRAIN[task]}
    expansion = EXPANSIONS.get(task, EXPANSION)
    task = make_task(task, seed=seed, data=data, **options)
    function, own = METHODS[method]
    return report(function(task, neurons, expansion, **own, **settings), task)


def _cases(result):
    found = {}
    for (task, neurons, method), rows in tuned(
        result["rows"], "task", "neurons", "method"
    ).items():
        found.setdefault(f"{task}, {neurons} neurons", {})[method] = rows
    return found


def _methods(result):
    """Return the methods that were run, in the order of METHODS."""
    ran = {row["method"] for row in result["rows"]}
    return [method for method in METHODS if method in ran]


def text(result):
    """Return what the page says of the methods that were measured, and of tuning."""
    ran, rows = _methods(result), result["rows"]
    lines = []
    for methods, description in DESCRIPTIONS.items():
        if all(method in ran for method in methods):
            names = listed(f"*{method}*" for method in methods)
            lines.append(f"- {names}: {description}.")
    lines += [
        "",
        "All have as many non-zeros as *dense*, or those in the last table.",
        "",
    ]
    if any("gradually" in line for line in lines):
        lines += [
            "Gradual pruning follows a cubic schedule from 10 % to 75 % of the "
            "training, every 20 steps, and removes the smallest w²·√v, where v is "
            "AdamW's running mean of squared gradients.",
            "",
        ]
    rates = listed(_values(rows, "lr"), "{:g}")
    tuned_over = f"learning rate of {rates}"
    if "weight_decay" in rows[0]:
        tasks = {}
        for (task,), of_task in group(rows, "task").items():
            decays = listed(_values(of_task, "weight_decay"), "{:g}")
            tasks.setdefault(decays, []).append(task)
        decays = [f"{decays} ({listed(names)})" for decays, names in tasks.items()]
        tuned_over += f" and weight decay of {' or '.join(decays)}"
    lines += [
        f"Every method has its own best {tuned_over}, chosen on validation rows with "
        "the first seed; nothing else was tuned for any of them. The peers are written "
        "out in ``benchmarks/experiments/_peers.py``.",
    ]
    if any(row["task"] == "text" for row in rows):
        lines += ["", "*text* are embeddings of sentences."]
    return lines


def _values(rows, name):
    """Return the values of a setting that were tried, in order."""
    return sorted({row[name] for row in rows})


def plot(result):
    found = _cases(result)
    figure, axes = subplots(len(found), height=4.4, sharey=True)
    for ax, (name, best) in zip(axes, found.items(), strict=True):
        for position, method in enumerate(_methods(result)):
            rows = best[method]
            color = "C1" if method.startswith("FPE") else "C0"
            color = (
                "0.5" if rows[0]["n_nonzero"] > best["dense"][0]["n_nonzero"] else color
            )
            ax.errorbar(mean(rows), position, xerr=spread(rows), fmt="o", color=color)
        ax.axvline(mean(best[OURS]), color="C1", lw=0.8, ls=":")
        ax.set(title=name, xlabel="Test accuracy (%)")
    axes[0].set_yticks(range(len(_methods(result))), _methods(result))
    axes[0].invert_yaxis()
    figure.suptitle(
        "Orange: FPE, grey: more parameters than the others", fontsize="small"
    )
    return figure


def tables(result):
    found = _cases(result)
    accuracy, how = [], []
    for method in _methods(result):
        of_cases = [best[method] for best in found.values()]
        accuracy.append([method, *map(show, of_cases)])
        how.append([method, *(_setting(rows[0]) for rows in of_cases)])
    n_seeds = len({row["seed"] for row in result["rows"]})
    decay = " and weight decay" if "weight_decay" in result["rows"][0] else ""
    header = ["method", *found]
    return [
        Table(f"Test accuracy in %, {n_seeds} seeds.", header, accuracy),
        Table(f"Non-zeros, best learning rate{decay}.", header, how),
    ]


def _setting(row):
    """Format non-zeros, learning rate and, if it was tuned, weight decay."""
    values = f"{row['n_nonzero']}; {row['lr']:g}"
    decay = row.get("weight_decay")
    return values if decay is None else f"{values}; {decay:g}"


NAMED = {
    OURS: "FPE with the shared split",
    "FPE, learned split": "FPE with the learned split",
    "FPE, skip connection": "FPE with a skip connection",
}
"""The variants that are compared with the peers, as they are called in a sentence."""

COMPARED = [
    (
        ["DropConnect", "DropConnect, wide"],
        [OURS],
        "As good as DropConnect",
        "matches or beats DropConnect at equal non-zeros",
    ),
    (
        ["dense, 1.2×"],
        [OURS],
        "As good as a dense net with 1.2 times the parameters",
        "32 neurons at α=4 equals a dense net with 1.2× or more parameters",
    ),
    (
        ["dense, 2×"],
        [OURS, "FPE, learned split"],
        "As good as a dense net with twice the parameters",
        "not claimed by the paper",
    ),
    (
        ["static random mask", "SET", "RigL", "RigL, whole output layer"],
        [OURS, "FPE, learned split"],
        "As good as sparse training from scratch",
        "not claimed by the paper",
    ),
    (
        ["train wide, then prune", "train wide, prune gradually"],
        [OURS, "FPE, learned split"],
        "As good as training wide, then pruning",
        "not claimed by the paper",
    ),
    (
        ["pruned linear probe"],
        [OURS, "FPE, learned split", "FPE, skip connection"],
        "As good as a linear probe pruned to the same number of non-zeros",
        "not claimed by the paper",
    ),
]
"""Peers, variants to compare with them, title of the claim, what the paper says."""


def claims(result):
    """Judge every variant of COMPARED that was measured, by a claim of its own."""
    ran = _methods(result)
    found = []
    for peers, variants, title, paper in COMPARED:
        measured = [peer for peer in peers if peer in ran]
        for ours in variants if measured else []:
            if ours in ran:
                found.append(_compare(result, ours, measured, title, paper))
    return found


def _compare(result, ours, peers, title, paper):
    """Judge whether a variant is as good as the best of `peers`, case by case."""
    met, parts = [], []
    for name, best in _cases(result).items():
        peer = max(peers, key=lambda p, b=best: mean(b[p]))
        larger = max(spread(best[ours]), spread(best[peer]))
        met.append(mean(best[ours]) >= mean(best[peer]) - larger)
        parts.append(
            f"{mean(best[ours]):.1f} against {mean(best[peer]):.1f} % "
            f"({peer + '; ' if len(peers) > 1 else ''}{name})"
        )
    best_of = "the best of these" if len(peers) > 1 else "it"
    return Claim(
        title if ours == OURS else f"{title}: {ours.removeprefix('FPE, ')}",
        paper,
        f"Holds if {NAMED[ours]} is not below {best_of} by more than the larger seed "
        "spread of the two, in every case; partly if in some.",
        of_all(met),
        f"FPE reaches {listed(parts)}.",
    )
