"""The pages: their code runs, what they quote exists, their figures are whole."""

import ast
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from clip_checkpoint import save_clip
from test_readme import draw_pictures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.rst"), *(DOCS / "user_guide").glob("*.rst")])
BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", re.MULTILINE)
NOT_RUN = {
    "sentence_transformers": "downloads an encoder",
    "scheduler:8786": "needs a cluster; examples/dask_search.py makes one",
    "distributed=True": "needs processes; examples/distributed_fit.py starts them",
    "ray.train": "needs Ray",
    "img_emb": "reads what another tool wrote; tests/test_shards.py writes such files",
}
"""What stands in code that cannot be run here, and why."""


def blocks(page):
    """Code of a page that is no doctest, and can be run."""
    code = [textwrap.dedent(m) for m in BLOCK.findall(page.read_text("utf-8"))]
    return [c for c in code if not any(word in c for word in NOT_RUN)]


def test_code_that_is_not_run_is_still_there():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(word in text for word in NOT_RUN)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the extra 'clip' is not installed")
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path)
    save_clip(tmp_path / "openai" / "clip-vit-base-patch32", projection_dim=64)
    rng = np.random.default_rng(0)
    np.save("embeddings.npy", rng.normal(size=(60, 8)).astype(np.float32))
    namespace = {"y": np.arange(60) % 3}
    for code in blocks(page):
        exec(code, namespace)


def texts(node):
    """Text of a string or an f-string, with … for its values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = node.values
        return "".join(texts(v) if isinstance(v, ast.Constant) else "…" for v in parts)
    return ""


def test_messages_that_are_explained_exist():
    source = []
    for path in (ROOT / "sklearn_fpe").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        source += [texts(node) for node in ast.walk(tree)]
    page = (DOCS / "user_guide" / "messages.rst").read_text(encoding="utf-8")
    titles = re.findall(r"^(``.*``)$", page, re.MULTILINE)
    quoted = [text for title in titles for text in re.findall(r"``(.*?)``", title)]
    assert len(quoted) > 20
    missing = [text for text in quoted if not any(text in s for s in source)]
    assert missing == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    check_links = pytest.importorskip("check_links")
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="#x"><a href="#y"><a href="b.html#z"><a href="c.html">'
        '<a href="https://example.org/d"><img src="e.png">'
    )
    (tmp_path / "b.html").write_text('<a name="z" href="a.html#x">')
    expected = ["a.html: #y", "a.html: c.html", "a.html: e.png"]
    assert check_links.broken(tmp_path) == expected


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    return pytest.importorskip("drawn", reason="Sphinx is not installed")


def test_figures_have_unique_names_and_the_colour_of_the_page(drawn):
    import matplotlib as mpl

    used = []
    for name, (draw, *files) in drawn.FIGURES.items():
        with mpl.rc_context(drawn.STYLE):
            panels = list(draw(*map(drawn.measured.load, files)))
            assert panels
            for i, (description, figure) in enumerate(panels):
                svg = drawn.inline_svg(figure, f"{name}{i}", description)
                assert "currentColor" in svg
                assert drawn.INK not in svg
                assert description in svg
                ids = re.findall(r'\bid="([^"]+)"', svg)
                assert {*re.findall(r"url\(#([^)]+)\)", svg)} <= {*ids}
                used += ids
    assert len(used) == len(set(used))


def test_the_first_page_shows_the_methods_of_its_figure(drawn):
    _, header, _ = drawn.measured.frontier_short(drawn.measured.load("frontier"))
    assert set(drawn.SHORT) <= set(header)


def test_a_page_uses_the_figures_and_tables_that_exist(drawn):
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"^.. drawn:: (\w+)", text, re.M)) <= set(drawn.FIGURES)
        named = set(re.findall(r"^.. measured:: (\w+)", text, re.M))
        assert named <= set(drawn.measured.TABLES)
