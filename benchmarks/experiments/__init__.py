"""The paper's claims, measured by this library.

``python -m benchmarks.experiments`` trains, writes one JSON file per experiment, and
makes ``docs/results.rst`` and its figures of these files alone.

An experiment is a module with a docstring that says what is measured (it becomes the
text of the page) and

- ``TITLE``;
- ``run(quick, data, n_jobs) -> dict``: everything that was measured; `data` maps names
  of tasks (*glyphs*, *text*) to files of embeddings;
- ``plot(result) -> Figure``, ``tables(result)``, ``claims(result)``: what follows from
  it, computed whenever the page is made;
- ``text(result)``, where the docstring is not enough: further lines of the page, on
  those methods only that were measured.
"""

NAMES = (
    "boolean",
    "scaling",
    "collisions",
    "embeddings",
    "timing",
    "children",
    "peers",
    "depth",
    "prediction",
    "learned",
    "skip",
)
"""The experiments, in the order of the page."""
