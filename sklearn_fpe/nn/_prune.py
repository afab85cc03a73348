"""Prune rules: an expanded network and a budget to what is kept.

The unit ``a * n_neurons + i`` of a hidden layer is child ``a`` of parent ``i``; the
units of a layer are the inputs of the next. Budgets count biases.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PRUNES = ("magnitude", "structured")
"""The names of the prune rules."""

LAYER_FLOOR = 0.5
"""Least share of its parent's weights that magnitude pruning leaves every layer.

Scaled by the budget where that is below the parent's. Without a floor, many copies of
large outgoing weights starve the first layer.
"""

INPUT_SHARE = 0.625
"""Least share of its inputs that structured pruning leaves every block, if it can.

What the budget then does not pay for comes off the parents.
"""


@dataclass(frozen=True)
class Sizes:
    """Shape of a network: inputs, parents per hidden layer, outputs, expansions."""

    n_inputs: int
    hidden: tuple[int, ...]
    n_outputs: int
    expansion: tuple[int, ...]

    def fan_ins(self):
        """Units that feed each hidden layer and the output layer."""
        units = [h * a for h, a in zip(self.hidden, self.expansion, strict=True)]
        return [self.n_inputs, *units]

    def n_parameters(self):
        """Parameters of the expanded network before pruning, biases included."""
        fan_ins = self.fan_ins()
        weights = sum(h * n for h, n in zip(self.hidden, fan_ins, strict=False))
        return weights + sum(fan_ins[1:]) + self.n_outputs * (fan_ins[-1] + 1)

    def n_parent_parameters(self):
        """Parameters of the dense parent network, biases included."""
        ones = (1,) * len(self.hidden)
        return Sizes(self.n_inputs, self.hidden, self.n_outputs, ones).n_parameters()


def budget_range(sizes, prune="magnitude"):
    """Return the least and the largest budget that `prune` can meet."""
    if prune == "structured":
        least = structured_count(sizes, sizes.expansion[0], least_parents(sizes))
    else:
        least = 2 * len(sizes.hidden) + 1 + sizes.n_outputs
    return least, sizes.n_parameters()


# --------------------------------------------------------------------------------------
# Magnitude
# --------------------------------------------------------------------------------------


class _Edges:
    """All edges of an expanded network, flat, from the largest weight to the smallest.

    Copies of an outgoing weight tie. They are ranked so that the first copy of one
    edge belongs to another child than the first copy of the next edge.
    """

    def __init__(self, weights, children, sizes):
        fan_ins = sizes.fan_ins()
        first_unit = np.cumsum([0, *fan_ins[1:]])
        magnitude, rank, layer, source, target = [], [], [], [], []
        for level, weight in enumerate(weights):
            n_rows, n_columns = weight.shape
            row, column = np.indices(weight.shape)
            output = level == len(children)
            unit = row * 0 - 1 if output else children[level] * n_rows + row
            copies = sizes.expansion[level - 1] if level else 1
            copy, parent = np.divmod(column, n_columns // copies)
            magnitude.append(np.abs(weight))
            rank.append((copy - row - parent) % copies)
            layer.append(np.full(weight.shape, level))
            source.append(column + first_unit[level - 1] if level else row * 0 - 1)
            target.append(unit if output else unit + first_unit[level])

        def flat(arrays):
            return np.concatenate([a.ravel() for a in arrays])

        magnitude, rank = flat(magnitude), flat(rank)
        # A stable sort on both keys: equal weights go by rank, then by position.
        self.order = np.lexsort((rank, -magnitude))
        self.magnitude = magnitude[self.order]
        self.layer = flat(layer)[self.order]
        self.source = flat(source)[self.order]
        self.target = flat(target)[self.order]
        self.shapes = [w.shape for w in weights]
        self.n_units = int(first_unit[-1])
        self.n_outputs = sizes.n_outputs
        self.unit_layer = np.repeat(np.arange(len(children)), fan_ins[1:])

    def usable(self, alive):
        """Tell which edges join living units."""
        # Index -1 stands for an input or an output, which always lives.
        alive = np.append(alive, True)
        return alive[self.source] & alive[self.target]

    def capacity(self, alive):
        """Count the parameters there would be if nothing else were pruned."""
        return int(self.usable(alive).sum() + alive.sum() + self.n_outputs)

    def degree(self, chosen):
        """Count the chosen edges into and out of every unit."""
        n = self.n_units
        into = np.bincount(self.target[chosen] + 1, minlength=n + 1)[1:]
        out = np.bincount(self.source[chosen] + 1, minlength=n + 1)[1:]
        return into, out

    def strength(self):
        """Product of the norms of a unit's edges in and out."""
        square, n = self.magnitude.astype(np.float64) ** 2, self.n_units + 1
        into = np.bincount(self.target + 1, weights=square, minlength=n)[1:]
        out = np.bincount(self.source + 1, weights=square, minlength=n)[1:]
        return np.sqrt(into * out)

    def strongest(self, units, ends):
        """Mark the largest edge that has each of `units` at the end `ends`."""
        wanted = np.zeros(self.n_units + 1, dtype=bool)
        wanted[units] = True
        position = np.flatnonzero(wanted[ends])
        _, first = np.unique(ends[position], return_index=True)
        marked = np.zeros(len(ends), dtype=bool)
        marked[position[first]] = True
        return marked

    def strongest_path(self):
        """Mark the edges of one strong path from an input to an output."""
        path = np.zeros(len(self.layer), dtype=bool)
        n_layers = len(self.shapes)
        # log of the best product of weights from any input to each unit
        best = np.zeros(self.n_units + 1)
        choice = np.full(self.n_units + 1, -1)
        log = np.log(self.magnitude.astype(np.float64).clip(min=1e-300))
        for level in range(n_layers):
            edges = np.flatnonzero(self.layer == level)
            score = log[edges] + np.where(level > 0, best[self.source[edges]], 0.0)
            by_target = np.lexsort((-score, self.target[edges]))
            targets, first = np.unique(self.target[edges][by_target], return_index=True)
            winner = by_target[first]
            reached = np.full(self.n_units + 1, -np.inf) if level == 0 else best
            reached[targets] = score[winner]
            best = reached
            choice[targets] = edges[winner]
        edge = choice[-1]
        while True:
            path[edge] = True
            if self.source[edge] < 0:
                return path
            edge = choice[self.source[edge]]

    def masks(self, chosen):
        """Lay a choice of edges out as one mask per layer."""
        flat = np.zeros(len(self.order), dtype=bool)
        flat[self.order] = chosen
        ends = np.cumsum([r * c for r, c in self.shapes])[:-1]
        return [
            part.reshape(shape)
            for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)
        ]


def prune_magnitude(weights, children, sizes, budget, floor=LAYER_FLOOR):
    """Keep the largest weights of all layers, `budget` parameters in all.

    Biases of living units are kept and paid first. No layer is left with less than
    `floor` of its parent's weights. A unit without inputs or without outputs is
    removed, and what it held goes to the next largest weights.

    Parameters
    ----------
    weights : list of n_hidden + 1 ndarrays
        Hidden layers: (n_neurons, n_inputs), the parents' rows over the units of the
        layer before; last: the output layer, (n_outputs, n_units).
    children : list of n_hidden int ndarrays
        The partitions of the hidden layers.
    sizes : Sizes
        Shape of the network.
    budget : int
        Parameters to keep, biases included, within :func:`budget_range`.
    floor : float in [0, 1), default=LAYER_FLOOR
        Share of its parent's weights that every layer keeps.

    Returns
    -------
    alive : list of n_hidden bool ndarrays of shape (n_units,)
        Units that are kept.
    keep : list of n_hidden + 1 bool ndarrays
        Edges that are kept, of the shapes of `weights`.
    """
    edges = _Edges(weights, children, sizes)
    floors = floor * _parent_weights(sizes)
    floors *= min(1.0, budget / sizes.n_parent_parameters())
    forced = edges.strongest_path()
    alive = _affordable(edges, sizes, budget, forced)
    while True:
        chosen = _largest(edges, alive, budget, floors, forced)
        into, out = edges.degree(chosen)
        dead = np.flatnonzero(alive & ((into == 0) | (out == 0)))
        if not len(dead):
            break
        fewer = _without(edges, alive, dead, budget)
        if fewer is not None:
            alive = fewer
            continue
        # The budget cannot be spent without these units: give them their best edges.
        usable = edges.usable(alive)
        more = forced | (usable & edges.strongest(dead, edges.source))
        more |= usable & edges.strongest(dead, edges.target)
        n_weights = budget - edges.n_outputs - alive.sum()
        if more.sum() == forced.sum() or more.sum() > n_weights:
            break
        forced = more
    units = np.cumsum(sizes.fan_ins()[1:])[:-1]
    return np.split(alive, units), edges.masks(chosen)


def _parent_weights(sizes):
    widths = [sizes.n_inputs, *sizes.hidden, sizes.n_outputs]
    return np.array([a * b for a, b in pairwise(widths)], float)


def _affordable(edges, sizes, budget, path):
    """Keep the strongest units whose bias, one edge in and one out can be paid."""
    strength = edges.strength()
    on_path = np.unique(edges.source[path])
    strength[on_path[on_path >= 0]] = np.inf
    order = np.argsort(-strength, kind="stable")
    room = budget - edges.n_outputs - (len(sizes.hidden) + 1)
    n_alive = min(edges.n_units, max(len(sizes.hidden), room // 3))
    alive = np.zeros(edges.n_units, dtype=bool)
    alive[order[:n_alive]] = True
    for unit in order[n_alive:]:
        if edges.capacity(alive) >= budget:
            break
        alive[unit] = True
    return alive


def _without(edges, alive, dead, budget):
    """Remove dead units, as many as leave enough edges to spend the budget on."""
    fewer = alive.copy()
    fewer[dead] = False
    if edges.capacity(fewer) >= budget:
        return fewer
    strength = edges.strength()
    for unit in dead[np.argsort(strength[dead], kind="stable")]:
        fewer = alive.copy()
        fewer[unit] = False
        if edges.capacity(fewer) >= budget:
            return fewer
    return None


def _largest(edges, alive, budget, floors, forced):
    """Choose edges: those forced, each layer's floor, then the largest of all."""
    n_weights = budget - edges.n_outputs - int(alive.sum())
    usable = edges.usable(alive)
    chosen = forced & usable
    for level, least in enumerate(floors):
        of_layer = usable & (edges.layer == level)
        missing = int(least) - int((chosen & of_layer).sum())
        missing = min(missing, n_weights - int(chosen.sum()))
        if missing > 0:
            chosen[np.flatnonzero(of_layer & ~chosen)[:missing]] = True
    missing = n_weights - int(chosen.sum())
    chosen[np.flatnonzero(usable & ~chosen)[: max(missing, 0)]] = True
    return chosen


# --------------------------------------------------------------------------------------
# Structured
# --------------------------------------------------------------------------------------


def least_parents(sizes):
    """Least children per block: the next layer's blocks need an input each."""
    following = (*sizes.expansion[1:], 1)
    return tuple(-(-b // a) for a, b in zip(sizes.expansion, following, strict=True))


def structured_count(sizes, n_reads, n_parents):
    """Count parameters when the first layer's blocks read `n_reads` inputs in all.

    Every living unit of a hidden layer feeds one block of the next, hence the count
    does not depend on which units live.
    """
    units = [a * p for a, p in zip(sizes.expansion, n_parents, strict=True)]
    reads = [n_reads, *units]
    weights = sum(n * p for n, p in zip(reads, n_parents, strict=False))
    return weights + sum(units) + sizes.n_outputs * (reads[-1] + 1)


def structured_sizes(sizes, budget, input_share=None):
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
    input_share = INPUT_SHARE if input_share is None else input_share
    first = sizes.expansion[0]
    least = least_parents(sizes)

    def parents_at(share):
        # A hair more than the share: it is the inverse of a division.
        wanted = (int(share * h + 1e-9) for h in sizes.hidden)
        return tuple(max(p, q) for p, q in zip(least, wanted, strict=True))

    def fits(n_reads, n_parents):
        return structured_count(sizes, n_reads, n_parents) <= budget

    n_reads = max(first, math.ceil(input_share * sizes.n_inputs))
    while n_reads > first and not fits(n_reads, least):
        n_reads = max(first, n_reads - first)
    shares = sorted({p / h for h in sizes.hidden for p in range(1, h + 1)})
    affordable = [parents_at(s) for s in shares if fits(n_reads, parents_at(s))]
    n_parents = affordable[-1] if affordable else least
    for level in np.argsort(sizes.expansion, kind="stable"):
        while n_parents[level] < sizes.hidden[level]:
            wider = (*n_parents[:level], n_parents[level] + 1, *n_parents[level + 1 :])
            if not fits(n_reads, wider):
                break
            n_parents = wider
    left = budget - structured_count(sizes, n_reads, n_parents)
    return min(sizes.n_inputs, n_reads + left // n_parents[0]), n_parents


def choose_inputs(energy, labels, n_reads):
    """Choose the inputs that every block reads, `n_reads` in all.

    Blocks lose the same share of their inputs; `energy` (n_neurons, n_inputs) ranks
    the inputs of a block. Returns a bool array of shape (n_inputs,).
    """
    score = energy.sum(axis=0)
    sizes = np.bincount(labels)
    # Rank of every input within its block, the strongest first.
    order = np.lexsort((-score, labels))
    rank = np.empty(len(labels), dtype=np.intp)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Inputs are taken in rounds, one of every block; short blocks take part late, so
    # that all blocks end with the same share.
    position = (rank + 1) / sizes[labels]
    keep = np.zeros(len(labels), dtype=bool)
    keep[np.lexsort((-score, position))[:n_reads]] = True
    keep[rank == 0] = True
    for j in np.lexsort((score, -position)):
        if keep.sum() <= n_reads:
            break
        keep[j] &= rank[j] == 0
    return keep


def choose_units(energy, labels, n_blocks, n_parents, spare=0, unit_cost=1):
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
