"""Other ways to spend the same number of non-zero parameters.

Every peer is a function ``(task, n_hidden, expansion, *, seed, **settings)`` that
returns a trained network. All of them train by :mod:`_training`. The budget is the
number of parameters of the dense net of `n_hidden` neurons, biases included; the sparse
peers have ``expansion * n_hidden`` neurons.
"""

import torch

from benchmarks.experiments._sparse import (
    DropConnectLinear,
    PruneGradually,
    PruneOnce,
    Rewire,
    random_masks,
)
from benchmarks.experiments._training import fit_fpe, fit_network, new_network
from sklearn_fpe.nn import MLP, MaskedLinear


def budget_of(task, n_hidden):
    return n_hidden * (task.n_inputs + 1) + task.n_outputs * (n_hidden + 1)


def fpe(task, n_hidden, expansion, *, warmup=0.1, **settings):
    """Train by Fixed Parameter Expansion."""
    return fit_fpe(task, (n_hidden,), expansion, warmup=warmup, **settings)


def dense(task, n_hidden, expansion, *, factor=1.0, **settings):
    """Train the dense net whose parameters come nearest to `factor` budgets."""
    per_neuron = task.n_inputs + 1 + task.n_outputs
    width = round((factor * budget_of(task, n_hidden) - task.n_outputs) / per_neuron)
    return fit_fpe(task, (width,), 1, **settings)


def static_mask(
    task, n_hidden, expansion, *, seed, rewire=None, whole_output=False, **settings
):
    """Train a wide net under a mask drawn before training; optionally rewire it.

    `rewire` is None, "SET" or "RigL". With `whole_output`, all outgoing weights are
    kept and only the first layer is sparse; the net is then narrow enough to leave the
    first layer a third of the weights that it has in the dense net.
    """
    width = expansion * n_hidden
    if whole_output:
        left = budget_of(task, n_hidden) - task.n_outputs - n_hidden * task.n_inputs / 3
        width = min(width, int(left / (1 + task.n_outputs)))
    network = new_network(task, width, seed=seed)
    n_weights = _n_weights_for(network, budget_of(task, n_hidden))
    rng = torch.Generator().manual_seed(seed + 1)
    shapes = [layer.weight.shape for layer in network.layers]
    if whole_output:
        n_first = n_weights - network.layers[1].weight.numel()
        masks = random_masks(shapes[:1], n_first, rng)
    else:
        masks = random_masks(shapes, n_weights, rng)
    layers = list(network.layers)
    for i, mask in enumerate(masks):
        layers[i] = MaskedLinear(layers[i].weight.data, layers[i].bias.data, mask)
    hooks = [] if rewire is None else [Rewire(rewire, rng)]
    return fit_network(task, MLP(layers), seed=seed, hooks=hooks, **settings)


def train_wide_then_prune(
    task, n_hidden, expansion, *, seed, epochs, gradual=False, **settings
):
    """Train a wide dense net and prune it, once at half time or gradually.

    While it is wide it holds `expansion` times the budget.
    """
    network = new_network(task, expansion * n_hidden, seed=seed)
    n_weights = _n_weights_for(network, budget_of(task, n_hidden))
    hook = PruneGradually(n_weights) if gradual else PruneOnce(n_weights, epochs // 2)
    return fit_network(
        task, network, seed=seed, epochs=epochs, hooks=[hook], **settings
    )


def linear_probe(task, n_hidden, expansion, *, seed, pruned=False, **settings):
    """Train one linear layer, whole or gradually pruned to the budget."""
    network = new_network(task, seed=seed)
    hooks = []
    if pruned:
        n_weights = _n_weights_for(network, budget_of(task, n_hidden))
        n_weights = min(n_weights, network.layers[0].weight.numel())
        hooks = [PruneGradually(n_weights)]
    return fit_network(task, network, seed=seed, hooks=hooks, **settings)


def dropconnect(task, n_hidden, expansion, *, seed, wide=False, **settings):
    """Drop weights at random at every step.

    The net has the parent's width and drops a tenth of its weights, or it is `wide`:
    ``expansion * n_hidden`` neurons, of whose weights a budget's worth is active at a
    step, while all of them predict. The latter has more parameters than the others.
    """
    network = new_network(task, n_hidden * (expansion if wide else 1), seed=seed)
    n_all = sum(layer.weight.numel() for layer in network.layers)
    share = _n_weights_for(network, budget_of(task, n_hidden)) / n_all if wide else 0.9
    layers = [
        DropConnectLinear(layer.weight.data, layer.bias.data, share, [seed, level])
        for level, layer in enumerate(network.layers)
    ]
    return fit_network(task, MLP(layers), seed=seed, **settings)


def _n_weights_for(network, budget):
    """Return the weights that a budget leaves beside the biases."""
    return budget - sum(layer.out_features for layer in network.layers)
