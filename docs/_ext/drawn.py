"""Figures of what the benchmarks measured, drawn from their JSON at every build.

``.. drawn:: frontier`` (or another name of :data:`FIGURES`) draws panels beside each
other, or below each other where the screen is narrow. They are SVG inside the page,
with text in the colour of the page, so they are legible in both themes.
"""

import io
import re
import statistics

import matplotlib as mpl
import measured
import speed_tables
from docutils import nodes
from matplotlib.figure import Figure
from sphinx.util.docutils import SphinxDirective

INK = "#123456"
"""Stands for the colour of the page's text."""

COLORS = (
    *("#8a8a8a", "#3f8ecf", "#d9772b", "#3f9e5f", "#b06ab3", "#d1524f", "#9c8420"),
    "#2a9d9a",
)
MARKERS = "osD^vPXp"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK
    ),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
HIGHER, FEWER = "(higher is better)", "(fewer is better)"


def panel(height=3.1):
    """Return a figure with one axes; pyplot keeps no state of it."""
    figure = Figure(figsize=(4.6, height), layout="constrained")
    figure.patch.set_alpha(0)
    ax = figure.subplots()
    ax.patch.set_alpha(0)
    return figure, ax


def style(i):
    """Return colour and marker of the i-th line."""
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


def legend(figure, columns=2):
    """Put the legend below the axes."""
    figure.legend(loc="outside lower center", ncols=columns)


LINES = {
    name: method
    for name, method in measured.FRONTIER.items()
    if name not in {"dense, 2× parameters", "defaults", "defaults + skip"}
}
SHORT = ("dense", "linear probe, pruned", "learned split", "learned + skip")


def frontier(report, lines=LINES):
    """Accuracy against non-zeros, by data: a curve, or points of a single size."""
    found = {(r["task"], r["h"], r["method"]): r for r in report["rows"]}
    order = {name: i for i, name in enumerate(LINES)}
    for task, title in measured.DATA.items():
        widths = sorted({h for of, h, _ in found if of == task})
        figure, ax = panel(3.5 if len(widths) > 1 else 2.6)
        for name, method in lines.items():
            rows = [
                found[task, h, method] for h in widths if (task, h, method) in found
            ]
            look = style(order[name])
            y = [r["accuracy"] for r in rows]
            error = [r["spread"] for r in rows]
            if len(widths) > 1:
                # Structured networks use a few parameters less than they may.
                x = [r["n_nonzero"] for r in rows]
                ax.errorbar(x, y, error, label=name, capsize=2, **look)
            elif rows:
                row = list(lines).index(name)
                ax.errorbar(y, [row], xerr=error, capsize=2, linestyle="", **look)
        if len(widths) > 1:
            ax.set(xscale="log", xlabel=f"non-zero parameters {FEWER}")
            ticks = [found[task, h, "learned + skip"]["n_nonzero"] for h in widths]
            ax.set_xticks(ticks, [f"{n:,}".replace(",", " ") for n in ticks])
            ax.minorticks_off()
            ax.set_ylabel(f"accuracy, % {HIGHER}")
            ax.set_title(title)
            legend(figure)
        else:
            ax.set_yticks(range(len(lines)), lines)
            ax.invert_yaxis()
            ax.set_xlabel(f"test accuracy, % {HIGHER}", loc="right")
            n = found[task, widths[0], "learned + skip"]["n_nonzero"]
            ax.set_title(f"{title}, {n} parameters")
        yield f"Test accuracy on {title} at equal non-zero parameters.", figure


def frontier_short(report):
    """The methods that fit the first page, see :func:`frontier`."""
    yield from frontier(report, {name: LINES[name] for name in SHORT})


def cost(report):
    """Time of a fit against expansion, one line per network."""
    rows = [r for r in speed_tables.headline(report) if r["prune"]]
    names = list(dict.fromkeys(speed_tables.name_of(r) for r in rows))
    for of, label in (("fit", "time of a fit"), ("predict_4096", "time to predict")):
        for h in sorted({r["h"] for r in rows}):
            figure, ax = panel(3.6)
            for i, name in enumerate(names):
                own = [
                    r for r in rows if r["h"] == h and speed_tables.name_of(r) == name
                ]
                x = [1, *(r["expansion"] for r in own)]
                ax.plot(x, [1, *(r[of] for r in own)], label=name, **style(i))
            ax.set_xscale("log", base=2)
            ax.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
            ax.set(
                xlabel="expansion",
                ylabel="dense = 1 (lower is better)",
                title=f"{label}, {h} parents",
                ylim=(0, None),
            )
            legend(figure)
            yield f"{label} against expansion with {h} parents.", figure


def _bars(labels, values, texts, xlabel):
    figure, ax = panel(0.9 + 0.42 * len(labels))
    ax.barh(range(len(labels)), values, color=COLORS[1], alpha=0.75, height=0.6)
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        ax.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.set_xlim(0, 1.35 * max(values))
    ax.grid(visible=False)
    return figure


def caches(cache, embeddings):
    """Time with a cache as a share of the time without."""
    labels, values, texts = ["without a cache"], [100], ["100 %"]
    for n in dict.fromkeys(row["rows"] for row in cache["rows"]):
        ratio = statistics.median(r["ratio"] for r in cache["rows"] if r["rows"] == n)
        labels.append(f"search, {n:,} rows".replace(",", " "))
        values.append(100 * ratio)
        texts.append(f"{100 * (1 - ratio):.0f} % less")
    ratio = statistics.median(row["ratio"] for row in embeddings["rows"])
    labels.append("same images again")
    values.append(100 * ratio)
    texts.append(f"{1 / ratio:.0f} times faster")
    figure = _bars(labels, values, texts, "time, % of that without a cache")
    yield "Time with the caches.", figure


def memory(report):
    """Growth of a process's own memory beside the size of the file."""
    rows = report["rows"]
    labels = ["the file", "growth while fitting", "growth while predicting"]
    values = [
        rows[0]["map_MB"],
        max(row["fit_peak_MB"] for row in rows),
        max(row["predict_peak_MB"] for row in rows),
    ]
    texts = [f"{value:.0f} MB" for value in values]
    yield "Memory with a memory map.", _bars(labels, values, texts, "MB")


def engine(report):
    """Time of a dense fit in units of others', by size."""
    _, _, rows = speed_tables.engine(report)
    figure, ax = panel(5.2)
    for i, (name, column) in enumerate(
        {"bare torch loop": 2, "MLPClassifier": 3}.items()
    ):
        x = [float(row[column]) for row in rows]
        look = style(i + 1)
        ax.plot(x, range(len(rows)), linestyle="", label=f"relative to {name}", **look)
    ax.axvline(1, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), [f"{row[0]}, {row[1]} rows" for row in rows])
    ax.tick_params(axis="y", labelsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="time of a fit (below 1: faster here)", xlim=(0, None))
    ax.set_title("inputs – parents – classes")
    legend(figure)
    yield "Time of a dense fit relative to a bare torch loop and MLPClassifier.", figure


def compared(report):
    """Accuracy of other models, with their size."""
    for task, title in measured.DATA.items():
        rows = [row for row in report["rows"] if row["task"] == task]
        if not rows:
            continue
        figure, ax = panel(1 + 0.28 * len(rows))
        for i, row in enumerate(rows):
            own = row["method"] in measured.OF_THIS_LIBRARY
            ax.errorbar(
                row["accuracy"], i, xerr=row["spread"], capsize=2,
                color=COLORS[2 if own else 1], marker="o",
            )  # fmt: skip
        sizes = [measured.size_of(row) for row in rows]
        labels = [f"{r['method']} ({n})" for r, n in zip(rows, sizes, strict=True)]
        ax.set_yticks(range(len(rows)), labels)
        ax.invert_yaxis()
        ax.set_xlabel(f"test accuracy, % {HIGHER}", loc="right")
        ax.set_title(f"{title} (parameters)")
        yield f"Test accuracy of other models on {title}.", figure


FIGURES = {
    "frontier": (frontier, "frontier"),
    "frontier_short": (frontier_short, "frontier"),
    "cost": (cost, "speed"),
    "engine": (engine, "speed"),
    "memory": (memory, "memory"),
    "caches": (caches, "cache", "embedding_cache"),
    "compared": (compared, "compared"),
}
"""Functions that yield (description, figure), and the files that they take."""


def inline_svg(figure, name, description):
    """Return a figure as SVG to stand inside a page."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, **STYLE}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Names of parts are those of one picture; a page has several.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<svg (.*?)height="[^"]*"', r"<svg \1", svg, count=1, flags=re.DOTALL)
    label = f'<svg role="img" aria-label="{description}" '
    return svg.replace("<svg ", label, 1).replace(INK, "currentColor")


class Drawn(SphinxDirective):
    """The panels of one of :data:`FIGURES`."""

    required_arguments = 1

    def run(self):
        """Return the panels as HTML."""
        name = self.arguments[0]
        draw, *files = FIGURES[name]
        for file in files:
            self.env.note_dependency(str(measured.RESULTS / f"{file}.json"))
        missing = [f for f in files if not (measured.RESULTS / f"{f}.json").exists()]
        if missing:
            return [measured.missing(file) for file in missing]
        with mpl.rc_context(STYLE):
            panels = [
                inline_svg(figure, f"{name}{i}", description)
                for i, (description, figure) in enumerate(
                    draw(*map(measured.load, files))
                )
            ]
        html = "".join(f"<div>{svg}</div>" for svg in panels)
        return [nodes.raw("", f'<div class="drawn">{html}</div>', format="html")]


def setup(app):
    """Register with Sphinx."""
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": True}
