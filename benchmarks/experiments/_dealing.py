"""Children whose inputs are dealt disjointly or with overlaps, in one code path.

The parent's weights are copied to its children under drawn masks, then the smallest
weights of both layers are pruned to the budget, no layer to less than half of its
parent's weights.
"""

import numpy as np
import torch

from benchmarks.experiments._loop import generator, report, train
from benchmarks.experiments._peers import Masks, budget_of, largest
from sklearn_fpe.nn import MLP, partition


def fit_children(
    task, n_hidden, expansion, dealing, *, seed, epochs, warmup, **settings
):
    """Warm up, deal the inputs by the rule `dealing`, prune, fine-tune."""
    settings["seed"] = seed
    widths = [task.n_inputs, n_hidden, task.n_outputs]
    parent = MLP.dense(widths, generator=generator(seed))
    n_warmup = round(warmup * epochs)
    train(parent, task, range(n_warmup), epochs, **settings)
    rng = np.random.default_rng(seed)
    seen = deal(parent.layers[0].weight.detach().numpy(), expansion, dealing, rng)
    network, hook = copy_under(
        parent, torch.from_numpy(seen), budget_of(task, n_hidden)
    )
    train(network, task, range(n_warmup, epochs), epochs, hook=hook, **settings)
    measured = report(network, task) | {"n_nonzero": hook.n_nonzero(network)}
    return measured


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


@torch.no_grad()
def copy_under(parent, seen, budget):
    """Make the children's network and the masks that bring it to the budget."""
    first, last = parent.layers
    expansion, n_neurons, n_inputs = seen.shape
    network = MLP.dense([n_inputs, expansion * n_neurons, last.out_features])
    wide, out = network.layers
    wide.weight.copy_(first.weight.repeat(expansion, 1) * seen.flatten(0, 1))
    wide.bias.copy_(first.bias.repeat(expansion) / expansion)
    out.weight.copy_(last.weight.repeat(1, expansion))
    out.bias.copy_(last.bias)
    scores = [wide.weight.abs(), out.weight.abs()]
    # Of each layer, its floor of largest weights goes before all others.
    for score, layer in zip(scores, (first, last), strict=True):
        score += 1e6 * largest([score], layer.weight.numel() // 2)[0]
    n_biases = expansion * n_neurons + last.out_features
    return network, Masks(network, largest(scores, budget - n_biases))
