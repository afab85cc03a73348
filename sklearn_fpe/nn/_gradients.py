"""Gradients of a network's parameters without autograd's graph.

A step of a small network takes longer to record and to walk the graph, and to update
parameters one by one, than to multiply matrices. Here a gradient goes back through the
layers at once, in place, into gradients that lie in one vector, like the parameters.
"""

import itertools

import torch
from torch import nn

from sklearn_fpe.nn._mlp import ACTIVATIONS

ALIGNMENT = 16
"""Every tensor starts at a multiple of so many entries: of 64 bytes, in float32."""


def flatten_parameters(network):
    """Move all parameters of a network into one vector, and make room for gradients.

    They stay the parameters they are, as views of the vector, and so do their
    gradients. What trains the vector trains the network.

    Parameters
    ----------
    network : MLP
        Network whose parameters have one device and one precision.

    Returns
    -------
    vector : torch.nn.Parameter of shape (n,)
        All parameters, each padded with zeros to a multiple of :data:`ALIGNMENT`; its
        gradient is zero.
    kept : tensor of shape (n,) or None
        1.0 where an entry is kept, 0.0 where it is masked; None: nothing is masked.
    """
    parameters = list(network.parameters())
    lengths = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
    vector = nn.Parameter(parameters[0].new_zeros(sum(lengths)))
    vector.grad = torch.zeros_like(vector)
    kept = torch.ones_like(vector, requires_grad=False)
    masks = {layer.weight: getattr(layer, "mask", None) for layer in network.layers}
    starts = [0, *itertools.accumulate(lengths)]
    for p, start in zip(parameters, starts, strict=False):
        place = slice(start, start + p.numel())
        p.data = vector.detach()[place].view(p.shape).copy_(p.detach())
        p.grad = vector.grad[place].view(p.shape)
        if masks.get(p) is not None:
            kept[place] = masks[p].flatten()
    return vector, kept if any(mask is not None for mask in masks.values()) else None


@torch.no_grad()
def backpropagate(network, x, differentiate, gathered=False):
    """Compute a loss, and write its gradients over those of the parameters.

    What is written where a weight is masked has no meaning.

    Parameters
    ----------
    network : MLP
        Network; every parameter has a gradient to write to.
    x : tensor of shape (n_rows, n_inputs)
        Input; with ``gathered=True``, what :meth:`MLP.gather` returns.
    differentiate : callable
        Maps outputs (n_rows, n_outputs), which it may overwrite, to the loss and its
        gradient with respect to the outputs.
    gathered : bool, default=False
        See :meth:`MLP.forward`.

    Returns
    -------
    loss : tensor of shape ()
        The loss.
    """
    _, activate, derive = ACTIVATIONS[network.activation]
    x = x if gathered else network.centred(x)
    first, *others = network.layers
    inputs, outputs = [x], first(x, gathered=True) if gathered else first(x)
    for layer in others:
        inputs.append(activate(outputs))
        outputs = layer(inputs[-1])
    loss, gradient = differentiate(outputs)
    for layer, x in zip(reversed(others), reversed(inputs), strict=False):
        gradient = layer._backward(x, gradient)
        if derive is not None:
            # The activations have had their use: their derivatives take their place.
            gradient.mul_(derive(x))
    first._backward(inputs[0], gradient, first=True, gathered=gathered)
    return loss
