"""Make the results page and its figures of the experiments' JSON, and of that alone."""

import inspect
import json
from html import escape
from importlib import import_module

import matplotlib

from benchmarks.experiments import NAMES
from benchmarks.experiments._claims import FAILS, HOLDS, PARTLY

HEAD = """\
.. This page is made by ``python -m benchmarks.experiments``: do not edit it.

Results
=======

This page compares the claims of the paper "Expand Neurons, Not Parameters"
(`arXiv:2510.04500 <https://arxiv.org/abs/2510.04500>`_) with measurements of this
library. Every figure is computed from the files that the experiments wrote, and every
verdict follows from the rule that is stated beside it. ± is a standard deviation over
seeds.
"""

VERBS = {HOLDS: "hold", PARTLY: "hold partly", FAILS: "do not hold here"}

FIGURE_SETTINGS = {
    "svg.hashsalt": "sklearn_fpe",
    "font.size": 9,
    "axes.titlesize": "medium",
}
"""With a fixed salt the same figures give the same files."""


def load_results(folder):
    """Read what the experiments wrote: {name: result}, in the order of the page."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {n: json.loads(p.read_text()) for n, p in paths.items() if p.exists()}


def write_page(results, page, figures):
    """Write the page to the path `page` and its figures into the folder `figures`."""
    figures.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, *_provenance(results), *_summary(results)]
    for name, result in results.items():
        module = _module(name)
        with matplotlib.rc_context(FIGURE_SETTINGS):
            path = figures / f"{name}.svg"
            module.plot(result).savefig(path, metadata={"Date": None})
        parts += _section(module, result, path.relative_to(page.parent))
    page.write_text("\n".join(parts), encoding="utf-8")


def _module(name):
    return import_module(f"benchmarks.experiments.{name}")


def _provenance(results):
    minutes = sum(r["seconds"] for r in results.values()) / 60
    machines = {(r["n_jobs"], r["torch"]) for r in results.values()}
    ran = " and ".join(
        f"{jobs} process{'es' if jobs > 1 else ''} of one thread, torch {torch}"
        for jobs, torch in sorted(machines)
    )
    text = f"The experiments took {minutes:.0f} minutes on {ran}."
    if any(r["quick"] for r in results.values()):
        text += (
            "\n\n.. warning::\n\n   Made with ``--quick``: too few seeds and epochs "
            "for the verdicts to mean anything."
        )
    missing = [f"*{_module(name).TITLE}*" for name in NAMES if name not in results]
    if missing:
        text += "\n\nNot run yet: " + "; ".join(missing) + "."
    without = [name for name, r in results.items() if r["data"] is None]
    if without:
        text += "\n\nNo file of embeddings was given to: " + ", ".join(without) + "."
    earlier = [
        f"*{_module(n).TITLE}*" for n, r in results.items() if "version" not in r
    ]
    if earlier:
        text += (
            "\n\nMeasured with an earlier training loop: " + "; ".join(earlier) + "."
        )
    for task, key in (("glyphs", "data"), ("text", "text")):
        files = sorted({r.get(key) for r in results.values()} - {None})
        if files:
            text += f"\n\n*{task}* was read from ``" + "``, ``".join(files) + "``."
    return [text, ""]


def _summary(results):
    """Return the claims by verdict, short enough for one screen."""
    claims = [
        (claim, _module(name).TITLE)
        for name, result in results.items()
        for claim in _module(name).claims(result)
    ]
    parts = ["Summary", "-------", "", f"Of {len(claims)} claims:", ""]
    for word, verb in VERBS.items():
        of_word = [(c.title, title) for c, title in claims if c.verdict == word]
        if of_word:
            parts += [f"**{len(of_word)} {verb}**", ""]
            parts += [f"* {claim} (`{title}`_)" for claim, title in of_word] + [""]
    return parts


def _section(module, result, figure):
    title = module.TITLE
    parts = [title, "-" * len(title), "", *_prose(module, result), ""]
    parts += [".. container:: wide-figure", ""]
    parts += [f"   .. image:: {figure.as_posix()}", f"      :alt: {title}", ""]
    for claim in module.claims(result):
        parts += [f"**{claim.title}: {claim.verdict}.** {claim.text}", ""]
        rule = f" *Rule:* {claim.rule}" if claim.rule else ""
        parts += [".. rst-class:: measured-caption", ""]
        parts += [f"*Paper:* {claim.paper}.{rule}", ""]
    for table in module.tables(result):
        parts += folded(table.caption.rstrip("."), table.header, table.rows)
    return parts


def folded(title, header, rows):
    """Return a table that the reader opens; each cell knows its column, for phones."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [
        f"<details><summary>{escape(title)}</summary>",
        '<div class="pst-scrollable-table-container"><table class="table measured">',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
    ]
    for row in rows:
        cells = zip(header, row, strict=True)
        lines.append("<tr>" + "".join(_cell(*cell) for cell in cells) + "</tr>")
    lines += ["</tbody></table></div></details>"]
    return [".. raw:: html", "", *(f"   {line}" for line in lines), ""]


def _cell(name, value):
    return f'<td data-label="{escape(name)}">{escape(str(value))}</td>'


def _prose(module, result):
    """Return the module's docstring without its title, and its text on the result."""
    prose = inspect.cleandoc(module.__doc__).splitlines()[2:]
    more = module.text(result) if hasattr(module, "text") else []
    return [*prose, "", *more] if more else prose
