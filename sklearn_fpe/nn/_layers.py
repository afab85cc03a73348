"""The layers of one weight matrix, dense or masked.

Pruned weights are zero from the start and stay zero in training, so only gradients need
the mask: it multiplies the weight where autograd records. :meth:`Layer.backward` leaves
masks to its caller, because one product masks the gradients of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._arrays import ArrayModule, stored_arrays

MIN_COLUMN_MAJOR_ROWS = 16
"""Rows below which the products write row-major outputs."""

MIN_COLUMN_MAJOR_RATIO = 4
"""in_features / out_features from which on ``W @ x.T`` is used for column-major x."""


def is_traced() -> bool:
    """Tell whether torch records the computation for any number of rows.

    If so, no choice may depend on the number of rows or on strides.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_recorded() -> bool:
    """Tell whether gradients may be computed: by autograd, or by what torch records."""
    return torch.is_grad_enabled() or is_traced()


def is_column_major(x: Tensor) -> bool:
    """Tell whether x of shape (n_rows, n_units) is stored column by column."""
    if is_traced():
        return False
    return x.ndim == 2 and x.stride(0) == 1 and len(x) >= MIN_COLUMN_MAJOR_ROWS


class Layer(ArrayModule):
    """An affine map some of whose weights are kept; by default, of one matrix.

    ``layer(x, out=None)`` maps x of shape (n_rows, in_features) to outputs of shape
    (n_rows, out_features), in the precision of x. The outputs are written into `out` if
    it is given, which autograd cannot record.

    ``weight`` is zero wherever ``mask``, bool of its shape, is False; a mask of None
    keeps all weights. ``kind`` names the class in a stored model. ``reorders_columns``
    tells whether the layer reads anything but all columns of x in their order. If
    ``masks_gradient``, autograd gives pruned weights a gradient of zero; else the one
    that they have as zeros, by which pruned weights can be compared.
    """

    kind: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor | None
    in_features: int
    out_features: int
    reorders_columns = False
    masks_gradient = True

    def to_state(self) -> dict[str, Any]:
        """Return kind, shape of the weight, and arrays."""
        shape = list(self.weight.shape)
        return {"kind": self.kind, "shape": shape, **stored_arrays(self)}

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Map x (n_rows, in_features) to (n_rows, out_features), see :class:`Layer`."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.mask is not None and self.masks_gradient and is_recorded():
            weight = weight * self.mask
        if bias is None:
            (weight,) = in_precision_of(x, weight)
            if out is None:
                return F.linear(x, weight)
            return torch.mm(x, weight.mT, out=out)
        weight, bias = in_precision_of(x, weight, bias)
        n_outputs, n_inputs = weight.shape
        # In this order, because a tracer records comparisons of sizes.
        if is_column_major(x) and n_inputs >= MIN_COLUMN_MAJOR_RATIO * n_outputs:
            by_output = torch.addmm(bias.unsqueeze(1), weight, x.mT).mT
            return by_output if out is None else out.copy_(by_output)
        if out is None:
            return F.linear(x, weight, bias)
        return torch.mm(x, weight.mT, out=out).add_(bias)

    def backward(
        self, x: Tensor, gradient: Tensor, first: bool = False
    ) -> Tensor | None:
        """Write the gradients of weight and bias, without autograd.

        `x` (n_rows, in_features) is the input, `gradient` (n_rows, out_features) that
        of the loss with respect to the outputs. ``weight.grad`` and ``bias.grad`` are
        overwritten; pruned weights get a gradient, too. Returns the gradient with
        respect to x, in the memory order of x; with `first`, None.
        """
        weight, bias = self.weight, self.bias
        torch.mm(gradient.mT, x, out=weight.grad)
        if bias is not None:
            torch.sum(gradient, 0, out=bias.grad)
        if first:
            return None
        if is_column_major(x):
            return torch.mm(weight.mT, gradient.mT).mT
        return torch.mm(gradient, weight)

    def arrange(self, x: Tensor) -> Tensor:
        """Return the columns of x in the order in which :meth:`arranged` reads them."""
        return x

    def arranged(self) -> Layer:
        """Return a layer with the same parameters that acts on arranged columns.

        ``layer.arranged()(layer.arrange(x))`` equals ``layer(x)``. It saves time where
        the same rows are used many times.
        """
        return self

    def dense_weight(self) -> Tensor:
        """Return the weight, (out_features, in_features), zero where pruned."""
        return self.weight.detach()

    def dense_mask(self) -> Tensor:
        """Return the kept weights, bool (out_features, in_features)."""
        return self.kept()

    def dense_bias(self) -> Tensor:
        """Return the bias of every output, (out_features,), zero if there is none."""
        if self.bias is None:
            return self.weight.new_zeros(self.out_features)
        return self.bias.detach()

    @property
    def n_weights(self) -> int:
        """Kept weights."""
        mask = self.mask
        return self.weight.numel() if mask is None else int(mask.count_nonzero())

    @property
    def n_biases(self) -> int:
        """Biases of outputs."""
        return 0 if self.bias is None else self.out_features

    @property
    def n_nonzero(self) -> int:
        """Kept weights and biases."""
        return self.n_weights + self.n_biases

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Keep the weights where `mask`, bool of the shape of `weight`, is True.

        Weights that are dropped become zero. Weights that are kept anew start from the
        value they have, which is zero if they were pruned.
        """
        self.check_mask(mask)
        if self.mask is None:
            self.mask = mask.clone(memory_format=torch.contiguous_format)
        else:
            self.mask.copy_(mask)
        self.weight.mul_(self.mask)

    def check_mask(self, mask: Tensor) -> None:
        """Raise a ValueError if :meth:`set_mask` cannot take `mask`."""
        if mask.shape != self.weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be a bool tensor of shape {tuple(self.weight.shape)}, got "
                f"{mask.dtype} of shape {tuple(mask.shape)}."
            )

    def available(self) -> Tensor:
        """Return the weights that a mask may keep, bool of the shape of `weight`."""
        return torch.ones_like(self.weight, dtype=torch.bool)

    def kept(self) -> Tensor:
        """Return the weights that are kept, bool of the shape of `weight`; a copy."""
        return self.available() if self.mask is None else self.mask.clone()

    def total_in(self, values: Tensor) -> Tensor:
        """Sum `values` of weights, of the shape of `weight`, into every output."""
        return values.sum(1)

    def total_out(self, values: Tensor) -> Tensor:
        """Sum `values` of weights, of the shape of `weight`, out of every input."""
        return values.sum(0)

    def between(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the weights that join some inputs to some outputs, kept or not.

        `inputs` (in_features,) and `outputs` (out_features,) are bool, and so is the
        result, of the shape of `weight`.
        """
        return outputs.unsqueeze(1) & inputs

    def rows_into(self, outputs: Tensor) -> Tensor:
        """Return the row of ``weight.flatten(0, -2)`` into each of `outputs`, int64."""
        return outputs

    def inputs_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the input at each of `rows`, see :meth:`rows_into`, and `columns`."""
        return columns

    def select_units(self, inputs: Tensor, outputs: Tensor) -> Layer:
        """Return a layer over some inputs and outputs, with copies of the parameters.

        `inputs` (in_features,) and `outputs` (out_features,) are bool: those that stay.
        No kept weight may be lost.
        """
        weight = self.weight.detach()[outputs][:, inputs]
        bias = None if self.bias is None else self.bias.detach()[outputs]
        mask = None if self.mask is None else self.mask[outputs][:, inputs]
        if mask is None or bool(mask.all()):
            return DenseLinear(weight, bias)
        return MaskedLinear(weight, bias, mask)

    @torch.no_grad()
    def fold_input(self, affine: Affine) -> None:
        """Make the layer act on x where it acted on ``affine(x)``."""
        self.add_bias(self.scale_input(affine))

    @torch.no_grad()
    def scale_input(self, affine: Affine) -> Tensor:
        """Fold the scale of the inputs, of ``affine(x)``, into the weight.

        Returns the double tensor that must be added to the biases for the location.
        """
        mean, scale = affine.tensors(self.weight.device)
        scaled = self.weight.double() / scale
        self.weight.copy_(scaled)
        return -(scaled @ mean)

    @torch.no_grad()
    def add_bias(self, shift: Tensor) -> None:
        """Add `shift` to the biases, in double precision."""
        if self.bias is None:
            raise TypeError("A layer without biases cannot be shifted.")
        self.bias.copy_(self.bias.double() + shift)

    def extra_repr(self) -> str:
        """Describe shape and density for ``print``."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        if self.mask is None:
            return shape
        density = self.n_weights / max(1, self.in_features * self.out_features)
        return f"{shape}, density={density:.3g}"


def in_precision_of(x: Tensor, *parameters: Tensor) -> Iterator[Tensor]:
    """Return parameters in the precision of x, which must have one."""
    if not x.is_floating_point():
        raise TypeError(f"The input must be of a floating-point dtype, got {x.dtype}.")
    return (parameter.to(x.dtype) for parameter in parameters)


class DenseLinear(Layer, nn.Linear):
    """:class:`torch.nn.Linear` with the methods of the other layers.

    ``y = x W' + b``, with all weights kept.

    Parameters
    ----------
    weight : tensor of shape (out_features, in_features)
        Initial weight; the parameter shares its memory.
    bias : tensor of shape (out_features,), default=None
        Initial bias; the parameter shares its memory. None: no bias.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import DenseLinear
    >>> DenseLinear(torch.ones(3, 4), torch.zeros(3)).n_nonzero
    15
    """

    kind = "dense"
    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]  # torch allows None
    mask = None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def set_mask(self, mask: Tensor) -> None:
        """Refuse any `mask`, because a dense layer keeps all weights."""
        raise TypeError("A DenseLinear keeps all weights; use a MaskedLinear.")


class MaskedLinear(Layer):
    """Affine map whose weight is zero wherever a mask is False.

    ``y = x (W * mask)' + b``. The gradient of a pruned weight is exactly zero, so,
    starting from zero, it stays zero under momentum and weight decay.

    Parameters
    ----------
    weight : tensor of shape (out_features, in_features)
        Initial weight; values at pruned positions are ignored.
    bias : tensor of shape (out_features,) or None
        Initial bias; None: no bias.
    mask : bool tensor of shape (out_features, in_features)
        The kept weights.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import MaskedLinear
    >>> mask = torch.tensor([[True, False], [True, True]])
    >>> layer = MaskedLinear(torch.ones(2, 2), torch.zeros(2), mask)
    >>> layer(torch.ones(1, 2)).tolist(), layer.n_nonzero
    ([[1.0, 2.0]], 5)
    """

    kind = "masked"

    def __init__(self, weight: Tensor, bias: Tensor | None, mask: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight * mask)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.register_buffer("mask", mask)

    @classmethod
    def of(cls, layer: DenseLinear) -> MaskedLinear:
        """Return a layer that shares the parameters of a dense one and keeps all."""
        masked = cls.__new__(cls)
        nn.Module.__init__(masked)
        masked.out_features, masked.in_features = layer.weight.shape
        masked.weight = layer.weight
        masked.register_parameter("bias", layer.bias)
        mask = torch.ones_like(layer.weight, dtype=torch.bool)
        masked.register_buffer("mask", mask)
        return masked
