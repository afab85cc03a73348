"""Tables of what the benchmarks measured, read from their JSON at every build.

``.. measured:: accuracy``, ``frontier``, ``cost``, ``engine``, ``cells``, ``memory`` or
``caches`` shows the figures of ``benchmarks/results``. No figure stands in the pages
themselves, and where a file is missing the table says which command makes it.
"""

import json
import statistics
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EXPANSION = 4
METHODS = {
    "expanded, default": f"magnitude, shared, expansion {EXPANSION}",
    "expanded, structured": f"structured, contiguous, expansion {EXPANSION}",
}


def accuracy(report):
    """Test accuracy by width: dense, expanded, dense with twice the parameters."""
    nets = {"dense": "dense", **METHODS, "dense, 2× parameters": "dense, 2x parameters"}
    found = {(row["parents"], row["net"]): row for row in report["rows"]}
    widths = sorted({row["parents"] for row in report["rows"]})
    rows = []
    for width in widths:
        cells = [found.get((width, net)) for net in nets.values()]
        if cells[0] is None:
            continue
        n_parameters = f"{cells[0]['n_nonzero']:,}".replace(",", " ")
        rows.append([str(width), n_parameters, *map(_score, cells)])
    settings = report["settings"]
    data = Path(settings["data"]).stem if settings.get("data") else "digits"
    caption = (
        f"Test accuracy in % ± standard deviation on {data}, {settings['max_iter']} "
        f"epochs, {settings['seeds']} seeds, each network at its own best learning "
        f"rate. Expanded: {EXPANSION} children per neuron."
    )
    return caption, ["parents", "parameters", *nets], rows


def _score(row):
    if row is None:
        return "–"
    return (
        f"{row['accuracy']:.1f} ± {row['spread']:.1f}{OLDER if _is_older(row) else ''}"
    )


OLDER = "†"
"""Mark of a row that was measured before every method was tuned in the same way."""


def _is_older(row):
    return bool(row.get("tuning")) and row.get("tuning_rows") is None


def _older(report, columns):
    """Explain the mark if the columns have it."""
    if not any(_is_older(r) for r in report["rows"] if r["method"] in columns.values()):
        return ""
    return f" {OLDER} Measured earlier, tuned over at most 12 settings and 10 000 rows."


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
        "Test accuracy in % ± standard deviation over "
        f"{_seeds(report)} seeds, each method at its own best learning rate and weight "
        "decay. All have the non-zero parameters of the dense network but for the one "
        "with twice as many and, on Boolean formulas, the linear probe, which has 65. "
        "Shared split: pruned once, by magnitude. Rewired blocks: contiguous. Defaults "
        "are those of the estimator: 50 epochs, nothing chosen."
    )
    caption += _older(report, columns)
    return caption, ["data", "parents", "parameters", *columns], rows


def frontier_short(report):
    """Return the columns that fit the first page, see :func:`frontier`."""
    short = ("dense", "linear probe, pruned", "learned split", "learned + skip")
    columns = {name: FRONTIER[name] for name in short}
    _, header, rows = frontier(report, columns)
    caption = (
        "Test accuracy in % ± standard deviation over "
        f"{_seeds(report)} seeds at equal non-zeros (but 65 of the linear probe on "
        "Boolean formulas), each method at its own best learning rate and weight "
        "decay. The page “When it helps” has more methods."
    )
    return caption + _older(report, columns), header, rows


def _seeds(report):
    numbers = sorted({len(row["scores"]) for row in report["rows"]})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def cost(report):
    """Time of fit and predict by method, in units of the dense parent's."""
    rows = [
        [str(row["h"]), _name(row), str(row["expansion"]), *_times(row)]
        for row in _headline(report)
        if row["prune"] and row["expansion"] in (4, 8)
    ]
    cell = report["rows"][0]
    caption = (
        f"Time relative to expansion=1 with the same parents and epochs; {cell['d']} "
        f"inputs, {cell['C']} classes, {cell['rows']} rows, batches of "
        f"{report['settings']['batch_size']}, {_machine(report)}."
    )
    return caption, ["parents", "network", "expansion", *TIMES], rows


def engine(report):
    """Time of a fit in units of what else one could run, at every size."""
    by_cell = {}
    for row in report["rows"]:
        by_cell.setdefault(_cell(row), []).append(row)
    rows = []
    for cell, of_cell in by_cell.items():
        others = {row["model"]: row["fit"] for row in of_cell if row["prune"] is None}
        structured = next(
            row["fit"]
            for row in of_cell
            if (row["prune"], row["split"], row["expansion"])
            == ("structured", "contiguous", 8)
        )
        naive = others.get("naive masked skorch")
        rows.append(
            [
                *cell,
                f"{1 / others['bare torch loop']:.2f}",
                f"{1 / others['MLPClassifier']:.2f}",
                "–" if naive is None else f"{naive / structured:.1f}",
            ]
        )
    header = [*CELL, "bare torch loop", "MLPClassifier", "masked net, times faster"]
    caption = (
        "Time of a fit with expansion=1, divided by that of a bare loop in torch and "
        "of MLPClassifier in float32 (below 1: faster), and how many times faster than "
        "a masked net in skorch a fit with expansion=8, structured, contiguous is; "
        f"{_machine(report)}."
    )
    return caption, header, rows


def cells(report):
    """Time of fit and predict at other sizes, and what binds."""
    headline = _headline(report)
    rows = [
        [
            *_cell(row),
            _name(row),
            str(row["expansion"]),
            *_times(row),
            row["binds"].replace("no gather", "–"),
        ]
        for row in report["rows"]
        if row["prune"] and row not in headline
    ]
    header = [*CELL, "network", "expansion", *TIMES]
    caption = (
        f"Time relative to expansion=1 at other sizes, {_machine(report)}; "
        "multiplications of a training step and activations relative to the dense "
        "parent's, and whether columns are gathered for predictions."
    )
    return caption, [*header, "what binds"], rows


CELL = ["inputs – parents – classes", "rows"]
TIMES = ["fit", "predict 4096 rows", "predict one row"]


def _cell(row):
    return f"{row['d']} – {row['h']} – {row['C']}", str(row["rows"])


def _times(row):
    return [f"{row[key]:.2f}" for key in ("fit", "predict_4096", "predict_1")]


def _headline(report):
    """Rows of the cells that were measured in full: the naive way is in them."""
    full = {
        (row["d"], row["h"], row["C"], row["rows"])
        for row in report["rows"]
        if row["model"].startswith("naive")
    }
    full = {cell for cell in full if cell[3] == report["settings"]["rows"]}
    return [
        row
        for row in report["rows"]
        if (row["d"], row["h"], row["C"], row["rows"]) in full
    ]


def _machine(report):
    settings, hardware = report["settings"], report["hardware"]
    device = hardware["gpu"] if settings["device"] != "cpu" else hardware["cpu"]
    return f"{device}, {settings['threads']} thread(s)"


def _name(row):
    return f"{row['prune']}, {row['split']}"


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
    header = ["memory map", "size", "while fitting", "while predicting"]
    return caption, header, [cells]


def caches(cache, embeddings):
    """Time with a cache in units of the time without."""
    sizes = dict.fromkeys(row["rows"] for row in cache["rows"])
    rows = [
        [f"a search over {n} rows", *_spanned(cache["rows"], rows=n)] for n in sizes
    ]
    rows.append(["embedding the same images again", *_spanned(embeddings["rows"])])
    caption = (
        "Time with the cache relative to the time without, median and range of runs. "
        "The search has 4 expansions, 2 splits and 3 folds and warms up for half of "
        "the epochs; hashing and writing are included."
    )
    return caption, ["what", "median", "least", "most"], rows


def _spanned(runs, **of):
    ratios = sorted(r["ratio"] for r in runs if of.items() <= r.items())
    return [f"{r:.3g}" for r in (statistics.median(ratios), ratios[0], ratios[-1])]


TABLES = {
    "accuracy": (accuracy, "accuracy"),
    "frontier": (frontier, "frontier"),
    "frontier_short": (frontier_short, "frontier"),
    "cost": (cost, "speed"),
    "engine": (engine, "speed"),
    "cells": (cells, "speed"),
    "memory": (memory, "memory"),
    "caches": (caches, "cache", "embedding_cache"),
}
"""Functions, and the benchmarks whose files they take."""


def load(name):
    """Read what the benchmark of that name wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


class Measured(SphinxDirective):
    """A table of :data:`TABLES`, or what to run where there is none."""

    required_arguments = 1

    def run(self):
        """Return the nodes of the table."""
        make, *names = TABLES[self.arguments[0]]
        paths = [RESULTS / f"{name}.json" for name in names]
        for path in paths:
            self.env.note_dependency(str(path))
        missing = [path.stem for path in paths if not path.exists()]
        if missing:
            return [_missing(name) for name in missing]
        caption, header, rows = make(*map(load, names))
        # Beside the table: it shall not scroll with it on a narrow screen.
        below = nodes.paragraph("", caption, classes=["measured-caption"])
        return [_table(header, rows), below]


def _missing(name):
    text = nodes.paragraph("", "Not measured in this checkout: ")
    text += nodes.literal("", f"python -m benchmarks.{name}")
    text += nodes.Text(" writes ")
    text += nodes.literal("", f"benchmarks/results/{name}.json")
    text += nodes.Text(", from which this table is made.")
    return nodes.note("", text)


def _table(header, rows):
    table = nodes.table(classes=["measured"])
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    group += nodes.thead("", _row(header))
    group += nodes.tbody("", *map(_row, rows))
    table += group
    return table


def _row(cells):
    entries = [nodes.entry("", nodes.paragraph("", cell)) for cell in cells]
    return nodes.row("", *entries)


def _drop_missing_page(app, docname, source):
    """Leave the page of all measurements out of the contents until it is made."""
    if docname == "index" and not (Path(app.srcdir) / "results.rst").exists():
        source[0] = source[0].replace("\n   results\n", "\n")


def setup(app):
    """Register with Sphinx."""
    app.add_directive("measured", Measured)
    app.connect("source-read", _drop_missing_page)
    return {"parallel_read_safe": True}
