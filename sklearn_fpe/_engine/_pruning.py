"""Gradual pruning: a rule whose hook shrinks the network while it trains."""

from __future__ import annotations

import math
from bisect import bisect
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe.nn import MLP, Plan, PruneRule, Shape, Splitter
from sklearn_fpe.nn._prune import PRUNES

if TYPE_CHECKING:
    from sklearn_fpe._engine._recipe import Recipe
    from sklearn_fpe._engine._trainer import Trainer


class Gradual(PruneRule):
    """Keep everything at the split; prune to the budget during the fine-tuning.

    The number of kept weights falls from all to the budget's as ``(1 - t)³``, with t
    from 0 to 1 between `begin` and `end` (Zhu and Gupta, 2017). The weights with the
    smallest saliency ``w² sqrt(v)`` go, where v is the optimizer's running mean of the
    squared gradient. Units without an edge in or out are removed at the end.

    Parameters
    ----------
    begin, end : float, default=0.1 and 0.75
        Shares of a fit's epochs between which weights are pruned.
    interval : int, default=20
        Steps from one pruning to the next.
    skip_factor : float, default=1.0
        Factor on the saliency of the skip connection.
    """

    name = "gradual"
    at_once = False

    def __init__(
        self,
        begin: float = 0.1,
        end: float = 0.75,
        interval: int = 20,
        skip_factor: float = 1.0,
    ) -> None:
        self.begin, self.end, self.interval = begin, end, interval
        self.skip_factor = skip_factor

    def least_budget(self, shape: Shape) -> int:
        """Return the cost of one path of edges with its biases."""
        return 2 * len(shape.hidden) + 1 + shape.n_outputs

    def least_cost(self, shape: Shape) -> int:
        """Return the least budget, because children without edges are removed."""
        return self.least_budget(shape.parent())

    def plan(
        self, weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
    ) -> Plan:
        """Split all layers and keep everything."""
        _, children = splitter.split_layers(weights, shape)
        return Plan.keep_all(shape, children)

    def hook(self, recipe: Recipe) -> GradualPruning:
        """Return the hook that prunes to the budget."""
        return GradualPruning(self, recipe.budget)


def position(trainer: Trainer) -> float:
    """Return the share of a fit's epochs that is done, from 0 to 1."""
    steps_per_epoch = trainer.n_steps / max(1, len(trainer.epochs))
    return (trainer.epochs.start + trainer.step / steps_per_epoch) / trainer.n_epochs


class GradualPruning(Hook):
    """Prunes to a number of parameters along a schedule, see :class:`Gradual`."""

    def __init__(self, rule: Gradual, budget: int) -> None:
        self.rule, self.budget = rule, budget

    def on_phase_begin(self, trainer: Trainer) -> None:
        """Count the parameters to prune."""
        if trainer.phase == "fine-tune":
            self._n_start = trainer.network.n_nonzero
            self.settled = self._n_start <= self.budget

    def due(self, trainer: Trainer) -> bool:
        """Tell whether it is time to prune; not before the optimizer has a state."""
        if self.settled or trainer.step == 0:
            return False
        share = self._progress(trainer)
        return share >= 1 or (share > 0 and trainer.step % self.rule.interval == 0)

    def before_step(self, trainer: Trainer) -> None:
        """Prune to the schedule, or to the budget at its end."""
        share = self._progress(trainer)
        if share >= 1:
            self._finish(trainer)
        else:
            span = self._n_start - self.budget
            target = self.budget + math.ceil(span * (1 - share) ** 3)
            prune_to(trainer, target, self.rule.skip_factor)

    def on_phase_end(self, trainer: Trainer) -> None:
        """Prune to the budget, if the phase was stopped before."""
        if not self.settled:
            self._finish(trainer)

    def _progress(self, trainer: Trainer) -> float:
        """Return the position between `begin` and `end`, from 0 to 1."""
        done = position(trainer) * trainer.n_epochs
        steps_per_epoch = trainer.n_steps / max(1, len(trainer.epochs))
        first = max(self.rule.begin * trainer.n_epochs, trainer.epochs.start)
        last = max(self.rule.end * trainer.n_epochs, first)
        # The last step of a short training is late enough.
        last = min(last, trainer.epochs.stop - 1 / steps_per_epoch)
        return 1.0 if done >= last else (done - first) / (last - first)

    def _finish(self, trainer: Trainer) -> None:
        finish(trainer, self.budget, self.rule.skip_factor)
        self.settled = True


def saliencies(trainer: Trainer, skip_factor: float) -> list[Tensor]:
    """Return the saliency of every weight, of the layers' shapes; 0 where pruned."""
    found = []
    for level, layer in enumerate(trainer.network.maps):
        saliency = layer.weight.detach().square()
        state = trainer.optimizer_state(level)
        # Before the first step of the optimizer, magnitude is all there is.
        found.append(saliency * state["exp_avg_sq"].sqrt() if state else saliency)
    if trainer.network.skip is not None:
        found[-1] = found[-1] * skip_factor
    return found


def prune_to(trainer: Trainer, n_parameters: int, skip_factor: float) -> None:
    """Keep all biases and the weights of the largest saliency.

    At least as many weights stay as there are biases, because :func:`finish` removes
    units if the budget is smaller. One path from an input to an output stays, so that
    no layer is left empty.
    """
    maps = trainer.network.maps
    n_biases = sum(layer.n_biases for layer in maps)
    usable = [layer.kept() for layer in maps]
    scores = saliencies(trainer, skip_factor)
    alive = trainer.network.alive(usable)
    forced = _strongest_path(trainer.network, scores, usable, alive)
    n_weights = max(n_parameters - n_biases, n_biases)
    masks = _largest(scores, usable, n_weights, forced)
    trainer.set_masks(dict(enumerate(masks)))


@torch.no_grad()
def finish(trainer: Trainer, budget: int, skip_factor: float) -> None:
    """Prune to a budget exactly, and leave no unit without edges in and out.

    Units without edges are removed, the weakest first, and their biases become free for
    weights, so pruning is repeated. As many units stay as have enough edges for the
    budget. Every unit that stays gets its largest edge in and out.
    """
    network = trainer.network
    scores = saliencies(trainer, skip_factor)
    usable = [layer.kept() for layer in network.maps]
    alive = network.alive(usable)
    if _capacity(network, alive) < budget:
        alive = network.alive([layer.available() for layer in network.maps])
    forced = _strongest_path(network, scores, usable, alive)
    strength = _strength(network, scores)
    while True:
        edges = network.edges_between(alive)
        forced = [f & e for f, e in zip(forced, edges, strict=True)]
        usable = [(u & e) | f for u, e, f in zip(usable, edges, forced, strict=True)]
        n_usable, n_forced = _count(usable), _count(forced)
        n_weights = budget - _count(alive) - network.layers[-1].out_features
        crowded = n_weights < n_forced
        if crowded:
            # The biases alone exceed the budget: halve the edges until units go.
            n_weights = max(n_forced, n_usable // 2)
        elif n_weights > n_usable:
            usable = _grown(network, usable, alive, n_weights)
        masks = _largest(scores, usable, n_weights, forced)
        fewer = _without_idle(network, alive, masks, strength, budget)
        stuck = _same(fewer, alive)
        if crowded:
            stuck, usable = stuck and n_usable == n_forced, masks
        elif stuck:
            more = _cover(network, alive, masks, scores, forced)
            stuck = _count(more) > n_weights
            if not stuck and _same(more, forced):
                break
            forced = forced if stuck else more
        if stuck:
            # A tiny budget: too few edges for some units, too many for the others.
            fewer = _without_one(network, alive, masks, budget)
        alive = fewer
    trainer.set_masks(dict(enumerate(masks)))


def _count(masks: list[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _same(masks: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def _edges(network: MLP, alive: list[Tensor]) -> list[Tensor]:
    """Return the weights that masks may keep between living units."""
    edges = zip(network.maps, network.edges_between(alive), strict=True)
    return [layer.available() & edge for layer, edge in edges]


def _capacity(network: MLP, alive: list[Tensor]) -> int:
    """Count the parameters that the network of the living units has at most."""
    n_biases = _count(alive) + network.layers[-1].out_features
    return _count(_edges(network, alive)) + n_biases


def _strength(network: MLP, scores: list[Tensor]) -> Tensor:
    """Return the saliency into times that out of every unit, of all hidden layers."""
    into = [a.total_in(s) for a, s in zip(network.layers, scores, strict=False)]
    out = [a.total_out(s) for a, s in zip(network.layers, scores, strict=False)]
    products = [i * o for i, o in zip(into[:-1], out[1:], strict=True)]
    return torch.cat([*products, into[-1][:0]])


def _without_idle(
    network: MLP,
    alive: list[Tensor],
    masks: list[Tensor],
    strength: Tensor,
    budget: int,
) -> list[Tensor]:
    """Return the units that stay when units without edges are removed.

    The weakest go first, as long as the others can use up `budget`.
    """
    sizes = [len(a) for a in alive]
    busy = network.alive(masks)
    idle = [a & ~b for a, b in zip(alive, busy, strict=True)]
    if not _count(idle):
        return alive
    order = torch.cat(idle).nonzero().flatten()
    order = order[strength[order].argsort(stable=True)]

    def without(n: int) -> list[Tensor]:
        flat = torch.cat(alive)
        flat[order[:n]] = False
        return network.alive(_edges(network, list(flat.split(sizes))))

    counts = range(1, len(order) + 1)
    return without(
        bisect(counts, False, key=lambda n: _capacity(network, without(n)) < budget)
    )


def _without_one(
    network: MLP, alive: list[Tensor], masks: list[Tensor], budget: int
) -> list[Tensor]:
    """Remove one unit without edges such that the others can use up the budget.

    If there is none, remove all units without edges.
    """
    busy = network.alive(masks)
    for level, units in enumerate(alive):
        for unit in (units & ~busy[level]).nonzero().flatten():
            fewer = [a.clone() for a in alive]
            fewer[level][unit] = False
            fewer = network.alive(_edges(network, fewer))
            if _capacity(network, fewer) >= budget:
                return fewer
    return busy


def _cover(
    network: MLP,
    alive: list[Tensor],
    masks: list[Tensor],
    scores: list[Tensor],
    forced: list[Tensor],
) -> list[Tensor]:
    """Add to the forced edges the largest edge into or out of units that lack it."""
    ranks = _ranks(scores, masks, _edges(network, alive))
    more = [f.clone() for f in forced]
    for level, units in enumerate(alive):
        ends = {
            level: network.layers[level].total_in(masks[level]),
            level + 1: network.layers[level + 1].total_out(masks[level + 1]),
        }
        for which, n_edges in ends.items():
            for unit in (units & (n_edges == 0)).nonzero().flatten():
                only = [torch.ones_like(a) for a in alive]
                only[level] = torch.zeros_like(units).index_fill_(0, unit, True)
                of_unit = network.edges_between(only)[which]
                best = ranks[which].masked_fill(~of_unit, -2).argmax()
                more[which].view(-1)[best] = True
    return more


def _grown(
    network: MLP, usable: list[Tensor], alive: list[Tensor], n: int
) -> list[Tensor]:
    """Add the pruned edges of the largest gradients to the usable ones, up to `n`.

    They start from zero.
    """
    scores = []
    for layer, kept in zip(network.maps, usable, strict=True):
        gradient = layer.weight.grad
        gain = torch.zeros_like(layer.weight) if gradient is None else gradient.abs()
        scores.append(gain.masked_fill(kept, math.inf))
    return _largest(scores, _edges(network, alive), n)


def _ranks(
    scores: list[Tensor], kept: list[Tensor], edges: list[Tensor]
) -> list[Tensor]:
    """Return the scores of kept edges, -0.5 for pruned ones, -1 for impossible ones."""
    return [
        score.masked_fill(~keep, -0.5).masked_fill(~edge, -1)
        for score, keep, edge in zip(scores, kept, edges, strict=True)
    ]


def _strongest_path(
    network: MLP, scores: list[Tensor], usable: list[Tensor], alive: list[Tensor]
) -> list[Tensor]:
    """Mark a path of large edges from an output back to an input, as masks.

    It leads through living units, and over usable edges where there are any.
    """
    ranks = _ranks(scores, usable, _edges(network, alive))
    path = [torch.zeros_like(u) for u in usable]
    unit = None
    for level in reversed(range(len(network.layers))):
        layer = network.layers[level]
        score = ranks[level].flatten(0, -2)
        # Indices stay tensors, because the host would wait for numbers.
        if unit is None:
            unit = score.amax(1).argmax().view(1)
        rows = layer.rows_into(unit)
        columns = score.index_select(0, rows).argmax(1)
        path[level].view(-1).index_fill_(0, rows * score.shape[1] + columns, True)
        unit = layer.inputs_at(rows, columns)
    return path


def _largest(
    scores: list[Tensor],
    usable: list[Tensor],
    n: int,
    forced: list[Tensor] | None = None,
) -> list[Tensor]:
    """Mark the `n` largest of the usable scores together, and first those forced."""
    flat = torch.cat(
        [s.masked_fill(~u, -1).flatten() for s, u in zip(scores, usable, strict=True)]
    )
    if forced is not None:
        flat.masked_fill_(torch.cat([f.flatten() for f in forced]), math.inf)
    values, places = flat.topk(min(n, len(flat)), sorted=False)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    # Where fewer are usable, scores of -1 are among the largest.
    chosen.scatter_(0, places, values > -1)
    parts = chosen.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


PRUNES[Gradual.name] = Gradual()
