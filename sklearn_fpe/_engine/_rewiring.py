"""Rewiring: a rule whose hook moves edges inside dense blocks while training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe._engine._pruning import position
from sklearn_fpe.nn import Plan, PruneRule, Shape, Splitter
from sklearn_fpe.nn._layers import Layer
from sklearn_fpe.nn._prune import PRUNES

if TYPE_CHECKING:
    from sklearn_fpe._engine._recipe import Recipe
    from sklearn_fpe._engine._trainer import Trainer


class Rewired(PruneRule):
    """Prune inside dense blocks at the split; move edges during the fine-tuning.

    At the split all children and all copies of outgoing weights are kept, if the budget
    then leaves the hidden layers at least `least_share` of their edges; otherwise the
    weakest children are removed. The hidden layers keep their largest weights. Then,
    `n_moves` times a fit and until `end`, a share ``share / 2 (1 + cos(π t / end))`` of
    the edges of every block layer moves, at the time t: the smallest weights are
    pruned, and as many edges begin at zero where the gradient inside the blocks is
    largest (Evci et al., 2020). The step has that gradient anyway.

    Parameters
    ----------
    n_blocks : int or None, default=None
        Blocks of a layer; a divisor of the expansion. None: one for every child. With
        fewer, siblings of a block may come to share inputs, at a higher cost.
    share : float, default=0.3
        Share of the edges that move first.
    n_moves : int, default=20
        How often edges move in a fit.
    end : float, default=0.75
        Share of a fit's epochs after which edges stay where they are.
    least_share : float, default=0.6
        Share of their edges that hidden layers keep, as far as the budget allows.
    """

    name = "rewired"
    needs_shared = True
    allows_skip = False

    def __init__(
        self,
        n_blocks: int | None = None,
        share: float = 0.3,
        n_moves: int = 20,
        end: float = 0.75,
        least_share: float = 0.6,
    ) -> None:
        self.n_blocks, self.share, self.n_moves = n_blocks, share, n_moves
        self.end, self.least_share = end, least_share

    def least_budget(self, shape: Shape) -> int:
        """Return the cost of one path of edges with its biases."""
        return 2 * len(shape.hidden) + shape.n_outputs * 2

    def least_cost(self, shape: Shape) -> int:
        """Return the least budget, because weak children are removed."""
        return self.least_budget(shape.parent())

    def plan(
        self, weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
    ) -> Plan:
        """Split all layers; keep the outgoing weights whole, and the largest others."""
        siblings = [self._siblings(n_children) for n_children in shape.expansion]
        wide, children = splitter.split_layers(weights, shape)
        alive = [np.ones(n, dtype=bool) for n in shape.fan_ins()[1:]]
        strength = unit_strength(wide, children, shape)
        order = np.argsort(-strength[-1], kind="stable")
        edges = [w.size for w in wide[:-1]]
        for n_units in range(len(order), 0, -1):
            # Units of the last hidden layer read an equal share of its inputs.
            n_edges = sum(edges[:-1]) + edges[-1] * n_units // len(order)
            n_others = sum(map(len, alive[:-1])) + shape.n_outputs * (n_units + 1)
            left = budget - n_units - n_others
            if left >= self.least_share * n_edges or n_units == 1:
                break
        alive[-1][order[n_units:]] = False
        keep = largest_edges(wide[:-1], children, alive, left)
        keep.append(np.broadcast_to(True, wide[-1].shape))
        return Plan(children, alive, keep, siblings)

    def _siblings(self, n_children: int) -> int:
        n_blocks = (
            n_children if self.n_blocks is None else min(self.n_blocks, n_children)
        )
        if n_children % n_blocks:
            raise ValueError(
                f"n_blocks must divide the expansion, got n_blocks={self.n_blocks} and "
                f"an expansion of {n_children}."
            )
        return n_children // n_blocks

    def hook(self, recipe: Recipe) -> Rewiring:
        """Return the hook that moves edges."""
        return Rewiring(self)


class Rewiring(Hook):
    """Moves edges inside blocks at a constant budget, see :class:`Rewired`."""

    def __init__(self, rule: Rewired) -> None:
        self.rule = rule

    def due(self, trainer: Trainer) -> bool:
        """Tell whether it is time to move edges."""
        interval = max(1, trainer.n_steps // self.rule.n_moves)
        if trainer.phase != "fine-tune" or trainer.step % interval or not trainer.step:
            return False
        return position(trainer) / self.rule.end < 1

    def before_step(self, trainer: Trainer) -> None:
        """Move edges."""
        time = position(trainer) / self.rule.end
        share = self.rule.share / 2 * (1 + math.cos(math.pi * time))
        masks = {
            level: self._moved(layer, share)
            for level, layer in enumerate(trainer.network.hidden)
            if layer.mask is not None
        }
        trainer.set_masks(masks)

    @torch.no_grad()
    def _moved(self, layer: Layer, share: float) -> Tensor:
        mask = layer.kept()
        free = layer.available() & ~mask
        n = min(int(share * int(mask.sum())), int(free.sum()))
        # Chosen before edges die, so that an edge that just died is not born again.
        assert layer.weight.grad is not None
        gain = layer.weight.grad.abs().masked_fill(~free, -1)
        born = gain.flatten().topk(n).indices
        # No unit may lose its last edge.
        size = layer.weight.abs().masked_fill(~mask, -1)
        last = torch.zeros_like(mask).scatter_(-1, size.argmax(-1, keepdim=True), True)
        size = size.masked_fill(~mask | last, math.inf)
        dead = size.flatten().topk(n, largest=False)
        mask.view(-1)[dead.indices[dead.values < math.inf]] = False
        mask.view(-1)[born[: int((dead.values < math.inf).sum())]] = True
        return mask


def unit_strength(
    wide: list[np.ndarray], children: list[np.ndarray], shape: Shape
) -> list[np.ndarray]:
    """Return the product of the norms of the edges into and out of every unit."""
    strength = []
    for level, n_children in enumerate(shape.expansion):
        of_child = [children[level] == a for a in range(n_children)]
        into = [np.sqrt((wide[level] ** 2 * of).sum(axis=1)) for of in of_child]
        out = np.linalg.norm(wide[level + 1], axis=0)
        strength.append(np.concatenate(into) * out)
    return strength


def largest_edges(
    wide: list[np.ndarray], children: list[np.ndarray], alive: list[np.ndarray], n: int
) -> list[np.ndarray]:
    """Return the `n` largest edges of living units, and first one of every unit."""
    scores, inputs = [], None
    for weight, child, units in zip(wide, children, alive, strict=True):
        n_parents = len(weight)
        unit = child * n_parents + np.arange(n_parents)[:, None]
        score = np.where(units[unit], np.abs(weight), -1.0)
        if inputs is not None:
            score[:, ~inputs] = -1.0
        order = np.lexsort((-score.ravel(), unit.ravel()))
        _, first = np.unique(unit.ravel()[order], return_index=True)
        largest = order[first]
        score.ravel()[largest[score.ravel()[largest] >= 0]] = np.inf
        scores.append(score)
        inputs = units
    flat = np.concatenate([score.ravel() for score in scores])
    chosen = np.zeros(len(flat), dtype=bool)
    n = min(n, int((flat >= 0).sum()))
    chosen[np.argsort(-flat, kind="stable")[:n]] = True
    parts = np.split(chosen, np.cumsum([score.size for score in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


PRUNES[Rewired.name] = Rewired()
