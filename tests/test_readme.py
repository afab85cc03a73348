import re
from pathlib import Path

import numpy as np
import pytest
from clip_checkpoint import save_clip
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
FRONTIER = README.parent / "benchmarks" / "results" / "frontier.md"
FIGURES = re.compile(r"\| *(\d|glyphs|WordNet|digits|Boolean)")
"""Start of a table's row that holds measured figures."""
FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


def python_blocks(text):
    """Code of each Python block, with its first line's number, counted from 1."""
    return [
        (match.group(1), text.count("\n", 0, match.start(1)) + 1)
        for match in FENCE.finditer(text)
    ]


def run_blocks(path, namespace):
    for code, line in python_blocks(path.read_text(encoding="utf-8")):
        # Empty lines in front make a traceback point at the line of the document.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


def test_blocks_are_found_with_their_lines():
    text = "# A\n```python\nx = 1\n```\n```sh\nls\n```\n\n```python\ny = x\nz = y\n```"
    assert python_blocks(text) == [("x = 1\n", 3), ("y = x\nz = y\n", 10)]


def test_blocks_share_a_namespace(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("```python\nx = 1\n```\ntext\n```python\ny = x + 1\n```\n")
    namespace = {}
    run_blocks(document, namespace)
    assert namespace["y"] == 2


def test_readme_has_no_python_block_that_is_not_run():
    text = README.read_text(encoding="utf-8")
    n_blocks = len(python_blocks(text))
    assert n_blocks > 0
    # Indented, upper-case, tilde or attribute fences would escape the expression.
    assert len(re.findall(r"(?:```|~~~)\W*py", text, re.IGNORECASE)) == n_blocks


def draw_pictures(folder):
    """Draw two classes of pictures that differ in their colour, and one more."""
    rng = np.random.default_rng(0)
    for label, color in enumerate([(230, 40, 40), (40, 40, 230)]):
        (folder / "pictures" / f"class{label}").mkdir(parents=True)
        for i in range(9):
            pixels = rng.normal(color, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            image.save(folder / "pictures" / f"class{label}" / f"{i}.png")
    image.save(folder / "new.png")


def test_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path)
    # A folder of the checkpoint's name stands in for the download.
    save_clip(tmp_path / "openai" / "clip-vit-base-patch32", projection_dim=64)
    run_blocks(README, {"__name__": "__main__"})


def table_lines(path):
    """Cells of every row of figures in a Markdown file."""
    return [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if FIGURES.match(line)
    ]


def test_figures_are_those_of_the_committed_measurements(monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "docs" / "_ext")
    measured = pytest.importorskip("measured", reason="Sphinx is not installed")
    known = {
        tuple(row)
        for make, *names in measured.TABLES.values()
        for row in make(*(measured.load(name) for name in names))[2]
    }
    lines = table_lines(README)
    assert len(lines) >= 8
    assert [line for line in lines if line not in known] == []


def test_the_table_at_equal_non_zeros_is_that_of_the_measurements(monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "docs" / "_ext")
    measured = pytest.importorskip("measured", reason="Sphinx is not installed")
    _, header, rows = measured.frontier(measured.load("frontier"))
    text = FRONTIER.read_text(encoding="utf-8")
    assert f"| {' | '.join(header)} |" in text
    assert {*map(tuple, rows)} <= {*table_lines(FRONTIER)}


def test_how_far_the_defaults_are_below_the_best_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(README.parent / "docs" / "_ext")
    measured = pytest.importorskip("measured", reason="Sphinx is not installed")
    rows = [
        {"task": task, "h": 4, "method": method, "accuracy": accuracy}
        for task, method, accuracy in [
            ("a", "defaults + skip", 90.0),
            ("a", "dense", 91.0),
            ("a", "dense, 2x parameters", 99.0),
            ("b", "defaults + skip", 80.0),
            ("b", "dense", 70.0),
        ]
    ]
    assert measured.largest_gap({"rows": rows}) == (1.0, "a", 4)
    gap, *_ = measured.largest_gap(measured.load("frontier"))
    for path in (README, FRONTIER):
        text = " ".join(path.read_text(encoding="utf-8").split())
        assert f"at most {gap:.1f} points below the best" in text
