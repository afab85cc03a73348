"""Children whose inputs are dealt disjointly or with overlaps, in one code path.

The parent's weights are copied to its children under drawn masks, then the smallest
weights of both layers are pruned to the budget, no layer to less than half of its
parent's weights.
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.experiments._sparse import largest
from benchmarks.experiments._training import make_recipe, report, train
from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe.nn import Plan, PruneRule, partition


def fit_children(task, n_hidden, expansion, dealing, *, seed, **settings):
    """Warm up, deal the inputs by the rule `dealing`, prune, fine-tune."""
    recipe = make_recipe(task, (n_hidden,), expansion, seed, split="random")
    recipe = replace(recipe, prune=KeepAll())
    rng = np.random.default_rng(seed)
    hook = Deal(expansion, dealing, recipe.budget, rng)
    return report(train(task, recipe, hooks=[hook], **settings), task)


class KeepAll(PruneRule):
    """Prune nothing: the network stays above the budget until a hook prunes it."""

    name = "keep all"
    at_once = False

    def least_budget(self, shape):
        return shape.n_parameters()

    def least_cost(self, shape):
        return shape.n_parameters()

    def plan(self, weights, shape, splitter, budget):
        whole = Plan.keep_all(shape)
        children = [splitter.split(weights[0], shape.expansion[0], level=0)]
        return Plan(children, whole.alive, whole.keep)


class Deal(Hook):
    """Deal the inputs of every parent to its children anew when they are made.

    Parameters
    ----------
    expansion : int
        Children per parent.
    dealing : str
        The rule, see :func:`deal`.
    budget : int
        Non-zero parameters to keep, biases included.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(self, expansion, dealing, budget, rng):
        self.expansion, self.dealing = expansion, dealing
        self.budget, self.rng = budget, rng

    @torch.no_grad()
    def on_phase_begin(self, trainer):
        if trainer.phase != "fine-tune":
            return
        first, last = trainer.network.layers
        n_units, n_inputs = first.weight.shape
        # Every edge of a parent went to one child, so that the sum is the parent.
        parent = first.weight.view(self.expansion, -1, n_inputs).sum(dim=0)
        seen = deal(parent.numpy(), self.expansion, self.dealing, self.rng)
        wide = parent * torch.from_numpy(seen)
        first.weight.copy_(wide.view(n_units, n_inputs))
        n_weights = self.budget - n_units - last.out_features
        scores = [first.weight.abs(), last.weight.abs()]
        floors = [parent.numel() // 2, last.weight.numel() // self.expansion // 2]
        # Of each layer, its floor of largest weights goes before all others.
        for score, floor in zip(scores, floors, strict=True):
            score += 1e6 * largest([score], floor)[0]
        # A child has no weight for an input that it does not read.
        scores[0].masked_fill_(~torch.from_numpy(seen).view(n_units, n_inputs), -1.0)
        trainer.set_masks(dict(enumerate(largest(scores, n_weights))))


def deal(weight, expansion, dealing, rng):
    """Return which inputs each child reads, bool (expansion, n_neurons, n_inputs).

    A disjoint dealing is a split rule of the library. An overlapping one draws, for
    every child of every neuron or for all neurons alike, as many inputs as a disjoint
    child has, without regard to the others.
    """
    n_neurons, n_inputs = weight.shape
    if not dealing.startswith("overlapping"):
        children = partition(weight, expansion, dealing, rng=rng)
        return children == np.arange(expansion)[:, None, None]
    fan_in = n_inputs // expansion
    n_rows = 1 if dealing == "overlapping shared" else n_neurons
    rank = np.argsort(rng.random((expansion, n_rows, n_inputs)), axis=2)
    return np.repeat(rank < fan_in, n_neurons // n_rows, axis=1)
