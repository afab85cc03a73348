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


def main():
    """Write the page."""
    sys.path.insert(0, str(DOCS))
    import measured

    report = json.loads((RESULTS / "frontier.json").read_text())
    caption, header, rows = measured.frontier(report)
    methods = dict.fromkeys(row["method"] for row in report["rows"])
    _, *all_methods = measured.frontier(report, {name: name for name in methods})
    probes = [
        f"{row['accuracy']:.1f} on {measured.DATA[row['task']]} with "
        f"{row['n_nonzero']} parameters"
        for row in report["rows"]
        if row["method"] == "linear probe, full" and row["task"] in ("glyphs", "text")
    ]
    gap, task, h = measured.largest_gap(report)
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
        *wrapped(
            f"“Defaults + skip” are at most {gap:.1f} points below the best method of "
            f"their size, on {measured.DATA[task]} with {h} parents."
        ),
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
        *table(*all_methods),
        "",
    ]
    for note in report["settings"]["notes"]:
        lines += [*wrapped(note), ""]
    path = RESULTS / "frontier.md"
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
