"""Width, classes and expansion on digits and on embeddings.

Dense nets and expanded ones (split ``"shared"``, a tenth of the epochs as warm-up) of
the same number of non-zeros, each at its own best learning rate of 0.001, 0.003, 0.01
and 0.03, chosen on validation rows with the first seed. *digits* are scikit-learn's
8×8 images. *synthetic* are drawn embeddings (128 inputs, 50 classes) in which classes
are combinations of shared latent features; *blobs* have as many inputs and classes, but
a class is one Gaussian blob and shares nothing with others. *glyphs*, where the page
shows them, are embeddings of rendered characters (512 inputs, up to 62 classes, test
fonts unseen in training, 6000 training rows or as many as the chosen classes allow),
read from the file given as ``--data``.
"""

from benchmarks.experiments._claims import (
    Claim,
    Table,
    listed,
    of_all,
    subplots,
    verdict,
)
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
from benchmarks.experiments._training import fit_fpe, report

TITLE = "Embeddings: width, classes, expansion"
EXPANSIONS = (1, 2, 4, 8)
WARMUP = 0.1
NEARLY_DOUBLE = 1.8


def cases(quick, data):
    """Return (task, classes, neurons) of every case; None is all classes."""
    if quick:
        return [
            ("digits", None, 4),
            *([("glyphs", 16, 4)] if "glyphs" in (data or {}) else []),
        ]
    found = [("digits", None, n) for n in (2, 4, 8)]
    found += [("synthetic", None, n) for n in (4, 8)] + [("blobs", None, 8)]
    if "glyphs" in (data or {}):
        found += [("glyphs", None, n) for n in (4, 8, 16, 32)]
        found += [("glyphs", c, 4) for c in (16, 32)]
    return found


def run(quick, data=None, n_jobs=1):
    jobs = [
        {"task": task, "n_classes": n_classes, "neurons": neurons, "quick": quick} | job
        for task, n_classes, neurons in cases(quick, data)
        for job in product(
            expansion=(1, 4) if quick else EXPANSIONS,
        )
    ]
    rates, n_seeds = (LEARNING_RATES[2:3], 1) if quick else (LEARNING_RATES, 5)
    return {"rows": run_tuned(measure, jobs, n_seeds, n_jobs, data, rates)}


def measure(task, n_classes, neurons, quick, expansion, lr, seed, data=None):
    """Train one network on one task."""
    settings = schedule(task, quick) | {"lr": lr, "seed": seed, "warmup": WARMUP}
    task = make_task(task, data=data, n_classes=n_classes)
    return report(fit_fpe(task, (neurons,), expansion, **settings), task)


def _cases(result):
    """Return {(task, classes, neurons): {expansion: tuned rows}}."""
    names = ("task", "n_classes", "neurons")
    best = tuned(result["rows"], *names, "expansion")
    found = {}
    for (*case, expansion), rows in best.items():
        found.setdefault(tuple(case), {})[expansion] = rows
    return found


def _name(case):
    task, n_classes, neurons = case
    classes = f", {n_classes} classes" if n_classes else ""
    return f"{task}{classes}, {neurons} neurons"


def plot(result):
    found = _cases(result)
    names = list(dict.fromkeys(case[:2] for case in found))
    figure, axes = subplots(len(names))
    for ax, name in zip(axes, names, strict=True):
        of_task = {case[2]: best for case, best in found.items() if case[:2] == name}
        for i, expansion in enumerate(next(iter(of_task.values()))):
            means = [mean(best[expansion]) for best in of_task.values()]
            spreads = [spread(best[expansion]) for best in of_task.values()]
            label = f"expansion {expansion}" if expansion > 1 else "dense"
            ax.errorbar(
                list(of_task), means, spreads, fmt="o-", color=f"C{i}", label=label
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(of_task), list(of_task))
        title = name[0] if name[1] is None else f"{name[0]}, {name[1]} classes"
        ax.set(title=title, xlabel="Neurons")
    axes[0].set(ylabel="Test accuracy (%)")
    axes[0].legend(fontsize="small")
    return figure


def tables(result):
    found = _cases(result)
    expansions = list(next(iter(found.values())))
    rows = [
        [_name(case), *(show(best[a]) for a in expansions)]
        for case, best in found.items()
    ]
    header = ["case", *("dense" if a == 1 else f"expansion {a}" for a in expansions)]
    n_seeds = len({row["seed"] for row in result["rows"]})
    caption = f"Test accuracy in %, {n_seeds} seeds, each at its best learning rate."
    return [Table(caption, header, rows)]


def _gain(best, expansion):
    return mean(best[expansion]) - mean(best[1])


def _wins(best):
    """Tell whether the expansion that validates best beats dense beyond the spread."""
    return _gain(best, _chosen(best)) > max(
        spread(best[1]), spread(best[_chosen(best)])
    )


def _chosen(best):
    """Return the expansion above 1 that validates best."""
    return max((a for a in best if a > 1), key=lambda a: mean(best[a], "validation"))


def claims(result):
    found = _cases(result)
    return [_every_width(found), _smallest(found), _classes(found)]


def _every_width(found):
    lines = [
        f"{_name(case)} {_gain(best, _chosen(best)):+.1f} (expansion {_chosen(best)})"
        for case, best in found.items()
    ]
    below = [
        f"{_name(case)} at expansion {a} ({_gain(best, a):+.1f})"
        for case, best in found.items()
        for a in best
        if a > 1 and _gain(best, a) < 0
    ]
    text = (
        "Points gained over dense at the expansion that validates best: "
        f"{listed(lines)}. Below dense: {listed(below) if below else 'none'}."
    )
    return Claim(
        "Every width gains",
        "every width gains on CLIP embeddings and FashionMNIST",
        "Holds if in every case the expansion that validates best beats dense by more "
        "than the larger seed spread of the two; partly if in some.",
        of_all([_wins(best) for best in found.values()]),
        text,
    )


def _smallest(found):
    smallest = {}
    for case, best in found.items():
        if case[1] is None:
            smallest.setdefault(case[0], (case, best))
    ratios = {
        case: mean(best[_chosen(best)]) / mean(best[1])
        for case, best in smallest.values()
    }
    return Claim(
        "The smallest width nearly doubles",
        "smallest width nearly doubles",
        f"Holds if the smallest width's accuracy grows at least {NEARLY_DOUBLE}-fold "
        "on every task; partly if on some.",
        of_all([ratio >= NEARLY_DOUBLE for ratio in ratios.values()]),
        "The accuracy of the smallest width grows by the factor "
        + listed([f"{ratio:.2f} ({_name(case)})" for case, ratio in ratios.items()])
        + ". How near a doubling this is depends on how small the smallest width is "
        "for the number of classes.",
    )


def _classes(found):
    names = [case[0] for case in found if case[1] is not None]
    task = names[0] if names else None
    curves = {}
    for case, best in found.items():
        if case[0] == task and 4 in best:
            curves.setdefault(case[2], {})[case[1]] = _gain(best, 4)
    curves = {neurons: curve for neurons, curve in curves.items() if len(curve) > 1}
    if not curves:
        return Claim(
            "More classes, more gain",
            "gain grows with interference",
            "",
            "not measured here",
            "No task with a choice of classes was given.",
        )
    ordered = {
        # None, all classes, is the largest number.
        neurons: [curve[c] for c in sorted(curve, key=lambda c: (c is None, c))]
        for neurons, curve in curves.items()
    }
    text = listed(
        [f"{listed(g, '{:+.1f}')} points at {n} neurons" for n, g in ordered.items()]
    )
    rises = [gain == sorted(gain) for gain in ordered.values()]
    last = [gain[-1] > gain[0] for gain in ordered.values()]
    return Claim(
        "More classes, more gain",
        "gain grows with interference",
        "Holds if at expansion 4 the gain rises with the number of classes at every "
        "width; partly if it is larger for all classes than for the fewest at some.",
        verdict(all(rises), any(last)),
        f"On {task}, with 16, 32 and all classes, expansion 4 gains {text}.",
    )
