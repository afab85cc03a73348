"""Structured pruning: drop whole inputs of a block and whole children.

What is kept are dense blocks, so nothing is masked and the products cost what the
parent's cost.
"""

from __future__ import annotations

import math

import numpy as np

from sklearn_fpe.nn._shape import Shape

INPUT_SHARE = {"contiguous": 0.9, "other": 0.75}
"""Least share of its inputs that structured pruning leaves every block, if it can.

What the budget then does not pay for is taken from the parents. Contiguous blocks of
equal length predict from all their columns, kept or not, because that is cheaper than
selecting columns.
"""


def least_parents(shape: Shape) -> tuple[int, ...]:
    """Least children per block: the next layer's blocks need an input each."""
    following = (*shape.expansion[1:], 1)
    return tuple(-(-b // a) for a, b in zip(shape.expansion, following, strict=True))


def structured_count(shape: Shape, n_reads: int, n_parents: tuple[int, ...]) -> int:
    """Count parameters when the first layer's blocks read `n_reads` inputs in all.

    Every living unit of a hidden layer feeds one block of the next, hence the count
    does not depend on which units live.
    """
    units = [a * p for a, p in zip(shape.expansion, n_parents, strict=True)]
    reads = [n_reads, *units]
    weights = sum(n * p for n, p in zip(reads, n_parents, strict=False))
    return weights + sum(units) + shape.n_outputs * (reads[-1] + 1)


def structured_sizes(
    shape: Shape, budget: int, input_share: float
) -> tuple[int, tuple[int, ...]]:
    """Decide how many inputs and how many children the blocks keep.

    Parents are dropped, in all layers alike, until blocks that read `input_share` of
    their inputs fit the budget; what is left buys further children, then inputs.

    Returns
    -------
    n_reads : int
        Inputs that the blocks of the first layer read, summed over blocks.
    n_parents : tuple of int
        Children per block of every hidden layer.
    """
    first = shape.expansion[0]
    least = least_parents(shape)

    def parents_at(share: float) -> tuple[int, ...]:
        # Add a rounding error's worth, because the share is the result of a division.
        wanted = (int(share * h + 1e-9) for h in shape.hidden)
        return tuple(max(p, q) for p, q in zip(least, wanted, strict=True))

    def fits(n_reads: int, n_parents: tuple[int, ...]) -> bool:
        return structured_count(shape, n_reads, n_parents) <= budget

    n_reads = max(first, math.ceil(input_share * shape.n_inputs))
    while n_reads > first and not fits(n_reads, least):
        n_reads = max(first, n_reads - first)
    shares = sorted({p / h for h in shape.hidden for p in range(1, h + 1)})
    affordable = [parents_at(s) for s in shares if fits(n_reads, parents_at(s))]
    n_parents = affordable[-1] if affordable else least
    for level in np.argsort(shape.expansion, kind="stable"):
        while n_parents[level] < shape.hidden[level]:
            wider = (*n_parents[:level], n_parents[level] + 1, *n_parents[level + 1 :])
            if not fits(n_reads, wider):
                break
            n_parents = wider
    left = budget - structured_count(shape, n_reads, n_parents)
    return min(shape.n_inputs, n_reads + left // n_parents[0]), n_parents


def choose_inputs(energy: np.ndarray, labels: np.ndarray, n_reads: int) -> np.ndarray:
    """Choose the inputs that every block reads, `n_reads` in all.

    Blocks lose the same share of their inputs, and every block keeps one, if `n_reads`
    is at least the number of blocks. `energy` (n_neurons, n_inputs) ranks the inputs of
    a block. Returns a bool array of shape (n_inputs,).
    """
    score = energy.sum(axis=0)
    sizes = np.bincount(labels)
    # Rank of every input within its block, the strongest first.
    order = np.lexsort((-score, labels))
    rank = np.empty(len(labels), dtype=np.intp)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # First one input of every block, then those that equal shares of all blocks hold.
    keep = np.zeros(len(labels), dtype=bool)
    keep[np.lexsort((-score, rank / sizes[labels]))[:n_reads]] = True
    return keep


def choose_units(
    energy: np.ndarray,
    labels: np.ndarray,
    n_blocks: int,
    n_parents: int,
    spare: int = 0,
    unit_cost: int = 1,
) -> tuple[np.ndarray, int]:
    """Choose the strongest children of every block.

    Parameters
    ----------
    energy : ndarray of shape (n_neurons, n_inputs)
        Saliency of every edge.
    labels : int ndarray of shape (n_inputs,)
        The block that reads each input.
    n_blocks, n_parents : int
        Blocks, and children that each keeps.
    spare : int, default=0
        Parameters that buy further children, the strongest that fit.
    unit_cost : int, default=1
        What a child costs besides its inputs.

    Returns
    -------
    alive : bool ndarray of shape (n_blocks * n_neurons,)
        The children that are kept.
    spare : int
        Parameters that are left.
    """
    score = np.stack([energy[:, labels == a].sum(axis=1) for a in range(n_blocks)])
    best = np.argsort(-score, axis=1, kind="stable")
    alive = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(alive, best[:, :n_parents], True, axis=1)
    cost = np.bincount(labels, minlength=n_blocks) + unit_cost
    for unit in np.argsort(-score, axis=None, kind="stable"):
        block, parent = np.unravel_index(unit, score.shape)
        if not alive[block, parent] and cost[block] <= spare:
            alive[block, parent] = True
            spare -= int(cost[block])
    return alive.ravel(), spare
