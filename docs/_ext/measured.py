"""Tables of what the benchmarks measured, read from their JSON at every build.

``.. measured:: frontier``, or another name of :data:`TABLES`, shows the figures of
``benchmarks/results``. No figure stands in the pages themselves, and where a file is
missing the table says which command makes it. With ``:folded: title`` the reader opens
the table.
"""

import json
import statistics
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from scaling_tables import scaling, scaling_estimate, scaling_simulated
from speed_tables import cells, cost, engine
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _score(row):
    if row is None:
        return "–"
    return f"{row['accuracy']:.1f} ± {row['spread']:.1f}"


FRONTIER = {
    "dense": "dense",
    "dense, 2× parameters": "dense, 2x parameters",
    "linear probe, pruned": "linear probe, pruned",
    "shared split": "magnitude, shared",
    "rewired blocks": "rewired, contiguous",
    "learned split": "learned",
    "dense + skip": "dense + skip",
    "learned + skip": "learned + skip",
    "defaults": "defaults",
    "defaults + skip": "defaults + skip",
}
"""Columns of the table, and methods of the benchmark."""

DATA = {"glyphs": "glyphs", "text": "WordNet", "digits": "digits", "boolean": "Boolean"}
"""The tasks as the table calls them, in its order."""


def frontier(report, columns=FRONTIER):
    """Test accuracy at equal non-zeros, by data and width."""
    found = {(row["task"], row["h"], row["method"]): row for row in report["rows"]}
    widths = sorted({(task, h) for task, h, _ in found})
    rows = []
    for task, name in DATA.items():
        for h in [h for of, h in widths if of == task]:
            cells = [found.get((task, h, method)) for method in columns.values()]
            # Gradual pruning keeps the budget to the parameter.
            n = found[task, h, "learned + skip"]["n_nonzero"]
            n_parameters = f"{n:,}".replace(",", " ")
            rows.append([name, str(h), n_parameters, *map(_score, cells)])
    caption = (
        f"Test accuracy in % ± standard deviation over {_seeds(report)} seeds. "
        f"{_choice(report)} All have the non-zero parameters of the dense network but "
        "for the one with twice as many and, on Boolean formulas, the linear probe, "
        "which has 65. Shared split: pruned once, by magnitude. Rewired blocks: "
        "contiguous."
    )
    return caption, ["data", "parents", "parameters", *columns], rows


LARGER = ("dense, 2x parameters", "linear probe, full")
"""Methods of the benchmark with more non-zeros than the others."""


def largest_gap(report, method="defaults + skip"):
    """Return how far a method is below the best of its size, and where the most.

    Returns
    -------
    gap : float
        Points below the best method with at most as many non-zeros.
    task, h : str, int
        Where it is the largest.
    """
    best, own = {}, {}
    for row in report["rows"]:
        place = row["task"], row["h"]
        if row["method"] not in LARGER:
            best[place] = max(best.get(place, 0.0), row["accuracy"])
        if row["method"] == method:
            own[place] = row["accuracy"]
    place = max(own, key=lambda p: best[p] - own[p])
    return best[place] - own[place], *place


def frontier_short(report):
    """Return the columns that fit the first page, see :func:`frontier`."""
    short = ("dense", "linear probe, pruned", "learned split", "learned + skip")
    columns = {name: FRONTIER[name] for name in short}
    _, header, rows = frontier(report, columns)
    caption = (
        f"Test accuracy in % ± standard deviation over {_seeds(report)} seeds at equal "
        "non-zeros (but 65 of the linear probe on Boolean formulas), with settings "
        "chosen on held-out training rows. The page “When it helps” has more methods, "
        "and says how settings were chosen."
    )
    return caption, header, rows


def _epochs(tasks):
    """Say how many epochs the tuned methods train for."""
    n = {name: tasks[name]["fit"]["max_iter"] for name in tasks}
    first, *others, last = [f"{n[name]} on {DATA[name]}" for name in n]
    first = first.replace(" on", " epochs on")
    return f"{', '.join([first, *others])} and {last}"


def _choice(report):
    """Say how learning rates and weight decays were chosen."""
    settings = report["settings"]
    n_settings = len(settings["rates"]) * len(settings["decays"])
    n_more = len(settings["rates"]) * len(settings["edge"])
    return (
        "Learning rate and weight decay were chosen on a fifth of the training rows, "
        f"held out, among {n_settings} settings, and {n_more} more where the largest "
        f"decay was the best. Tuned methods train for {_epochs(settings['tasks'])}. "
        "“Defaults” are those of the estimator, with 50 epochs everywhere and nothing "
        "chosen; the constants of the automatic rate and decay came from the held-out "
        "rows, after test scores of earlier defaults had been seen."
    )


def _seeds(report):
    numbers = sorted({len(row["scores"]) for row in report["rows"]})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def memory(report):
    """Growth of a process's own memory while it trains on a memory map."""
    rows = report["rows"]
    largest = [max(row[k] for row in rows) for k in ("fit_peak_MB", "predict_peak_MB")]
    settings = report["settings"]
    size = f"{settings['rows']} × {settings['columns']}"
    cells = [size, *(f"{mb:.0f}" for mb in (rows[0]["map_MB"], *largest))]
    caption = (
        f"Largest growth of the process's own memory, in MB, over {len(rows)} settings "
        f"of the classifier. Predictions are those of all rows at once."
    )
    header = ["memory map", "size, MB", "while fitting, MB", "while predicting, MB"]
    return caption, header, [cells]


def shards(report):
    """Growth of a process's own memory, and reads of a row, in a fit on shards."""
    cells = [
        [
            f"{row['files']} {row['kind']}",
            str(row["rows"]),
            f"{row['data_MB']:.0f}",
            f"{row['fit_peak_MB']:.0f}",
            str(row["reads_before_epochs"]),
            _span(row["least_reads_an_epoch"], row["most_reads_an_epoch"]),
        ]
        for row in report["rows"]
    ]
    caption = (
        f"Fits on float16 shards of {report['settings']['columns']} columns: largest "
        f"growth of the process's own memory, and how often a row is read, least and "
        f"most over all rows and epochs if they differ."
    )
    header = ["files", "rows", "size, MB", "growth, MB"]
    return caption, [*header, "reads before training", "reads an epoch"], cells


def _span(least, most):
    return str(least) if least == most else f"{least} to {most}"


def caches(cache, embeddings):
    """Time with a cache in units of the time without."""
    sizes = dict.fromkeys(row["rows"] for row in cache["rows"])
    rows = [
        [f"a search over {n} rows", *_spanned(cache["rows"], rows=n)] for n in sizes
    ]
    rows.append(["embedding the same images again", *_spanned(embeddings["rows"])])
    caption = (
        "Time with the cache in % of the time without. The search has 4 expansions, 2 "
        "splits and 3 folds and warms up for half of the epochs; hashing and writing "
        "are included."
    )
    return caption, ["what", "median, %", "least, %", "most, %"], rows


def search(report):
    """CPU time of searches, in units of that of FPESearchCV."""
    rows = [
        [
            str(row["h"]),
            f"{row['seconds']['FPESearchCV']:.1f} s",
            f"{row['ratio_grid']:.1f} × ({row['spread'][0]:.1f} to "
            f"{row['spread'][1]:.1f})",
            f"{row['ratio_memory']:.1f} ×",
            f"{row['ratio_skorch']:.0f} ×",
            f"{row['ratio_mlp_per_fit']:.1f} ×",
        ]
        for row in report["rows"]
    ]
    header = ["parents", "FPESearchCV", "GridSearchCV", "with memory="]
    header += ["masked skorch net", "MLPClassifier"]
    settings = report["settings"]
    caption = (
        f"CPU time of a search on {settings['rows']} rows of {settings['columns']} "
        f"columns, {settings['classes']} classes and {settings['epochs']} epochs: in "
        "seconds, then in units of it. Median and range of "
        f"{settings['repeats']} runs in turn. MLPClassifier has no expansion: the "
        "time is that of as many fits of the dense network. The skorch net's is that "
        "of one fit for every expansion times the number of fits."
    )
    return caption, header, rows


def _spanned(runs, **of):
    ratios = sorted(r["ratio"] for r in runs if of.items() <= r.items())
    return [
        f"{100 * r:.2g}" for r in (statistics.median(ratios), ratios[0], ratios[-1])
    ]


OF_THIS_LIBRARY = {
    "dense, here",
    "dense, here, 2× as wide",
    "linear probe, pruned",
    "expanded",
    "expanded, with skip",
    "defaults, with skip",
}


def size_of(row):
    """Number of parameters, as text."""
    n = row["n_nonzero"]
    return "≥ 130 000" if n is None else f"{n:,}".replace(",", " ")


def compared(report):
    """Accuracy, size and time of models that one could use instead."""
    rows = [
        [DATA[r["task"]], r["method"], size_of(r), _score(r), f"{r['seconds']:.2g}"]
        for task in DATA
        for r in report["rows"]
        if r["task"] == task
    ]
    caption = (
        "Test accuracy in % ± standard deviation over the seeds, and CPU seconds of a "
        f"fit on one thread of {report['hardware']['cpu']}. Settings were chosen among "
        "four, on held-out training rows; RealMLP and the defaults have none to "
        "choose. Of RealMLP the parameters between its hidden layers are counted."
    )
    return caption, ["data", "model", "parameters", "accuracy", "seconds"], rows


PEERS = {
    "FPE, shared split": "expanded, drawn split",
    "FPE, learned split": "expanded, learned split",
    "FPE, learned split, skip connection": "expanded, learned split and skip",
    "SET": "SET",
    "RigL": "RigL",
    "train wide, then prune": "wide, pruned once",
    "train wide, prune gradually": "wide, pruned gradually",
    "dense": "dense",
}
"""Methods of the experiment, and columns of the table of sparse training."""


def sparse(report):
    """Accuracy of sparse training at equal non-zeros, as the experiment ``peers``."""
    best = {}
    for row in report["rows"]:
        setting = (row["lr"], row.get("weight_decay"))
        key = row["task"], row["neurons"], row["method"]
        best.setdefault(key, {}).setdefault(setting, []).append(row)
    columns = [m for m in PEERS if any(m == method for *_, method in best)]
    rows = []
    for task, neurons in dict.fromkeys(key[:2] for key in best):
        cells = []
        for method in columns:
            of = best.get((task, neurons, method), {}).values()
            # The setting that was chosen has all seeds.
            runs = max(of, key=lambda r: (len(r), _mean(r, "validation")), default=[])
            scores = [r["test"] for r in runs]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(
                f"{statistics.fmean(scores):.1f} ± {spread:.1f}" if runs else "–"
            )
        rows.append([DATA.get(task, task), str(neurons), *cells])
    caption = (
        "Test accuracy in % ± standard deviation over seeds at equal non-zeros. Each "
        "method's setting was chosen on validation rows, over one grid for all."
    )
    return caption, ["data", "parents", *(PEERS[m] for m in columns)], rows


def _mean(rows, name):
    return statistics.fmean(row[name] for row in rows)


TABLES = {
    "compared": (compared, "compared"),
    "sparse": (sparse, "experiments/peers"),
    "frontier": (frontier, "frontier"),
    "frontier_short": (frontier_short, "frontier"),
    "cost": (cost, "speed"),
    "engine": (engine, "speed"),
    "cells": (cells, "speed"),
    "memory": (memory, "memory"),
    "shards": (shards, "shards"),
    "caches": (caches, "cache", "embedding_cache"),
    "search": (search, "search"),
    "scaling": (scaling, "scaling"),
    "scaling_simulated": (scaling_simulated, "scaling"),
    "scaling_estimate": (scaling_estimate, "scaling"),
}
"""Functions, and the benchmarks whose files they take."""


def load(name):
    """Read what the benchmark of that name wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


class Measured(SphinxDirective):
    """A table of :data:`TABLES`, or what to run where there is none."""

    required_arguments = 1
    option_spec = {"folded": directives.unchanged_required}  # noqa: RUF012

    def run(self):
        """Return the nodes of the table."""
        make, *names = TABLES[self.arguments[0]]
        paths = [RESULTS / f"{name}.json" for name in names]
        for path in paths:
            self.env.note_dependency(str(path))
        absent = [path.stem for path in paths if not path.exists()]
        if absent:
            return [missing(name) for name in absent]
        caption, header, rows = make(*map(load, names))
        above = nodes.paragraph("", caption, classes=["measured-caption"])
        html = _table(header, rows)
        if title := self.options.get("folded"):
            html = f"<details><summary>{escape(title)}</summary>{html}</details>"
        return [above, nodes.raw("", html, format="html")]


def missing(name):
    text = nodes.paragraph("", "Not measured in this checkout: ")
    text += nodes.literal("", f"python -m benchmarks.{name}")
    text += nodes.Text(" writes ")
    text += nodes.literal("", f"benchmarks/results/{name}.json")
    text += nodes.Text(", from which this table is made.")
    return nodes.note("", text)


def _table(header, rows):
    """Return a table as HTML; each cell knows its column, for narrow screens."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-label="{escape(name)}">{escape(cell)}</td>'
            for name, cell in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="pst-scrollable-table-container"><table class="table measured">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _drop_missing_page(app, docname, source):
    """Leave the page of all measurements out of the contents until it is made."""
    if docname == "index" and not (Path(app.srcdir) / "results.rst").exists():
        source[0] = source[0].replace("\n   results\n", "\n")


def setup(app):
    """Register with Sphinx."""
    app.add_directive("measured", Measured)
    app.connect("source-read", _drop_missing_page)
    return {"parallel_read_safe": True}
