"""Structured pruning: drop whole inputs of a block and whole children.

Dense blocks are left, so nothing is masked and a product costs what the parent's costs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import is_shared

if TYPE_CHECKING:
    from sklearn_fpe.nn._prune import Splitter

INPUT_SHARE = {"contiguous": 0.9, "other": 0.75}
"""Least share of its inputs that every block keeps, if the budget allows it.

Children are dropped before that. The share is higher for contiguous blocks, because
they multiply all their columns, kept or not, which costs less than selecting columns.
"""


def prune_structured(
    weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Split and prune layer by layer: inputs that live are assigned to blocks.

    Returns the fields `children`, `alive` and `keep` of a plan. Masks are broadcast
    views, because a block keeps everything between its inputs and its children.
    """
    input_share = INPUT_SHARE["contiguous" if splitter.rule.contiguous else "other"]
    n_reads, n_parents = structured_sizes(shape, budget, input_share)
    spare = budget - structured_count(shape, n_reads, n_parents)
    fan_outs = (*n_parents[1:], shape.n_outputs)
    children, alive, keep = [], [], []
    inputs, n_units = np.arange(shape.n_inputs), shape.n_inputs
    for level, n_children in enumerate(shape.expansion):
        weight = weights[level][:, inputs % weights[level].shape[1]]
        labels = _shared_row(splitter.split(weight, n_children, level), n_children)
        out_norm = np.linalg.norm(weights[level + 1], axis=0)
        energy = (weight * out_norm[:, None]) ** 2
        reads = np.ones(len(inputs), dtype=bool)
        if level == 0:
            reads = choose_inputs(energy, labels, n_reads)
        units, spare = choose_units(
            energy[:, reads],
            labels[reads],
            n_children,
            n_parents[level],
            spare,
            unit_cost=1 + fan_outs[level],
        )
        row = np.zeros(n_units, dtype=np.intp)
        row[inputs] = labels
        read = np.zeros(n_units, dtype=bool)
        read[inputs] = reads
        size = (shape.hidden[level], n_units)
        children.append(np.broadcast_to(row, size))
        keep.append(np.broadcast_to(read, size))
        alive.append(units)
        inputs, n_units = np.flatnonzero(units), len(units)
    keep.append(np.broadcast_to(True, (shape.n_outputs, n_units)))
    return children, alive, keep


def _shared_row(children: np.ndarray, n_children: int) -> np.ndarray:
    """Return the partition that all neurons share; check a user's."""
    if not is_shared(children):
        raise ValueError(
            'prune="structured" needs a partition that all neurons of a layer '
            "share: a callable split must return equal rows."
        )
    found = np.unique(children[0])
    if len(found) < n_children:
        raise ValueError(
            'prune="structured" needs inputs for every child: a callable split '
            f"must return all children in [0, {n_children}), got {found.tolist()}."
        )
    return children[0]


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
    """Return how many inputs and how many children the blocks keep.

    Children are dropped, in all layers alike, until blocks that read `input_share` of
    their inputs fit the budget; the rest of it buys further children, then inputs. The
    inputs are those of the first layer, summed over blocks; the children are per block,
    for every hidden layer.
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

    Blocks lose the same share of their inputs, the weakest by `energy`, of shape
    (n_neurons, n_inputs). Every block keeps one, if `n_reads` is at least the number of
    blocks. Returns a bool array of shape (n_inputs,).
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
    """Choose the strongest `n_parents` children of every block.

    `energy` (n_neurons, n_inputs) is the saliency of every edge, `labels` (n_inputs,)
    the block that reads each input. `spare` parameters buy further children, the
    strongest that fit, at a cost of their inputs and `unit_cost`. Returns the children,
    bool of shape (n_blocks * n_neurons,), and the parameters that are left.
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
