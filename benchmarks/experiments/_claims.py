"""What is said of a claim, and how tables and figures are made."""

from dataclasses import dataclass

from matplotlib.figure import Figure

HOLDS, PARTLY, FAILS = "holds", "holds partly", "does not hold here"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, the rule by which it is judged, and what was found."""

    title: str
    paper: str
    rule: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Table:
    caption: str
    header: list[str]
    rows: list[list[str]]


def verdict(holds, partly):
    """Return a verdict from two conditions, the stricter one first."""
    return HOLDS if holds else PARTLY if partly else FAILS


def of_all(conditions):
    """Return a verdict from a condition per case: all, some, none."""
    return verdict(all(conditions), any(conditions))


def subplots(n, width=4.0, height=3.2, **options):
    """Make a figure with n axes, two to a row; pyplot keeps no state of it.

    Two fit the width of a page without becoming too small to read.
    """
    columns = min(n, 2)
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for ax in axes[:n]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


def listed(values, form="{}"):
    """Join values to an enumeration."""
    texts = [form.format(value) for value in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)
