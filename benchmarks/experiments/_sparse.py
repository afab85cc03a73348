"""Hooks and layers of sparse training: pruning, rewiring, DropConnect."""

import math

import numpy as np
import torch

from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe.nn import DenseLinear

REWIRED = 0.3
"""Share of the weights that SET and RigL replace at first (RigL's setting)."""

REWIRE_UNTIL = 0.75
"""Share of the training after which they stop (RigL's setting)."""

REWIRINGS = 20
"""Rewirings that a whole training would have."""

PRUNE_BETWEEN = (0.1, 0.75)
"""Shares of the training between which gradual pruning lowers the number of weights."""

PRUNE_EVERY = 20
"""Steps between two prunings."""


class PruneOnce(Hook):
    """Keep the largest weights of all layers from some epoch on.

    Parameters
    ----------
    n_weights : int
        Weights to keep, of all layers together.
    epoch : int
        Epoch before which to prune.
    """

    def __init__(self, n_weights, epoch):
        self.n_weights, self.epoch = n_weights, epoch

    def on_epoch_begin(self, trainer):
        if trainer.epoch == self.epoch:
            scores = [layer.weight.detach().abs() for layer in trainer.network.layers]
            trainer.set_masks(dict(enumerate(largest(scores, self.n_weights))))


class PruneGradually(Hook):
    """Prune to a number of weights on a cubic schedule (Zhu and Gupta, 2018).

    The weights with the smallest w²·sqrt(v) go, where v is the running mean of squared
    gradients that AdamW keeps.

    Parameters
    ----------
    n_weights : int
        Weights to keep in the end, of all layers together.
    """

    def __init__(self, n_weights):
        self.n_weights = n_weights

    def before_step(self, trainer):
        first, last = (round(share * trainer.n_steps) for share in PRUNE_BETWEEN)
        step = trainer.step
        on_the_way = first <= step < last and step % PRUNE_EVERY == 0
        if not (on_the_way or step == last):
            return
        layers = trainer.network.layers
        n_all = sum(layer.weight.numel() for layer in layers)
        left = (last - step) / max(1, last - first)
        n_kept = self.n_weights + round((n_all - self.n_weights) * left**3)
        scores = [self._saliency(trainer, i) for i in range(len(layers))]
        trainer.set_masks(dict(enumerate(largest(scores, n_kept))))

    @torch.no_grad()
    def _saliency(self, trainer, level):
        """Return w²·sqrt(v); what was pruned comes last."""
        layer = trainer.network.layers[level]
        squares = trainer.optimizer_state(level).get("exp_avg_sq")
        if squares is None:  # before the first step
            squares = layer.weight.grad.square()
        return (layer.weight.square() * squares.sqrt()).masked_fill(
            ~layer.dense_mask(), -1.0
        )


class Rewire(Hook):
    """Drop the smallest weights of masked layers and grow as many others.

    Once a twentieth of the training, until three quarters of it. The share that is
    replaced falls by a cosine. New weights start from zero. SET (Mocanu et al., 2018)
    grows at random, RigL (Evci et al., 2020) where the gradient is largest.

    Parameters
    ----------
    rule : {"SET", "RigL"}
        What to grow.
    rng : torch.Generator
        Source of randomness of SET.
    """

    def __init__(self, rule, rng):
        self.rule, self.rng = rule, rng

    def before_step(self, trainer):
        step, progress = trainer.step, trainer.step / trainer.n_steps
        due = step and step % max(1, trainer.n_steps // REWIRINGS) == 0
        if not due or progress >= REWIRE_UNTIL:
            return
        share = REWIRED / 2 * (1 + math.cos(math.pi * progress / REWIRE_UNTIL))
        layers = enumerate(trainer.network.layers)
        trainer.set_masks(
            {i: self._rewired(x, share) for i, x in layers if x.mask is not None}
        )

    @torch.no_grad()
    def _rewired(self, layer, share):
        weight, mask = layer.weight, layer.mask
        n = min(int(share * mask.sum()), int((~mask).sum()))
        if self.rule == "SET":
            score = torch.rand(weight.shape, generator=self.rng)
        else:
            score = weight.grad.abs()
        # Chosen before the drop: what was just dropped does not grow again.
        grown = score.masked_fill(mask, -1).flatten().topk(n).indices
        kept = weight.abs().masked_fill(~mask, math.inf)
        dropped = kept.flatten().topk(n, largest=False).indices
        rewired = mask.flatten().clone()
        rewired[dropped], rewired[grown] = False, True
        return rewired.view(mask.shape)


class DropConnectLinear(DenseLinear):
    """Affine map of which every step of training keeps a random share of weights.

    Parameters
    ----------
    weight : tensor of shape (out_features, in_features)
        Initial weight; the parameter shares its memory.
    bias : tensor of shape (out_features,)
        Initial bias; the parameter shares its memory.
    share : float
        Probability of a weight to be kept; kept ones are divided by it.
    seed : sequence of int
        Seed of the draws.
    """

    def __init__(self, weight, bias, share, seed):
        super().__init__(weight, bias)
        self.share, self.rng = share, np.random.default_rng(seed)
        self.factor = None

    def forward(self, x, out=None):
        if not self.training:
            return super().forward(x, out)
        drawn = self.rng.random(self.weight.shape, dtype=np.float32)
        self.factor = torch.from_numpy(drawn).lt(self.share) / self.share
        return torch.addmm(self.bias, x, (self.weight * self.factor).mT)

    def backward(self, x, gradient, first=False):
        torch.mm(gradient.mT, x, out=self.weight.grad).mul_(self.factor)
        torch.sum(gradient, 0, out=self.bias.grad)
        return None if first else gradient @ (self.weight * self.factor)


def random_masks(shapes, n_weights, rng):
    """Draw masks with the densities of Erdős and Rényi, as SET and RigL use them.

    The density of a layer is in proportion to (n_in + n_out) / (n_in n_out), at most 1.
    """
    n_left, counts = n_weights, [0] * len(shapes)
    order = sorted(
        range(len(shapes)), key=lambda i: math.prod(shapes[i]) / sum(shapes[i])
    )
    for position, i in enumerate(order):
        total = sum(sum(shapes[j]) for j in order[position:])
        counts[i] = min(math.prod(shapes[i]), round(n_left * sum(shapes[i]) / total))
        n_left -= counts[i]
    scores = [torch.rand(shape, generator=rng) for shape in shapes]
    return [largest([s], n)[0] for s, n in zip(scores, counts, strict=True)]


def largest(scores, n):
    """Mark the `n` largest of all scores together."""
    flat = torch.cat([s.flatten() for s in scores])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(n).indices] = True
    parts = chosen.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]
