"""Tables of what the benchmarks measured, read from their JSON at every build.

``.. measured:: accuracy``, ``cost`` or ``memory`` shows the figures of
``benchmarks/results``. No figure stands in the pages themselves, and where a file is
missing the table says which command makes it.
"""

import json
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
    return "–" if row is None else f"{row['accuracy']:.1f} ± {row['spread']:.1f}"


def cost(report):
    """CPU or wall time of fit and predict, in units of the dense parent's."""
    rows = []
    for row in report["rows"]:
        if row["expansion"] in (4, 8) and (
            row["model"].startswith("naive") or _is_method(row)
        ):
            rows.append(
                [
                    f"{row['d']} – {row['h']} – {row['C']}",
                    _name(row),
                    str(row["expansion"]),
                    *(f"{row[k]:.2f}" for k in ("fit", "predict_4096", "predict_1")),
                ]
            )
    settings, hardware = report["settings"], report["hardware"]
    device = hardware["gpu"] if settings["device"] != "cpu" else hardware["cpu"]
    caption = (
        f"Time relative to expansion=1 with the same parents and epochs, on {device}, "
        f"{settings['threads']} thread(s), batches of {settings['batch_size']}."
    )
    header = [
        "inputs – parents – classes",
        "network",
        "expansion",
        "fit",
        "predict 4096 rows",
        "predict one row",
    ]
    return caption, header, rows


def _is_method(row):
    return (row["prune"], row["split"]) in {
        ("structured", "contiguous"),
        ("structured", "shared"),
        ("magnitude", "shared"),
        ("magnitude", "random"),
    }


def _name(row):
    return f"{row['prune']}, {row['split']}" if row["prune"] else row["model"]


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


TABLES = {
    "accuracy": ("accuracy.json", accuracy, "python -m benchmarks.accuracy"),
    "cost": ("speed.json", cost, "python -m benchmarks.speed"),
    "memory": ("memory.json", memory, "python -m benchmarks.memory"),
}


class Measured(SphinxDirective):
    """A table of :data:`TABLES`, or what to run where there is none."""

    required_arguments = 1

    def run(self):
        """Return the nodes of the table."""
        file, make, command = TABLES[self.arguments[0]]
        path = RESULTS / file
        self.env.note_dependency(str(path))
        if not path.exists():
            return [_missing(file, command)]
        caption, header, rows = make(json.loads(path.read_text(encoding="utf-8")))
        if not rows:
            return [_missing(file, command)]
        # Beside the table: it shall not scroll with it on a narrow screen.
        below = nodes.paragraph("", caption, classes=["measured-caption"])
        return [_table(header, rows), below]


def _missing(file, command):
    text = nodes.paragraph("", "Not measured in this checkout: ")
    text += nodes.literal("", command)
    text += nodes.Text(" writes ")
    text += nodes.literal("", f"benchmarks/results/{file}")
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
