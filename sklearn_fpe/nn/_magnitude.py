"""Magnitude pruning: keep the largest weights of all layers.

The unit ``a * n_neurons + i`` of a hidden layer is child ``a`` of parent ``i``; the
units of a layer are the inputs of the next. Budgets count biases.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from sklearn_fpe.nn._shape import Shape

LAYER_FLOOR = 0.5
"""Least share of its parent's weights that magnitude pruning leaves every layer.

Of the weights that the budget pays for, where these are fewer than the parent's.
Without a floor, many copies of large outgoing weights starve the first layer.
"""

CROWDING = 1.25
"""Most parameters that magnitude pruning chooses from, in units of the budget.

Where the children have more, each run of children (one of every parent) loses its
weakest first. Without the bound, the budget is spread over so many copies of outgoing
weights that every child keeps a few edges only.
"""


class _Edges:
    """All edges of an expanded network, flat, from the largest weight to the smallest.

    ``source`` and ``target`` number the units through all hidden layers; -1 stands for
    an input or an output. Copies of an outgoing weight tie: they are ranked so that
    the first copy of one edge belongs to another child than that of the next edge.
    """

    def __init__(
        self, weights: list[np.ndarray], children: list[np.ndarray], shape: Shape
    ) -> None:
        widths = shape.fan_ins()[1:]
        start = np.cumsum([0, *widths])
        parts = []
        for level, weight in enumerate(weights):
            n_rows, n_columns = weight.shape
            row, column = np.ogrid[:n_rows, :n_columns]
            reads_units = 0 < level <= len(children)
            copies = shape.expansion[level - 1] if reads_units else 1
            copy, parent = np.divmod(column, n_columns // copies)
            rank = (copy - row - parent) % copies
            source, target = -1, -1
            if reads_units:
                source = start[level - 1] + column
            if level < len(children):
                target = start[level] + children[level] * n_rows + row
            arrays = (np.abs(weight), rank, level, source, target)
            parts.append([np.broadcast_to(a, weight.shape).ravel() for a in arrays])
        flat = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        # A stable sort on both keys: equal weights go by rank, then by position.
        self.order = np.lexsort((flat[1], -flat[0]))
        self.magnitude, _, self.layer, self.source, self.target = (
            array[self.order] for array in flat
        )
        self.shapes = [w.shape for w in weights]
        self.n_hidden = len(children)
        self.n_units = int(start[-1])

    def usable(self, alive: np.ndarray) -> np.ndarray:
        """Tell which edges join living units."""
        alive = np.append(alive, True)  # index -1
        return alive[self.source] & alive[self.target]

    def degree(
        self, chosen: Any, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sum the chosen edges, or their weights, into and out of every unit."""
        weights = None if weights is None else weights[chosen]
        n = self.n_units + 1
        into = np.bincount(self.target[chosen] + 1, weights, minlength=n)
        out = np.bincount(self.source[chosen] + 1, weights, minlength=n)
        return into[1:], out[1:]

    def strength(self) -> np.ndarray:
        """Product of the norms of a unit's edges in and out."""
        into, out = self.degree(np.s_[:], self.magnitude.astype(np.float64) ** 2)
        return np.sqrt(into * out)

    def connected(self, alive: np.ndarray) -> np.ndarray:
        """Drop the units that edges among `alive` do not join to inputs and outputs."""
        while True:
            into, out = self.degree(self.usable(alive))
            fewer = alive & (into > 0) & (out > 0)
            if (fewer == alive).all():
                return alive
            alive = fewer

    def path(self, alive: np.ndarray) -> np.ndarray:
        """Mark a path of large edges from an output back to an input."""
        usable = self.usable(alive)
        path = np.zeros(len(usable), dtype=bool)
        unit = -1
        for level in reversed(range(self.n_hidden + 1)):
            # The edges are sorted, so the first one is the largest.
            edge = (usable & (self.layer == level) & (self.target == unit)).argmax()
            path[edge] = True
            unit = self.source[edge]
        return path

    def cover(self, chosen: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Mark the largest usable edge into and out of the units that lack one."""
        marked = np.zeros(len(chosen), dtype=bool)
        for ends, n_edges in zip(
            (self.target, self.source), self.degree(chosen), strict=True
        ):
            lacking = np.append(n_edges == 0, False)
            edges = np.flatnonzero(usable & lacking[ends])
            _, first = np.unique(ends[edges], return_index=True)
            marked[edges[first]] = True
        return marked

    def masks(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Return a choice of edges as one mask per layer."""
        flat = np.zeros(len(self.order), dtype=bool)
        flat[self.order] = chosen
        ends = np.cumsum([r * c for r, c in self.shapes])[:-1]
        parts = zip(np.split(flat, ends), self.shapes, strict=True)
        return [part.reshape(shape) for part, shape in parts]


def prune_magnitude(
    weights: list[np.ndarray],
    children: list[np.ndarray],
    shape: Shape,
    budget: int,
    floor: float = LAYER_FLOOR,
    crowding: float = CROWDING,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Keep the largest weights of all layers, `budget` parameters in all.

    Biases of living units are kept and paid first. No layer is left with less than
    `floor` of its parent's weights. A unit without inputs or without outputs is
    removed, and what it held goes to the next largest weights. Where the others have
    too few edges for that, it stays and gets its largest edges.

    Parameters
    ----------
    weights : list of ndarrays
        Hidden layers: (n_neurons, n_inputs), the parents' rows over the units of the
        layer before; the output layer, (n_outputs, n_units); the skip connection if
        there is one, (n_outputs, n_inputs), which has no floor.
    children : list of n_hidden int ndarrays
        The partitions of the hidden layers.
    shape : Shape
        Shape of the network.
    budget : int
        Parameters to keep, biases included, within :func:`budget_range`.
    floor : float in [0, 0.5], default=LAYER_FLOOR
        Share of its parent's weights that every layer keeps; of the weights that
        `budget` pays for, where these are fewer.
    crowding : float >= 1, default=CROWDING
        Most parameters to choose from, in units of `budget`.

    Returns
    -------
    alive : list of n_hidden bool ndarrays of shape (n_units,)
        Units that are kept. Each has an edge in and an edge out, if `budget` pays for
        two edges and the bias of every unit; a few smaller budgets leave a unit that
        lacks one.
    keep : list of bool ndarrays
        Edges that are kept, of the shapes of `weights`.

    Raises
    ------
    ValueError
        If the partitions leave children without inputs, and the other children have
        fewer than `budget` parameters.
    """
    edges = _Edges(weights, children, shape)
    floors = _floors(shape, budget, floor)
    strength = edges.strength()

    def n_weights(alive: np.ndarray) -> int:
        """Count the weights that the budget pays for."""
        return budget - shape.n_outputs - int(alive.sum())

    def suffice(alive: np.ndarray) -> bool:
        """Tell whether there are edges enough for the budget and the floors."""
        of_layer = np.bincount(edges.layer[edges.usable(alive)], minlength=len(floors))
        enough = of_layer.sum() >= n_weights(alive)
        return bool(enough and (of_layer >= floors).all())

    alive = edges.connected(np.ones(edges.n_units, dtype=bool))
    if not suffice(alive):
        most = budget - n_weights(alive) + int(edges.usable(alive).sum())
        raise ValueError(
            f"budget must be at most {most}, the parameters of the children that the "
            f"split gave any inputs, got {budget}."
        )
    alive = _thin(edges, shape, alive, strength, crowding * budget, suffice)
    forced = edges.path(alive)
    while True:
        usable = edges.usable(alive)
        chosen = _largest(edges, usable, n_weights(alive), floors, forced)
        into, out = edges.degree(chosen)
        dead = np.flatnonzero(alive & ((into == 0) | (out == 0)))
        weakest_first = dead[np.argsort(strength[dead], kind="stable")]
        fewer = _remove(edges, alive, weakest_first, suffice)
        if (fewer != alive).any():
            alive = fewer
            continue
        more = forced | edges.cover(chosen, usable)
        if (more == forced).all() or (more & usable).sum() > n_weights(alive):
            break
        forced = more
    parts = np.split(alive, np.cumsum(shape.fan_ins()[1:]))[:-1]
    return parts, edges.masks(chosen)


def _floors(shape: Shape, budget: int, floor: float) -> np.ndarray:
    """Return the least number of weights of every layer."""
    weights = np.array([n_in * n_out for n_in, n_out in pairwise(shape.widths)])
    n_biases = shape.default_budget() - weights.sum()
    paid = min(1.0, max(0, budget - n_biases) / weights.sum())
    floors = (floor * paid * weights).astype(int)
    return np.append(floors, 0) if shape.skip else floors


def _thin(
    edges: _Edges,
    shape: Shape,
    alive: np.ndarray,
    strength: np.ndarray,
    limit: float,
    suffice: Callable[[np.ndarray], bool],
) -> np.ndarray:
    """Keep as many children, of all runs and layers alike, as stay below `limit`."""
    if not shape.hidden:
        return alive

    def strongest(share: float) -> np.ndarray:
        kept, start = alive.copy(), 0
        for n_parents, n_children in zip(shape.hidden, shape.expansion, strict=True):
            units = slice(start, start := start + n_parents * n_children)
            runs = -strength[units].reshape(n_children, n_parents)
            rank = runs.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            # Subtract a rounding error's worth: the share comes from a division.
            kept[units] &= (rank < math.ceil(share * n_parents - 1e-9)).ravel()
        return edges.connected(kept)

    def enough(share: float) -> bool:
        kept = strongest(share)
        size = edges.usable(kept).sum() + kept.sum() + shape.n_outputs
        return suffice(kept) and size >= limit

    shares = sorted({n / h for h in shape.hidden for n in range(1, h + 1)})
    first_enough = bisect(shares, False, key=enough)
    # The largest share below the limit, if it suffices; else the least that does.
    below, above = max(first_enough - 1, 0), min(first_enough, len(shares) - 1)
    for share in (shares[below], shares[above]):
        if suffice(kept := strongest(share)):
            return kept
    return alive


def _remove(
    edges: _Edges,
    alive: np.ndarray,
    units: np.ndarray,
    suffice: Callable[[np.ndarray], bool],
) -> np.ndarray:
    """Remove as many of `units`, from the first on, as leave others that suffice."""

    def without(n: int) -> np.ndarray:
        fewer = alive.copy()
        fewer[units[:n]] = False
        return edges.connected(fewer)

    counts = range(1, len(units) + 1)
    return without(bisect(counts, False, key=lambda n: not suffice(without(n))))


def _largest(
    edges: _Edges,
    usable: np.ndarray,
    n_weights: int,
    floors: np.ndarray,
    forced: np.ndarray,
) -> np.ndarray:
    """Choose usable edges: those forced, each layer's floor, then the largest."""
    chosen = forced & usable
    everywhere = np.ones(len(usable), dtype=bool)
    quotas = [(edges.layer == level, n) for level, n in enumerate(floors)]
    for where, wanted in [*quotas, (everywhere, n_weights)]:
        n_more = min(wanted - (chosen & where).sum(), n_weights - chosen.sum())
        if n_more > 0:
            chosen[np.flatnonzero(usable & where & ~chosen)[:n_more]] = True
    return chosen
