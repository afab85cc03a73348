"""Pruning while the network trains: a rule whose hook shrinks it to the budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe.nn import MLP, Plan, PruneRule, Shape, SplitRule
from sklearn_fpe.nn._prune import PRUNES, split_layers

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

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def least_budget(self, shape: Shape) -> int:
        """Return the cost of one path of edges with its biases."""
        return 2 * len(shape.hidden) + 1 + shape.n_outputs

    def least_cost(self, shape: Shape) -> int:
        """Return the least budget, because children without edges are removed."""
        return self.least_budget(shape.parent())

    def plan(
        self,
        weights: list[np.ndarray],
        shape: Shape,
        split: SplitRule,
        groups: Any,
        budget: int,
        rng: np.random.Generator,
    ) -> Plan:
        """Split all layers and keep everything."""
        _, children = split_layers(weights, shape, split, groups, rng)
        return Plan.keep_all(shape, children)

    def hook(self, recipe: Recipe) -> GradualPruning:
        """Return the hook that prunes to the budget."""
        return GradualPruning(self, recipe.budget)


class GradualPruning(Hook):
    """Prunes to a budget along a schedule, see :class:`Gradual`.

    Parameters
    ----------
    rule : Gradual
        The schedule.
    budget : int
        Parameters to keep, biases included.
    """

    def __init__(self, rule: Gradual, budget: int) -> None:
        self.rule, self.budget = rule, budget

    def on_phase_begin(self, trainer: Trainer) -> None:
        """Count what there is to prune."""
        if trainer.phase == "fine-tune":
            self._n_start = trainer.network.n_nonzero
            self.settled = self._n_start <= self.budget

    def before_step(self, trainer: Trainer) -> None:
        """Prune if it is time; the optimizer has a state from its first step on."""
        if self.settled or trainer.step == 0:
            return
        share = self._progress(trainer)
        if share >= 1:
            self._finish(trainer)
        elif share > 0 and trainer.step % self.rule.interval == 0:
            span = self._n_start - self.budget
            target = self.budget + math.ceil(span * (1 - share) ** 3)
            prune_to(trainer, target, self.rule.skip_factor)

    def on_phase_end(self, trainer: Trainer) -> None:
        """Prune what is left to prune, if the phase was stopped early."""
        if not self.settled:
            self._finish(trainer)

    def _progress(self, trainer: Trainer) -> float:
        """Return the position between `begin` and `end`, from 0 to 1."""
        steps_per_epoch = trainer.n_steps / max(1, len(trainer.epochs))
        done = trainer.epochs.start + trainer.step / steps_per_epoch
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
    """Keep so many parameters, those of the largest saliency; all biases stay."""
    maps = trainer.network.maps
    n_biases = sum(layer.n_nonzero - layer.n_weights for layer in maps)
    usable = [layer.kept() for layer in maps]
    scores = saliencies(trainer, skip_factor)
    # Biases of units without edges go at the end, so they do not displace all weights.
    least = min(n_parameters, sum(layer.out_features for layer in maps)) // 2
    masks = _largest(scores, usable, max(n_parameters - n_biases, least))
    trainer.set_masks(dict(enumerate(masks)))


@torch.no_grad()
def finish(trainer: Trainer, budget: int, skip_factor: float) -> None:
    """Prune to a budget exactly, and leave no unit without edges in and out.

    The biases of units that are left alone become free for weights, so it is repeated
    until there is none.
    """
    network = trainer.network
    scores = saliencies(trainer, skip_factor)
    usable = [layer.kept() for layer in network.maps]
    alive = network.alive(usable)
    forced = _strongest_path(network, scores, usable)
    while True:
        edges = network.edges_between(alive)
        usable = [u & e for u, e in zip(usable, edges, strict=True)]
        n_biases = sum(int(a.sum()) for a in alive) + network.layers[-1].out_features
        # A path of edges is kept even where the biases alone exceed the budget.
        n_weights = max(budget - n_biases, len(network.layers))
        if n_weights > sum(int(u.sum()) for u in usable):
            usable = _grown(network, usable, edges, n_weights)
        masks = _largest(scores, usable, n_weights, forced)
        fewer = network.alive(masks)
        if all(torch.equal(a, b) for a, b in zip(alive, fewer, strict=True)):
            break
        alive = fewer
    trainer.set_masks(dict(enumerate(masks)))


def _grown(
    network: MLP, usable: list[Tensor], edges: list[Tensor], n: int
) -> list[Tensor]:
    """Add pruned edges to the usable ones, those of the largest gradients, up to `n`.

    They start from zero.
    """
    scores = []
    for layer, kept, edge in zip(network.maps, usable, edges, strict=True):
        gradient = torch.zeros_like(layer.weight)
        if layer.weight.grad is not None:
            gradient = layer.weight.grad.abs()
        scores.append(gradient.masked_fill(kept, math.inf).masked_fill(~edge, -1))
    available = [
        layer.available() & edge
        for layer, edge in zip(network.maps, edges, strict=True)
    ]
    return _largest(scores, available, n)


def _strongest_path(
    network: MLP, scores: list[Tensor], usable: list[Tensor]
) -> list[Tensor]:
    """Mark a path of large edges from an output back to an input, as masks."""
    path = [torch.zeros_like(u) for u in usable]
    unit = None
    for level in reversed(range(len(network.layers))):
        layer = network.layers[level]
        score = scores[level].masked_fill(~usable[level], -1)
        if unit is None:
            unit = int(score.amax(1).argmax())
        row = layer.row(unit)
        column = int(score[row].argmax())
        path[level][(*row, column)] = True
        unit = layer.input_of(row, column)
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
    n = min(n, sum(int(u.sum()) for u in usable))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(n, sorted=False).indices] = True
    parts = chosen.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


PRUNES[Gradual.name] = Gradual()
