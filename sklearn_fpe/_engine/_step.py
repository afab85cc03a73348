"""A training step: gradients without autograd's graph, and one vector to update.

Recording and walking autograd's graph, and updating parameters one by one, takes longer
than the matrix products of a small network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_fpe._engine._world import World
from sklearn_fpe.nn import MLP

ALIGNMENT = 16
"""Every tensor starts at a multiple of this many entries: of 64 bytes, in float32."""


class FlatParameters:
    """All parameters of a network as one vector, which trains.

    The parameters and their gradients stay tensors of their own: views of the vector
    and of its gradient.

    Parameters
    ----------
    network : MLP
        Network whose parameters have one device and one precision.

    Attributes
    ----------
    vector : torch.nn.Parameter of shape (n,)
        All parameters, each padded with zeros to a multiple of :data:`ALIGNMENT`.
    trainable : tensor of shape (n,) or None
        1.0 where an entry is trained, 0.0 where it is pruned; None: nothing is pruned.
    places : dict
        The slice of the vector that holds each parameter.
    """

    def __init__(self, network: MLP) -> None:
        self.network = network
        parameters = list(network.parameters())
        lengths = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        self.vector = nn.Parameter(parameters[0].new_zeros(sum(lengths)))
        self.vector.grad = torch.zeros_like(self.vector)
        self.trainable: Tensor | None = None
        self.places: dict[nn.Parameter, slice] = {}
        values = self.vector.detach()
        for p, start in zip(
            parameters, itertools.accumulate([0, *lengths[:-1]]), strict=True
        ):
            place = slice(start, start + p.numel())
            self.places[p] = place
            p.data = values[place].view(p.shape).copy_(p.detach())
            p.grad = self.vector.grad[place].view(p.shape)
        self.follow_masks()

    def follow_masks(self) -> None:
        """Bring :attr:`trainable` up to date with the masks of the layers.

        In place, if there is one, because a recorded step or a stack reads it there.
        """
        masked = [layer for layer in self.network.maps if layer.mask is not None]
        if self.trainable is None:
            if not masked:
                return
            self.trainable = torch.empty_like(self.vector, requires_grad=False)
        self.trainable.fill_(1.0)
        for layer in masked:
            assert layer.mask is not None
            self.trainable[self.places[layer.weight]].copy_(layer.mask.flatten())

    @torch.no_grad()
    def move_to(self, values: Tensor, gradient: Tensor, trainable: Tensor) -> None:
        """Keep parameters, gradients and masks in other tensors of shape (n,).

        These may be rows of matrices that hold several networks.
        """
        values.copy_(self.vector)
        self.vector.data, self.vector.grad = values, gradient
        for p, place in self.places.items():
            p.data = values[place].view(p.shape)
            p.grad = gradient[place].view(p.shape)
        self.trainable = trainable
        self.follow_masks()

    @property
    def gradient(self) -> Tensor:
        """The gradients of all parameters, a tensor of shape (n,)."""
        assert self.vector.grad is not None
        return self.vector.grad

    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero."""
        if self.trainable is not None:
            self.gradient.mul_(self.trainable)


def mask_gradients(network: MLP) -> None:
    """Set the gradients of the pruned weights of a network to zero."""
    for layer in network.maps:
        if layer.mask is not None and layer.weight.grad is not None:
            layer.weight.grad.mul_(layer.mask)


def add_gradients(network: MLP, world: World) -> None:
    """Add up the gradients that every process has computed, as one vector."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    vector = torch.cat([gradient.flatten() for gradient in gradients])
    world.add_(vector)
    parts = vector.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class VectorAdamW(torch.optim.AdamW):
    """AdamW with a faster step, :meth:`update`, for a single parameter.

    :meth:`step` of torch's optimizers checks hooks, profilers, groups, devices and
    precisions at every call, which takes longer than updating a small network.
    """

    def add_param_group(self, param_group: dict) -> None:
        """Add a group.

        Calls torch's method without its decorator, which imports torch's compiler for a
        second to disable it.
        """
        add = torch.optim.Optimizer.add_param_group
        getattr(add, "__wrapped__", add)(self, param_group)

    @torch.no_grad()
    def update(self) -> None:
        """Update the parameter like :meth:`step`."""
        (group,) = self.param_groups
        (vector,) = group["params"]
        state = self.state[vector]
        if not state:
            state["step"] = vector.new_zeros(())
            state["exp_avg"] = torch.zeros_like(vector)
            state["exp_avg_sq"] = torch.zeros_like(vector)
        state["step"] += 1
        update_adamw(group, [vector.detach()], [vector.grad], [state])

    @torch.no_grad()
    def move_to(self, step: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Keep the state of the single parameter in other tensors.

        `step`, of shape (), counts steps; the others, of shape (n,), are running means
        of the gradient and of the squared gradient.
        """
        ((vector,),) = (group["params"] for group in self.param_groups)
        memory = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        state = self.state[vector]
        for name, tensor in memory.items():
            tensor.copy_(state[name]) if state else tensor.zero_()
        state.update(memory)


def update_adamw(
    group: dict[str, Any],
    vectors: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
) -> None:
    """Update vectors by one step of AdamW, in one call of the kernel.

    ``torch.optim.adamw.adamw`` sorts its tensors by device and asks for compilers at
    every call, which takes several times as long as the kernel.

    `group` holds learning rate, weight decay and constants. `states` holds the
    optimizer's state of each vector; its step counts this one already.
    """
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        vectors,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def has_fast_step(network: MLP) -> bool:
    """Tell whether :func:`backpropagate` can compute the gradients of a network."""
    if network.activation.backward_ is None:
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    return not hooked and all(
        p.requires_grad and p.dtype == torch.float32 for p in network.parameters()
    )


@torch.no_grad()
def backpropagate(
    network: MLP, x: Tensor, differentiate: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the loss of a batch, and write its gradients over those of the parameters.

    Pruned weights get a gradient, too, as if they were kept.

    Every parameter needs a gradient to write to. `differentiate` maps the outputs for
    `x`, (n_rows, n_outputs), which it may overwrite, to the loss and its gradient with
    respect to the outputs.
    """
    apply_, backward_ = network.activation.apply_, network.activation.backward_
    assert backward_ is not None
    first, *others = network.layers
    inputs, outputs = [x], first(x)
    for layer in others:
        inputs.append(apply_(outputs))
        outputs = layer(inputs[-1])
    if network.skip is not None:
        outputs.addmm_(inputs[0], network.skip.weight.mT)
    loss, gradient = differentiate(outputs)
    if network.skip is not None:
        network.skip.backward(inputs[0], gradient, first=True)
    for layer, x in zip(reversed(others), reversed(inputs), strict=False):
        # The activations are not needed any more, so their derivatives overwrite them.
        back = layer.backward(x, gradient)
        assert back is not None
        gradient = backward_(back, x)
    first.backward(inputs[0], gradient, first=True)
    return loss
