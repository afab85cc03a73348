"""Collisions and coverage of randomly dealt clauses.

Two clauses of k literals *collide* in a neuron if all their literals go to the same
child. Many neurons deal their inputs at random by the library's ``"random"`` split;
:func:`sklearn_fpe.inspection.clause_collisions` and ``clause_coverage`` count, and
``expected_collisions`` and ``expected_coverage`` say what to expect: the paper's
formula, in which inputs are dealt independently of each other, and the exact one for
children of equal size. No network is trained.
"""

import math

import numpy as np

from benchmarks.experiments._claims import (
    Claim,
    Table,
    listed,
    of_all,
    subplots,
    verdict,
)
from sklearn_fpe.inspection import (
    clause_collisions,
    clause_coverage,
    expected_collisions,
    expected_coverage,
)
from sklearn_fpe.nn import partition

TITLE = "Collisions and coverage against theory"
CLAUSE_SIZES = (2, 3, 4)
EXPANSIONS = (2, 3, 4, 8)
N_CLAUSES = 8
N_INPUTS = 256
N_NEURONS = 8
MOST_ERRORS = 3.0
LEAST_COVERAGE = 0.9


def run(quick, data=None, n_jobs=1):
    n_networks = 100 if quick else 3000
    rng = np.random.default_rng(0)
    return {
        "rows": [
            _count(k, a, n_networks, rng) for k in CLAUSE_SIZES for a in EXPANSIONS
        ]
    }


def _count(clause_size, expansion, n_networks, rng):
    clauses = np.arange(N_CLAUSES * clause_size).reshape(N_CLAUSES, clause_size)
    weight = np.zeros((N_NEURONS, N_INPUTS))
    collisions, coverage = [], []
    for _ in range(n_networks):
        children = partition(weight, expansion, "random", rng=rng)
        collisions.append(clause_collisions(children, clauses))
        coverage.append(clause_coverage(children, clauses))
    arguments = {"expansion": expansion, "clause_size": clause_size}
    return arguments | {
        "n_networks": n_networks,
        "collisions": float(np.mean(collisions)),
        "collisions_error": float(np.std(collisions) / math.sqrt(n_networks)),
        "coverage": float(np.mean(coverage)),
        "paper": float(expected_collisions(**arguments, n_clauses=N_CLAUSES)),
        "exact": float(
            expected_collisions(**arguments, n_clauses=N_CLAUSES, n_inputs=N_INPUTS)
        ),
        "expected_coverage": float(
            expected_coverage(**arguments, n_neurons=N_NEURONS, n_inputs=N_INPUTS)
        ),
    }


def _errors(row):
    """Return the deviation from the exact count in standard errors.

    The error of a rare count is that of a Poisson variable of its expectation.
    """
    n = row["n_networks"] * N_NEURONS
    error = max(row["collisions_error"], math.sqrt(row["exact"] / n))
    return abs(row["collisions"] - row["exact"]) / error


def plot(result):
    figure, axes = subplots(2)
    for i, k in enumerate(CLAUSE_SIZES):
        rows = [row for row in result["rows"] if row["clause_size"] == k]
        alpha = [row["expansion"] for row in rows]
        seen = [row["collisions"] or math.nan for row in rows]
        axes[0].loglog(alpha, seen, "o", color=f"C{i}", label=f"k = {k}")
        axes[0].loglog(alpha, [row["paper"] for row in rows], color=f"C{i}", lw=1)
        axes[1].plot(alpha, [row["coverage"] for row in rows], "o", color=f"C{i}")
        expected = [row["expected_coverage"] for row in rows]
        axes[1].plot(alpha, expected, color=f"C{i}", lw=1)
    axes[0].set(ylim=(1e-6, 10), ylabel="Collisions per neuron")
    axes[0].set_title("Dots: counted, lines: expected", fontsize="medium")
    axes[1].set(ylim=(0, 1.05), ylabel=f"Coverage by {N_NEURONS} neurons")
    axes[0].legend()
    for ax in axes:
        ax.set_xlabel("Expansion")
        ax.set_xticks(EXPANSIONS, EXPANSIONS)
        ax.minorticks_off()
    return figure


def tables(result):
    rows = [
        [
            str(row["clause_size"]),
            str(row["expansion"]),
            f"{row['collisions']:.2g}",
            f"{row['paper']:.2g}",
            f"{row['exact']:.2g}",
            f"{row['coverage']:.3f}",
            f"{row['expected_coverage']:.3f}",
        ]
        for row in result["rows"]
    ]
    header = ["k", "expansion", "collisions", "paper's formula", "exact"]
    header += ["coverage", "expected coverage"]
    caption = (
        f"Collisions per neuron of {N_CLAUSES} clauses of k literals among {N_INPUTS} "
        f"inputs, and share of the clauses that a child of {N_NEURONS} neurons holds."
    )
    return [Table(caption, header, rows)]


def claims(result):
    rows = result["rows"]
    errors = [_errors(row) for row in rows]
    ratios = [row["paper"] / row["exact"] for row in rows]
    kept = [row for row in rows if row["coverage"] >= LEAST_COVERAGE]
    lost = [
        f"{row['coverage']:.2f} (k = {row['clause_size']}, α = {row['expansion']})"
        for row in rows
        if row["expansion"] in (2, max(EXPANSIONS))
    ]
    pairs = math.comb(N_CLAUSES, 2)
    faster = sum(row["collisions"] / pairs < row["coverage"] for row in rows)
    counted = (
        f"Over {rows[0]['n_networks']} networks of {N_NEURONS} neurons the counts "
        f"differ from the exact expectation by at most {max(errors):.1f} standard "
        f"errors. The paper's formula is {min(ratios):.2f} to {max(ratios):.2f} times "
        "the exact one: children of equal size collide less."
    )
    coverage = (
        f"{len(kept)} of {len(rows)} cases keep it. From 1 before the split the "
        f"coverage falls to {listed(lost)}: long clauses and large expansions lose it "
        f"on {N_NEURONS} neurons. Collisions fall by more than coverage in "
        f"{faster} of {len(rows)} cases."
    )
    return [
        Claim(
            "Collisions of two clauses in one child",
            "∝ α^−(2k−1)",
            f"Holds if every count is within {MOST_ERRORS:g} standard errors of the "
            "exact expectation; partly if some are.",
            of_all([error <= MOST_ERRORS for error in errors]),
            counted,
        ),
        Claim(
            "Coverage is nearly unchanged",
            "nearly unchanged",
            f"Holds if at least {LEAST_COVERAGE:.0%} of the clauses still lie in some "
            "child in every case; partly if in some.",
            verdict(len(kept) == len(rows), bool(kept)),
            coverage,
        ),
    ]
