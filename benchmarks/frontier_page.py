"""Write ``frontier.md`` of the measurements in ``frontier.json``.

    python -m benchmarks.frontier_page

The first table is that of the documentation, the second has every method.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs" / "_ext"
WIDTH = 88


def table(header, rows):
    """Return the lines of a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def wrapped(text):
    """Return the lines of a paragraph."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) + 1 > WIDTH:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    return [*lines, line]


def score(row):
    """Format accuracy and spread, marked if the row was tuned in the older way."""
    if row is None:
        return "–"
    return f"{row['accuracy']:.1f} ± {row['spread']:.1f}{older(row)}"


def older(row):
    """Return the mark of a row that was measured before tuning was made equal."""
    return "*" if row["tuning"] and row.get("tuning_rows") is None else ""


def all_methods(report, names):
    """Return header and rows of the table of every method."""
    found = {(row["task"], row["h"], row["method"]): row for row in report["rows"]}
    methods = list(dict.fromkeys(row["method"] for row in report["rows"]))
    cases = sorted({(task, h) for task, h, _ in found}, key=lambda c: c[1])
    rows = []
    for task, name in names.items():
        for h in [h for of, h in cases if of == task]:
            n = found[task, h, "learned + skip"]["n_nonzero"]
            cells = [score(found.get((task, h, method))) for method in methods]
            rows.append([name, str(h), f"{n:,}".replace(",", " "), *cells])
    return ["data", "parents", "parameters", *methods], rows


def main():
    """Write the page."""
    sys.path.insert(0, str(DOCS))
    import measured

    report = json.loads((RESULTS / "frontier.json").read_text())
    caption, header, rows = measured.frontier(report)
    probes = [
        f"{row['accuracy']:.1f} on {measured.DATA[row['task']]} with "
        f"{row['n_nonzero']} parameters"
        for row in report["rows"]
        if row["method"] == "linear probe, full" and row["task"] in ("glyphs", "text")
    ]
    lines = [
        "# Test accuracy at equal non-zeros",
        "",
        *wrapped(
            "Made of `frontier.json`, which `python -m benchmarks.frontier` writes, by "
            "`python -m benchmarks.frontier_page`."
        ),
        "",
        *table(header, rows),
        "",
        *wrapped(caption),
        "",
        *wrapped(f"The whole linear probe has {' and '.join(probes)}."),
        "",
        "## All methods",
        "",
        *wrapped(
            "Structured networks have up to 3 % fewer parameters than the table says. "
            "SET, RigL, wide networks and DropConnect are written out in "
            "`benchmarks/experiments/_peers.py`; they have the same rows, grid, epochs "
            "and batches."
        ),
        "",
        *table(*all_methods(report, measured.DATA)),
        "",
    ]
    if any(older(row) for row in report["rows"]):
        lines += [*wrapped("\\* Tuned in the older way, see below."), ""]
    for note in report["settings"]["notes"]:
        lines += [*wrapped(note), ""]
    path = RESULTS / "frontier.md"
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
