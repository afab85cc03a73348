"""How the inputs are dealt to the children.

A child can read inputs that no sibling reads (*disjoint*, a partition), or as many
inputs drawn for it without regard to its siblings (*overlapping*: siblings share some
inputs, and other edges of the parent are lost). Each can be drawn for every neuron on
its own or once, *shared* by all neurons. The *feature* split is disjoint and shared and
keeps inputs together that the warmed-up neurons use alike. All go through one piece of
code and have the same number of non-zeros; learning rates are tuned as in the section
on embeddings, but on Boolean formulas, where it is 0.003.
"""

from benchmarks.experiments import boolean
from benchmarks.experiments._claims import (
    Claim,
    Table,
    listed,
    of_all,
    subplots,
    verdict,
)
from benchmarks.experiments._dealing import fit_children
from benchmarks.experiments._grid import (
    LEARNING_RATES,
    mean,
    product,
    run_tuned,
    show,
    spread,
    tuned,
)
from benchmarks.experiments._tasks import make_task, schedule

TITLE = "Disjoint or overlapping children"
DEALINGS = ("random", "shared", "feature", "overlapping", "overlapping shared")
PAIRS = {"random": "overlapping", "shared": "overlapping shared"}
"""A disjoint dealing and the overlapping one to compare it with."""

HOW = {"random": "every neuron on its own", "shared": "one deal for all neurons"}

ALIKE = 1.0
"""Points within which the random and the feature split count as alike."""


def cases(quick, data):
    """Return (task, neurons, expansion) of every case."""
    found = [("boolean", 8, 2), ("digits", 4, 4)]
    if not quick:
        found += [("digits", 8, 4)]
    if "glyphs" in (data or {}):
        found += [("glyphs", 8, 4)]
    return found


def run(quick, data=None, n_jobs=1):
    rates, n_seeds = (LEARNING_RATES[2:3], 2) if quick else (LEARNING_RATES, 8)
    rows = []
    for task, neurons, expansion in cases(quick, data):
        jobs = product(
            task=[task],
            neurons=[neurons],
            expansion=[expansion],
            dealing=DEALINGS,
            quick=[quick],
        )
        of_task = [boolean.FIT["lr"]] if task == "boolean" else rates
        rows += run_tuned(measure, jobs, n_seeds, n_jobs, data, of_task)
    return {"rows": rows}


def measure(task, neurons, expansion, dealing, lr, seed, quick, data=None):
    """Train one network."""
    if task == "boolean":
        settings = boolean.FIT | {"epochs": 4 if quick else 40}
        task = make_task("boolean", seed=seed, **boolean.TASK)
    else:
        settings = schedule(task, quick) | {"warmup": 0.1}
        task = make_task(task, data=data)
    settings |= {"lr": lr, "seed": seed}
    return fit_children(task, neurons, expansion, dealing, **settings)


def _cases(result):
    found = {}
    best = tuned(result["rows"], "task", "neurons", "expansion", "dealing")
    for (task, neurons, expansion, dealing), rows in best.items():
        name = f"{task}, {neurons} neurons, expansion {expansion}"
        found.setdefault(name, {})[dealing] = rows
    return found


def plot(result):
    found = _cases(result)
    figure, axes = subplots(len(found))
    for ax, (name, best) in zip(axes, found.items(), strict=True):
        for position, dealing in enumerate(DEALINGS):
            color = "C3" if dealing.startswith("overlapping") else "C0"
            values = [row["test"] for row in best[dealing]]
            ax.scatter([position] * len(values), values, s=10, color=color, alpha=0.5)
            ax.plot(
                [position - 0.3, position + 0.3], [mean(best[dealing])] * 2, color=color
            )
        labels = [dealing.replace(" ", "\n") for dealing in DEALINGS]
        ax.set_xticks(range(len(labels)), labels, rotation=60, fontsize="small")
        ax.set_title(name.replace(", expansion", ",\nexpansion"), fontsize="medium")
    axes[0].set(ylabel="Test accuracy (%)")
    return figure


def tables(result):
    found = _cases(result)
    rows = [[name, *(show(best[d]) for d in DEALINGS)] for name, best in found.items()]
    n_seeds = len({row["seed"] for row in result["rows"]})
    return [Table(f"Test accuracy in %, {n_seeds} seeds.", ["case", *DEALINGS], rows)]


def loss_of_overlap(best, disjoint):
    """Return what overlapping loses and the larger seed spread of the two."""
    overlapping = PAIRS[disjoint]
    larger = max(spread(best[disjoint]), spread(best[overlapping]))
    return mean(best[disjoint]) - mean(best[overlapping]), larger


def claims(result):
    return [_disjoint(result), _splits(result)]


def _disjoint(result):
    found = _cases(result)
    parts, worse_in, never_better = [], set(), True
    for disjoint in PAIRS:
        lost = {name: loss_of_overlap(best, disjoint) for name, best in found.items()}
        parts.append(
            f"{HOW[disjoint]}: "
            + listed(
                [f"{a:.1f} (spread {b:.1f}; {name})" for name, (a, b) in lost.items()]
            )
        )
        worse_in |= {name for name, (a, b) in lost.items() if a > b}
        never_better &= all(a >= -b for a, b in lost.values())
    which = listed([name for name in found if name in worse_in])
    return Claim(
        "Disjoint children are better than overlapping ones",
        "same number of children with overlapping random inputs is clearly worse",
        "A case counts if overlapping children lose more than the larger seed spread "
        "of the two, dealt per neuron or shared. Holds if every case counts; partly if "
        "at least two do and no overlapping dealing is better than its disjoint one by "
        "more than the spread.",
        verdict(len(worse_in) == len(found), len(worse_in) >= 2 and never_better),
        f"Points lost by overlapping, {'; '.join(parts)}. {len(worse_in)} of "
        f"{len(found)} cases count" + (f": {which}." if which else "."),
    )


def _splits(result):
    real = {n: b for n, b in _cases(result).items() if not n.startswith("boolean")}
    other = {n: b for n, b in _cases(result).items() if n.startswith("boolean")}

    def points(cases):
        return {n: mean(b["feature"]) - mean(b["random"]) for n, b in cases.items()}

    on_real = points(real)
    text = listed([f"{gap:+.1f} ({name})" for name, gap in on_real.items()])
    on_boolean = listed([f"{gap:+.1f} ({name})" for name, gap in points(other).items()])
    return Claim(
        "Random and feature split are alike on real data",
        "random ≈ feature split on real data",
        f"Holds if they are within {ALIKE:g} point of each other in every case of real "
        "data; partly if in some.",
        of_all([abs(gap) <= ALIKE for gap in on_real.values()]),
        f"Feature less random split, in points: {text}. On Boolean formulas, where "
        f"inputs belong together, it is {on_boolean}.",
    )
