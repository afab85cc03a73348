"""Eight clauses on eight neurons.

Formulas of 8 clauses (ORs of ANDs) are learned by 8 hidden neurons, expanded by 2:
dense, random split, clause-aware split (every neuron assigns whole clauses to its
children), the same with one assignment shared by all neurons, and the feature split,
which does not know the clauses. All have the same number of non-zero parameters, the
same epochs and the same order of batches; every seed is another formula.

The paper does not say how its formulas and rows are drawn. So settings of
:func:`sklearn_fpe.datasets.make_dnf` and of the schedule were searched, on seeds of
their own, for those whose three accuracies come nearest to the paper's; the nearest
setting (least largest deviation) was then measured on ten new seeds. The table lists
every setting that was tried.
"""

from benchmarks.experiments._claims import Claim, Table, listed, subplots, verdict
from benchmarks.experiments._grid import group, mean, product, run_jobs, show
from benchmarks.experiments._tasks import make_task
from benchmarks.experiments._training import fit_fpe, report

TITLE = "Boolean formulas: dense, random, clause-aware"
PAPER = {"dense": 78.7, "random": 88.7, "clause-aware": 99.4}
SPLITS = {
    "dense": (1, "random"),
    "random": (2, "random"),
    "clause-aware": (2, "groups"),
    "clause-aware, shared deal": (2, "shared groups"),
    "feature": (2, "feature"),
}
LEAST_GAP = 5.0

TASK = {"n_clauses": 8, "clause_size": 4, "n_variables": 64, "density": 0.4}
FIT = {"lr": 3e-3, "constant": True, "epochs": 60, "warmup": 0.25, "batch_size": 128}
QUICK = {"epochs": 5, "n_train": 5000}
SETTINGS = {
    "64 variables": {},
    "32 variables": {"n_variables": 32},
    "128 variables": {"n_variables": 128},
    "literals true with probability 0.3": {"density": 0.3},
    "literals true with probability 0.5": {"density": 0.5},
    "one clause true per positive row": {"positives": "single"},
    "half of the negatives are near misses": {"near_misses": 0.5},
    "negated literals": {"negated": True},
    "24 variables, shared by clauses": {"n_variables": 24, "shared": True},
    "clauses of 3 literals": {"clause_size": 3},
    "clauses of 5 literals": {"clause_size": 5},
    "4000 training rows": {"n_train": 4000},
    "learning rate 0.01": {"lr": 1e-2},
    "learning rate falls by a cosine": {"constant": False},
    "warm-up of 5 %": {"warmup": 0.05},
    "120 epochs": {"epochs": 120},
}
"""What differs from TASK and FIT."""


def run(quick, data=None, n_jobs=1):
    names = list(SETTINGS)[:2] if quick else list(SETTINGS)
    seeds, new_seeds = (
        (range(100, 102), range(2)) if quick else (range(100, 103), range(10))
    )
    search = _measured(names, list(PAPER), list(seeds), quick, n_jobs)
    nearest = min(names, key=lambda name: deviation(group(search, "setting")[name,]))
    rows = _measured([nearest], list(SPLITS), list(new_seeds), quick, n_jobs)
    return {"search": search, "nearest": nearest, "rows": rows}


def _measured(settings, methods, seeds, quick, n_jobs):
    jobs = product(setting=settings, seed=seeds, method=methods, quick=[quick])
    rows = run_jobs(measure, jobs, n_jobs)
    return [
        row
        for of_method in group(rows, "setting", "method").values()
        for row in of_method
    ]


def measure(setting, method, seed, quick, data=None):
    """Train one network on the formula of a seed."""
    options = TASK | FIT | (QUICK if quick else {}) | SETTINGS[setting]
    fit = {name: options.pop(name) for name in FIT}
    task = make_task("boolean", seed=seed, **options)
    expansion, split = SPLITS[method]
    return report(fit_fpe(task, (8,), expansion, split=split, seed=seed, **fit), task)


def deviation(rows):
    """Return the largest deviation of the three accuracies from the paper's."""
    return max(abs(mean(group(rows, "method")[m,]) - PAPER[m]) for m in PAPER)


def plot(result):
    figure, axes = subplots(2, sharey=True)
    methods = group(result["rows"], "method")
    for position, ((method,), rows) in enumerate(methods.items()):
        axes[0].bar(position, mean(rows), color=f"C{position}", alpha=0.5)
        axes[0].scatter(
            [position] * len(rows), [r["test"] for r in rows], s=8, color="k"
        )
        if method in PAPER:
            axes[0].plot(
                [position - 0.4, position + 0.4], [PAPER[method]] * 2, color="red", lw=2
            )
    axes[0].set_xticks(
        range(len(methods)),
        [
            m.replace("clause-aware", "clause-\naware").replace(", ", ",\n")
            for (m,) in methods
        ],
        fontsize="small",
    )
    axes[0].set(
        ylim=(50, 101), ylabel="Test accuracy (%)", title="Nearest setting (red: paper)"
    )
    for i, method in enumerate(PAPER):
        rows = [
            group(of_setting, "method")[method,]
            for of_setting in group(result["search"], "setting").values()
        ]
        axes[1].plot(range(len(rows)), [mean(r) for r in rows], "o", label=method)
        axes[1].axhline(PAPER[method], color=f"C{i}", lw=0.8, ls=":")
    axes[1].set(xlabel="Setting, in the order of the table", title="All settings tried")
    axes[1].legend()
    return figure


def tables(result):
    methods = group(result["rows"], "method")
    rows = [
        [m, f"{PAPER[m]:.1f}" if m in PAPER else "", show(r), f"{r[0]['n_nonzero']}"]
        for (m,), r in methods.items()
    ]
    n_seeds = len(methods["dense",])
    header = ["method", "paper, %", "here, %", "non-zeros"]
    first = Table(
        f"Test accuracy, {n_seeds} seeds, setting “{result['nearest']}”.", header, rows
    )
    settings = group(result["search"], "setting")
    rows = [
        [
            setting,
            *(show(group(of_setting, "method")[m,]) for m in PAPER),
            f"{deviation(of_setting):.1f}",
        ]
        for (setting,), of_setting in settings.items()
    ]
    header = ["setting, else as the first", *PAPER, "largest deviation"]
    caption = f"The search: test accuracy in %, {_n_search_seeds(result)} seeds."
    return [first, Table(caption, header, rows)]


def _n_search_seeds(result):
    return len({row["seed"] for row in result["search"]})


def claims(result):
    methods = group(result["rows"], "method")
    dense, random, aware = (mean(methods[m,]) for m in PAPER)
    gaps = random - dense, aware - random
    worse = [
        setting
        for (setting,), rows in group(result["search"], "setting").items()
        if mean(group(rows, "method")["random",])
        <= mean(group(rows, "method")["dense",])
    ]
    where = f"in “{listed(worse, '{}')}”" if worse else "in none of them"
    task = TASK | SETTINGS[result["nearest"]]
    n_settings = len(group(result["search"], "setting"))
    text = (
        f"In the setting nearest to the paper's figures (“{result['nearest']}”: "
        f"{task['n_variables']} variables, clauses of {task['clause_size']}, literals "
        f"true with probability {task['density']}) dense reaches {dense:.1f} %, random "
        f"{random:.1f} %, clause-aware {aware:.1f} %: gaps of {gaps[0]:.1f} and "
        f"{gaps[1]:.1f} points; the largest deviation from the paper is "
        f"{deviation(result['rows']):.1f} points. One assignment shared by all "
        f"neurons gives {mean(methods['clause-aware, shared deal',]):.1f} %, the "
        f"feature split, which is not told the clauses, "
        f"{mean(methods['feature',]):.1f} %. Of the {n_settings} settings that were "
        f"searched, the random split does not beat dense {where}."
    )
    return [
        Claim(
            "Dense < random < clause-aware",
            "78.7 %, 88.7 %, 99.4 % (8 clauses, 8 neurons, expansion 2)",
            f"Holds if both gaps are at least {LEAST_GAP:g} points in the nearest "
            "setting; partly if only the order is right.",
            verdict(min(gaps) >= LEAST_GAP, min(gaps) > 0),
            text,
        )
    ]
