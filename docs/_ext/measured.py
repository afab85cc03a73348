"""Tables of what the benchmarks measured, read from their JSON at every build.

``.. measured:: accuracy``, ``frontier``, ``cost``, ``engine``, ``cells``, ``memory``,
``shards``, ``caches``, ``search`` or ``scaling`` shows the figures of ``benchmarks/results``. No
figure stands in the pages themselves, and where a file is missing the table says which
command makes it.
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
        "Time with the cache relative to the time without, median and range of runs. "
        "The search has 4 expansions, 2 splits and 3 folds and warms up for half of "
        "the epochs; hashing and writing are included."
    )
    return caption, ["what", "median", "least", "most"], rows


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
    return [f"{r:.3g}" for r in (statistics.median(ratios), ratios[0], ratios[-1])]


def _size(row):
    return f"{row['d']} – {row['h']} – {row['C']}", row["network"]


def scaling(report):
    """Rows per second of fits on several processes, and the share of messages."""
    rows = [
        [
            *_size(row),
            str(row["processes"]),
            str(row["batch_size"]),
            f"{row['step_ms']:.2f}",
            f"{row['cpu_ms']:.2f}",
            f"{row['message_ms']:.2f}" if row["processes"] > 1 else "–",
            f"{row['rows_per_s']:.0f}",
            f"{100 * row['all_reduce_share']:.0f} %",
        ]
        for row in report["rows"]
        if row["batch"] in ("together", "each")
    ]
    header = ["inputs – parents – classes", "network", "processes", "batch_size"]
    header += ["step, ms", "CPU, ms", "message, ms", "rows per second", "all-reduce"]
    hardware = report["hardware"]
    caption = (
        f"Fits on {hardware['cpu']} with {hardware['cores']} cores, one thread a "
        f"process, {report['settings']['rows']} rows each, gloo on one machine, the "
        f"fastest of {report['settings']['repeats']} rounds. When they began, "
        f"{report['load_before']:.0f} processes ran or waited for these cores. Medians "
        f"of the time and of the CPU time of a step; the time "
        f"of the all-reduce alone, where processes begin it together; and its share of "
        f"the whole time, waiting for the slower process included."
    )
    return caption, header, rows


def scaling_simulated(report):
    """Speedup of larger worlds over one process, simulated."""
    sizes = sorted({row["processes"] for row in report["simulated"]})
    found = {}
    for row in report["simulated"]:
        key = (*_size(row), row["link"])
        found.setdefault(key, {})[row["processes"]] = row["speedup"]
    rows = [[*key, *(f"{of[size]:.1f}" for size in sizes)] for key, of in found.items()]
    links = report["links"]
    described = ", ".join(
        f"{name}: {1e6 * link['latency_s']:.0f} µs and "
        f"{link['bytes_per_s'] / 1e9:.3g} GB/s"
        for name, link in links.items()
    )
    caption = (
        f"Rows per second relative to one process, with a batch of "
        f"{report['settings']['batch_size']} rows for each process, by number of "
        f"processes. Latency and bandwidth of a message: {described}; those of this "
        f"machine are fitted to the all-reduce of two processes, the others assumed."
    )
    header = ["inputs – parents – classes", "network", "link", *map(str, sizes)]
    return caption, header, rows


def scaling_estimate(report):
    """Hours of an epoch over very many rows, by arithmetic."""
    assumed = report["estimate"]["assumptions"]
    rows = [
        [
            *_size(row),
            str(row["processes"]),
            f"{row['compute_h']:.2f}",
            f"{row['messages_h']:.2f}",
            f"{row['reading_h']:.2f}",
            f"{row['GB_on_disk']:.1f}",
            f"{row['GB_sent']:.0f}",
        ]
        for row in report["estimate"]["rows"]
    ]
    batch = report["settings"]["batch_size"]
    n_rows = f"{assumed['rows']:,}".replace(",", " ")
    caption = (
        f"One epoch over {n_rows} rows. Assumed: batches of {batch} rows "
        f"for each process, so that an epoch has {n_rows} / ({batch} × "
        f"processes) steps; steps as long as the mean CPU time of one process here, "
        f"with one thread; {assumed['network']} as above; numbers of "
        f"{assumed['bytes_per_number']} bytes read once an epoch, by every process "
        f"from a disk of its own, at {assumed['disk_bytes_per_s'] / 1e6:.0f} MB/s; no "
        f"process slower than the others."
    )
    header = ["inputs – parents – classes", "network", "processes"]
    header += ["computing, h", "messages, h", "reading, h"]
    return caption, [*header, "GB read, each", "GB sent, each"], rows


TABLES = {
    "accuracy": (accuracy, "accuracy"),
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
