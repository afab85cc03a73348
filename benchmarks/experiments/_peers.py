"""Other ways to spend the same number of non-zero parameters.

Every peer is a function ``(task, n_hidden, expansion, **settings)`` that returns a
trained network and the number of its non-zero parameters. All of them train by the
loop of :mod:`_loop`: the same optimiser, learning rate schedule, epochs and order of
the batches. The budget is the number of parameters of the dense net of `n_hidden`
neurons, biases included; the sparse peers have ``expansion * n_hidden`` neurons.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.experiments._loop import Hook, fit_fpe, generator, train
from sklearn_fpe.nn import MLP

REWIRED = 0.3
"""Share of the weights that SET and RigL first replace per epoch (RigL's setting)."""

REWIRE_UNTIL = 0.75
"""Share of the training after which they stop (RigL's setting)."""


def budget_of(task, n_hidden):
    return n_hidden * (task.n_inputs + 1) + task.n_outputs * (n_hidden + 1)


def dense(task, n_hidden, expansion, *, seed, epochs, factor=1.0, **settings):
    """Train the dense net whose parameters come nearest to `factor` budgets."""
    budget = factor * budget_of(task, n_hidden)
    per_neuron = task.n_inputs + 1 + task.n_outputs
    width = round((budget - task.n_outputs) / per_neuron)
    network = _new(task, width, seed)
    train(network, task, range(epochs), epochs, seed=seed, **settings)
    return network, budget_of(task, width)


def fpe(task, n_hidden, expansion, *, warmup=0.1, **settings):
    """Fixed Parameter Expansion by the library."""
    network = fit_fpe(task, (n_hidden,), expansion, warmup=warmup, **settings)
    return network, network.n_nonzero


def static_mask(task, n_hidden, expansion, *, seed, epochs, rewire=None, **settings):
    """Train a wide net under a mask drawn before training; optionally rewire it.

    `rewire` is None, "SET" (grow at random) or "RigL" (grow where the gradient is
    largest). Both drop the smallest weights once an epoch, a share that falls by a
    cosine, and start what they grow from zero.
    """
    network = _new(task, expansion * n_hidden, seed)
    n_weights = _weights_for(network, budget_of(task, n_hidden))
    rng = generator(seed + 1)
    masks = random_masks(
        [layer.weight.shape for layer in network.layers], n_weights, rng
    )
    hook = (
        Masks(network, masks) if rewire is None else Rewire(network, masks, rewire, rng)
    )
    settings["hook"] = hook
    train(network, task, range(epochs), epochs, seed=seed, **settings)
    return network, hook.n_nonzero(network)


def train_wide_then_prune(task, n_hidden, expansion, *, seed, epochs, **settings):
    """Train a wide dense net for half of the epochs, prune it, fine-tune the rest.

    While it is wide it holds `expansion` times the budget.
    """
    network = _new(task, expansion * n_hidden, seed)
    settings["seed"] = seed
    train(network, task, range(epochs // 2), epochs, **settings)
    n_weights = _weights_for(network, budget_of(task, n_hidden))
    weights = [layer.weight for layer in network.layers]
    hook = Masks(network, largest([w.detach().abs() for w in weights], n_weights))
    train(network, task, range(epochs // 2, epochs), epochs, hook=hook, **settings)
    return network, hook.n_nonzero(network)


def dropconnect(task, n_hidden, expansion, *, seed, epochs, wide=False, **settings):
    """Drop weights at random at every step.

    The net has the parent's width and drops a tenth of its weights, or it is `wide`:
    ``expansion * n_hidden`` neurons, of whose weights a budget's worth is active at a
    step, while all of them predict. The latter has more parameters than the others.
    """
    network = _new(task, n_hidden * (expansion if wide else 1), seed)
    n_all = sum(layer.weight.numel() for layer in network.layers)
    keep = _weights_for(network, budget_of(task, n_hidden)) / n_all if wide else 0.9
    rng = generator(seed + 1)
    layers = [DropConnectLinear(layer, keep, rng) for layer in network.layers]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    train(network, task, range(epochs), epochs, seed=seed, **settings)
    return network, sum(p.numel() for p in network.parameters())


class DropConnectLinear(nn.Module):
    """Affine map of which every step of training keeps a random share of weights."""

    def __init__(self, layer, keep, rng):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.keep, self.rng = keep, rng

    def forward(self, x):
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        kept = torch.rand(self.weight.shape, generator=self.rng) < self.keep
        return F.linear(x, self.weight * kept / self.keep, self.bias)


class Masks(Hook):
    """Keep weights outside of the masks at zero.

    Their gradients are set to zero before every step; AdamW without weight decay then
    leaves them where they are.
    """

    def __init__(self, network, masks):
        self.masks = masks
        with torch.no_grad():
            for layer, mask in zip(network.layers, masks, strict=True):
                layer.weight.mul_(mask)

    def before_step(self, network, optimizer, step, n_steps):
        for layer, mask in zip(network.layers, self.masks, strict=True):
            layer.weight.grad.mul_(mask)

    def n_nonzero(self, network):
        return sum(int(m.sum()) for m in self.masks) + _n_biases(network)


class Rewire(Masks):
    """Masks that drop their smallest weights and grow others once an epoch."""

    def __init__(self, network, masks, rule, rng, n_rewirings=20):
        super().__init__(network, masks)
        self.rule, self.rng, self.n_rewirings = rule, rng, n_rewirings

    def before_step(self, network, optimizer, step, n_steps):
        progress = step / n_steps
        due = step and step % max(1, n_steps // self.n_rewirings) == 0
        if due and progress < REWIRE_UNTIL:
            share = REWIRED / 2 * (1 + math.cos(math.pi * progress / REWIRE_UNTIL))
            for layer, mask in zip(network.layers, self.masks, strict=True):
                self._rewire(layer.weight, mask, share, optimizer.state[layer.weight])
        super().before_step(network, optimizer, step, n_steps)

    @torch.no_grad()
    def _rewire(self, weight, mask, share, state):
        n = min(int(share * mask.sum()), int((~mask).sum()))
        if self.rule == "SET":
            score = torch.rand(weight.shape, generator=self.rng)
        else:
            score = weight.grad.abs()
        # Chosen before the drop: what was just dropped does not grow again.
        grown = score.masked_fill(mask, -1).flatten().topk(n).indices
        kept = weight.abs().masked_fill(~mask, math.inf)
        dropped = kept.flatten().topk(n, largest=False).indices
        mask.view(-1)[dropped], mask.view(-1)[grown] = False, True
        weight.mul_(mask)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].view(-1)[torch.cat([dropped, grown])] = 0


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


def _new(task, width, seed):
    return MLP.dense([task.n_inputs, width, task.n_outputs], generator=generator(seed))


def _n_biases(network):
    return sum(layer.out_features for layer in network.layers)


def _weights_for(network, budget):
    return budget - _n_biases(network)
