"""Magnitude pruning: keep the largest weights of all layers.

Units are numbered as in a plan: unit ``a * n_parents + i`` of a hidden layer is child a
of parent i, and the units of a layer are the inputs of the next.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import pairwise
from typing import Any

import numpy as np

from sklearn_fpe.nn._shape import Shape

LAYER_FLOOR = 0.5
"""Share of its parent's weights that every layer keeps, if the budget pays for them.

Without a floor, many copies of large outgoing weights starve the first layer.
"""

CROWDING = 1.25
"""Most parameters that magnitude pruning chooses from, in units of the budget.

Children beyond that are dropped first, the weakest of each run (one child of every
parent), because the budget would be spread over so many copies of outgoing weights that
every child kept a few edges only.
"""


class _Edges:
    """All edges of an expanded network, flat, from the largest weight to the smallest.

    ``source`` and ``target`` number the units through all hidden layers; -1 stands for
    an input or an output. Copies of an outgoing weight tie, so they are ranked: the
    first copy of one edge belongs to another child than that of the next edge.
    """

    def __init__(
        self,
        weights: list[np.ndarray],
        children: list[np.ndarray],
        shape: Shape,
        budget: int,
        floor: float,
    ) -> None:
        start = np.cumsum([0, *shape.fan_ins()[1:]])
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
        magnitude, _, self.layer, self.source, self.target = (
            array[self.order] for array in flat
        )
        self.matrix_shapes = [w.shape for w in weights]
        self.shape, self.budget, self.n_units = shape, budget, int(start[-1])
        self.floors = _floors(shape, budget, floor)
        # The strength of a unit is the product of the norms of its edges in and out.
        into, out = self.degree(np.s_[:], magnitude.astype(np.float64) ** 2)
        self.strength = np.sqrt(into * out)

    def usable(self, alive: np.ndarray) -> np.ndarray:
        """Mark the edges that join living units."""
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

    def n_weights(self, alive: np.ndarray) -> int:
        """Count the weights that the budget pays for, after the biases."""
        return self.budget - self.shape.n_outputs - int(alive.sum())

    def suffice(self, alive: np.ndarray) -> bool:
        """Tell whether living units have edges enough for the budget and the floors."""
        layers = self.layer[self.usable(alive)]
        of_layer = np.bincount(layers, minlength=len(self.floors))
        enough = of_layer.sum() >= self.n_weights(alive)
        return bool(enough and (of_layer >= self.floors).all())

    def connected(self, alive: np.ndarray) -> np.ndarray:
        """Drop the units that edges among `alive` do not join to inputs and outputs."""
        while True:
            into, out = self.degree(self.usable(alive))
            fewer = alive & (into > 0) & (out > 0)
            if (fewer == alive).all():
                return alive
            alive = fewer

    def thinned(self, alive: np.ndarray, limit: float) -> np.ndarray:
        """Keep as many children, of all runs and layers alike, as stay below `limit`.

        The limit is a number of parameters.
        """
        if not self.shape.hidden:
            return alive
        sizes = list(zip(self.shape.expansion, self.shape.hidden, strict=True))

        def strongest(share: float) -> np.ndarray:
            kept, start = alive.copy(), 0
            for n_children, n_parents in sizes:
                units = slice(start, start := start + n_parents * n_children)
                runs = -self.strength[units].reshape(n_children, n_parents)
                order = runs.argsort(axis=1, kind="stable")
                rank = order.argsort(axis=1, kind="stable")
                # Subtract a rounding error's worth: the share comes from a division.
                kept[units] &= (rank < math.ceil(share * n_parents - 1e-9)).ravel()
            return self.connected(kept)

        def enough(share: float) -> bool:
            kept = strongest(share)
            size = self.usable(kept).sum() + kept.sum() + self.shape.n_outputs
            return self.suffice(kept) and size >= limit

        shares = sorted({n / h for _, h in sizes for n in range(1, h + 1)})
        first_enough = bisect(shares, False, key=enough)
        # The largest share below the limit, if it suffices; else the least that does.
        below, above = max(first_enough - 1, 0), min(first_enough, len(shares) - 1)
        for share in (shares[below], shares[above]):
            if self.suffice(kept := strongest(share)):
                return kept
        return alive

    def without(self, alive: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Remove units, the weakest first, as long as the others suffice."""
        weakest_first = units[np.argsort(self.strength[units], kind="stable")]

        def fewer(n: int) -> np.ndarray:
            kept = alive.copy()
            kept[weakest_first[:n]] = False
            return self.connected(kept)

        counts = range(1, len(units) + 1)
        return fewer(bisect(counts, False, key=lambda n: not self.suffice(fewer(n))))

    def path(self, alive: np.ndarray) -> np.ndarray:
        """Mark a path of large edges from an output back to an input."""
        usable = self.usable(alive)
        path = np.zeros(len(usable), dtype=bool)
        unit = -1
        for level in reversed(range(len(self.shape.hidden) + 1)):
            # The edges are sorted, so the first one is the largest.
            edge = (usable & (self.layer == level) & (self.target == unit)).argmax()
            path[edge] = True
            unit = self.source[edge]
        return path

    def largest(self, alive: np.ndarray, forced: np.ndarray) -> np.ndarray:
        """Choose usable edges: those forced, each layer's floor, then the largest."""
        usable, n_weights = self.usable(alive), self.n_weights(alive)
        chosen = forced & usable
        everywhere = np.ones(len(usable), dtype=bool)
        quotas = [(self.layer == level, n) for level, n in enumerate(self.floors)]
        for where, wanted in [*quotas, (everywhere, n_weights)]:
            n_more = min(wanted - (chosen & where).sum(), n_weights - chosen.sum())
            if n_more > 0:
                chosen[np.flatnonzero(usable & where & ~chosen)[:n_more]] = True
        return chosen

    def cover(self, chosen: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Mark the largest usable edge into and out of the units that lack one."""
        marked = np.zeros(len(chosen), dtype=bool)
        ends_and_degrees = zip(
            (self.target, self.source), self.degree(chosen), strict=True
        )
        for ends, n_edges in ends_and_degrees:
            lacking = np.append(n_edges == 0, False)
            edges = np.flatnonzero(usable & lacking[ends])
            _, first = np.unique(ends[edges], return_index=True)
            marked[edges[first]] = True
        return marked

    def masks(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Return a choice of edges as one mask per layer."""
        flat = np.zeros(len(self.order), dtype=bool)
        flat[self.order] = chosen
        ends = np.cumsum([r * c for r, c in self.matrix_shapes])[:-1]
        parts = zip(np.split(flat, ends), self.matrix_shapes, strict=True)
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

    The biases of living units are paid first. Every layer but the skip connection keeps
    the share `floor` of its parent's weights, or of those that the budget pays for,
    where these are fewer. A unit without inputs or without outputs is removed, and the
    next largest weights replace its others. Where the remaining units have too few
    edges for that, it stays and gets its largest edges. At first, children are dropped
    until there are at most `crowding` times `budget` parameters to choose from.

    `weights` are those of the parent over the units of the layer before, (n_parents,
    n_inputs) for every hidden layer, (n_outputs, n_units) for the output layer, and
    (n_outputs, n_inputs) for the skip connection if there is one. `children` are the
    partitions. Returns the fields `alive` and `keep` of a plan. Every unit has an edge
    in and an edge out, if the budget pays for two edges and the bias of every unit; a
    few smaller budgets leave a unit that lacks one.
    """
    edges = _Edges(weights, children, shape, budget, floor)
    alive = edges.connected(np.ones(edges.n_units, dtype=bool))
    if not edges.suffice(alive):
        most = budget - edges.n_weights(alive) + int(edges.usable(alive).sum())
        raise ValueError(
            f"budget must be at most {most}, the parameters of the children that the "
            f"split gave any inputs, got {budget}."
        )
    alive = edges.thinned(alive, crowding * budget)
    forced = edges.path(alive)
    while True:
        chosen = edges.largest(alive, forced)
        into, out = edges.degree(chosen)
        idle = np.flatnonzero(alive & ((into == 0) | (out == 0)))
        fewer = edges.without(alive, idle)
        if (fewer != alive).any():
            alive = fewer
            continue
        usable = edges.usable(alive)
        more = forced | edges.cover(chosen, usable)
        if (more == forced).all() or (more & usable).sum() > edges.n_weights(alive):
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
