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


def subplots(n, width=4.2, height=3.4, **options):
    """Make a figure with n axes side by side; pyplot keeps no state of it."""
    figure = Figure(figsize=(width * n, height), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False, **options)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    return figure, axes


def listed(values, form="{}"):
    """Join values to an enumeration."""
    texts = [form.format(value) for value in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)
