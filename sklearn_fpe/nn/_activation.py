"""Activation functions, each with its derivative, its ONNX operators and its gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """An elementwise activation function of the hidden layers.

    Parameters
    ----------
    name : str
        Name of the function.
    module : callable
        ``module()`` returns the function as a ``torch.nn.Module``.
    apply_ : callable
        Computes the function in place, where no gradient is recorded.
    backward_ : callable, default=None
        ``backward_(gradient, output)`` multiplies `gradient` in place by the
        derivative, computed from the function's output, which it may overwrite. None
        if that is not possible: gradients then come from autograd.
    onnx : callable, default=None
        ``onnx(graph, x)`` adds the function's ONNX operators to a graph and returns
        the name of their result. None if the function cannot be exported.
    gain : float, default=6.0
        Initial weights are uniform in ±sqrt(gain / (fan_in + fan_out)).

    Examples
    --------
    A function of your own, trained by autograd:

    >>> from sklearn_fpe import FPEClassifier
    >>> from sklearn_fpe.nn import Activation
    >>> from torch.nn import Softplus, functional
    >>> softplus = Activation("softplus", Softplus, functional.softplus)
    >>> FPEClassifier(activation=softplus).activation.name
    'softplus'
    """

    name: str
    module: Callable[[], nn.Module]
    apply_: Callable[[Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor], Any] | None = None
    onnx: Callable[[Any, str], str] | None = None
    gain: float = 6.0

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a registered function by its name, because its parts are lambdas."""
        if ACTIVATIONS.get(self.name) is self:
            return get_activation, (self.name,)
        return super().__reduce__()


def get_activation(activation: str | Activation) -> Activation:
    """Return an activation by its name in :data:`ACTIVATIONS`, or the object itself."""
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {sorted(ACTIVATIONS)} or an Activation, got "
            f"{activation!r}."
        )
    return ACTIVATIONS[activation]


_relu_backward = torch.ops.aten.threshold_backward.grad_input
"""Writes the gradient where the output is above zero, and zero elsewhere."""


def _gelu_onnx(graph: Any, x: str) -> str:
    scaled = graph.add("Mul", x, graph.scalar("scale", 1 / math.sqrt(2)))
    cdf = graph.add("Add", graph.add("Erf", scaled), graph.scalar("one", 1.0))
    half = graph.add("Mul", x, graph.scalar("half", 0.5))
    return graph.add("Mul", half, cdf)


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation(
            "identity",
            nn.Identity,
            lambda x: x,
            lambda gradient, output: gradient,
            lambda graph, x: x,
        ),
        Activation(
            "logistic",
            nn.Sigmoid,
            torch.sigmoid_,
            lambda gradient, a: gradient.mul_(a.addcmul_(a, a, value=-1)),
            lambda graph, x: graph.add("Sigmoid", x),
            gain=2.0,
        ),
        Activation(
            "tanh",
            nn.Tanh,
            torch.tanh_,
            lambda gradient, a: gradient.mul_(a.square_().neg_().add_(1)),
            lambda graph, x: graph.add("Tanh", x),
        ),
        Activation(
            "relu",
            nn.ReLU,
            torch.relu_,
            lambda gradient, a: _relu_backward(gradient, a, 0, grad_input=gradient),
            lambda graph, x: graph.add("Relu", x),
        ),
        Activation("gelu", nn.GELU, functional.gelu, onnx=_gelu_onnx),
        Activation(
            "silu",
            nn.SiLU,
            lambda x: functional.silu(x, inplace=True),
            onnx=lambda graph, x: graph.add("Mul", x, graph.add("Sigmoid", x)),
        ),
    )
}
"""The activation functions by name; the first four have scikit-learn's names."""
