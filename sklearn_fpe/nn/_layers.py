"""The layers that run a partitioned weight matrix.

They hold kept positions only as trainable freedom, and answer the same questions:
which positions are kept, what is the dense matrix, how many non-zeros. Which one runs
a layer is decided where a network is expanded.

Pruned positions are zero when a layer is made and stay zero in training. So a mask is
needed for gradients only: it multiplies the weight where autograd records, unless the
input was laid out with zeros for what is masked.

A layer computes in the precision of its input, whatever that of its parameters.

Each layer has a method ``_backward``, which does what autograd does, at once: it writes
the gradients of a loss over those of the parameters, which are there already, and
returns that of the input. It leaves masks to :mod:`sklearn_fpe.nn._gradients`, which
calls it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sklearn_fpe.nn._blocks import (
    block_gradients,
    block_input_gradient,
    by_unit,
    multiply_blocks,
    scatter_columns,
    select_columns,
)
from sklearn_fpe.nn._pickling import PickledAsArrays

TALL = 4
"""Inputs per output from which on other layers compute unit by unit, too.

If their input lies unit by unit; the product along the rows is then the faster one.
"""


def in_precision_of(x, *parameters):
    """Return parameters in the precision of x, which must have one."""
    if not x.is_floating_point():
        raise TypeError(f"The input must be of a floating-point dtype, got {x.dtype}.")
    return (parameter.to(x.dtype) for parameter in parameters)


def linear(x, weight, bias, out=None):
    """Compute ``x weight' + bias`` in the precision of x, into `out` if it is given."""
    weight, bias = in_precision_of(x, weight, bias)
    if by_unit(x) and weight.shape[1] >= TALL * weight.shape[0]:
        by_output = torch.addmm(bias.unsqueeze(1), weight, x.mT).mT
        return by_output if out is None else out.copy_(by_output)
    if out is None:
        return F.linear(x, weight, bias)
    return torch.mm(x, weight.mT, out=out).add_(bias)


def linear_backward(x, gradient, weight, bias, first):
    """Write the gradients of weight and bias; return that of x, in memory like x."""
    torch.mm(gradient.mT, x, out=weight.grad)
    torch.sum(gradient, 0, out=bias.grad)
    if first:
        return None
    if by_unit(x):
        return torch.mm(weight.mT, gradient.mT).mT
    return torch.mm(gradient, weight)


class DenseLinear(PickledAsArrays, nn.Linear):
    """:class:`torch.nn.Linear` that answers what the partitioned layers answer.

    ``y = x W' + b``, all of whose positions are kept.

    Parameters
    ----------
    in_features, out_features : int
        Numbers of inputs and outputs.
    device : torch.device, default=None
        Where to make the parameters.
    dtype : torch.dtype, default=None
        Their precision.

    Examples
    --------
    >>> from sklearn_fpe.nn import DenseLinear
    >>> DenseLinear(4, 3).n_nonzero
    15
    """

    def __init__(self, in_features, out_features, *, device=None, dtype=None):
        super().__init__(in_features, out_features, device=device, dtype=dtype)

    def forward(self, x, out=None):
        """Map x (n_rows, in_features) to (n_rows, out_features), that of `out`."""
        return linear(x, self.weight, self.bias, out)

    def _backward(self, x, gradient, first=False, gathered=False):
        # gradient: of what forward made of x; that of x is None for the first layer.
        return linear_backward(x, gradient, self.weight, self.bias, first)

    def kept(self):
        """Return the kept positions, bool (out_features, in_features): all."""
        return torch.ones_like(self.weight, dtype=torch.bool)

    def dense_weight(self):
        """Return the weight, (out_features, in_features)."""
        return self.weight.detach()

    def unit_bias(self):
        """Return the bias of every output, (out_features,)."""
        return self.bias.detach()

    @property
    def n_nonzero(self):
        """Kept positions, biases included."""
        return self.weight.numel() + self.out_features

    @torch.no_grad()
    def fold_input(self, scale, shift):
        """Make the layer act on x where it acted on ``(x - shift) * scale``."""
        _fold(self.weight, self.bias, scale, shift, lambda w: w @ shift)


class MaskedLinear(PickledAsArrays, nn.Module):
    """Affine map whose weight is zero wherever a mask is False.

    ``y = x (W * mask)' + b``. The gradient of a pruned weight is exactly zero, so,
    starting from zero, it stays zero under momentum and weight decay.

    Parameters
    ----------
    weight : tensor of shape (out_features, in_features)
        Initial weight; values at pruned positions are ignored.
    bias : tensor of shape (out_features,)
        Initial bias.
    mask : bool tensor of shape (out_features, in_features)
        The kept positions.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import MaskedLinear
    >>> mask = torch.tensor([[True, False], [True, True]])
    >>> layer = MaskedLinear(torch.ones(2, 2), torch.zeros(2), mask)
    >>> layer(torch.ones(1, 2)).tolist(), layer.n_nonzero
    ([[1.0, 2.0]], 5)
    """

    def __init__(self, weight, bias, mask):
        super().__init__()
        self.weight = nn.Parameter(weight * mask)
        self.bias = nn.Parameter(bias)
        self.register_buffer("mask", mask)

    @property
    def in_features(self):
        """Number of inputs."""
        return self.weight.shape[1]

    @property
    def out_features(self):
        """Number of outputs."""
        return self.weight.shape[0]

    def forward(self, x, out=None):
        """Map x (n_rows, in_features) to (n_rows, out_features), that of `out`."""
        recorded = torch.is_grad_enabled()
        weight = self.weight * self.mask if recorded else self.weight
        return linear(x, weight, self.bias, out)

    def _backward(self, x, gradient, first=False, gathered=False):
        # gradient: of what forward made of x; that of x is None for the first layer.
        return linear_backward(x, gradient, self.weight, self.bias, first)

    def kept(self):
        """Return the kept positions, bool (out_features, in_features)."""
        return self.mask

    def dense_weight(self):
        """Return the weight, (out_features, in_features), zero where pruned."""
        return self.weight.detach()

    def unit_bias(self):
        """Return the bias of every output, (out_features,)."""
        return self.bias.detach()

    @property
    def n_nonzero(self):
        """Kept positions, biases included."""
        return int(self.mask.sum()) + self.out_features

    @torch.no_grad()
    def fold_input(self, scale, shift):
        """Make the layer act on x where it acted on ``(x - shift) * scale``."""
        _fold(self.weight, self.bias, scale, shift, lambda w: w @ shift)


class BlockLinear(PickledAsArrays, nn.Module):
    """Affine map by dense blocks: every child of a block reads the block's inputs.

    A layer whose neurons share one partition is block diagonal up to the order of its
    columns: child block ``a`` computes ``y_a = x[:, inputs[a]] W_a' + b_a``. All blocks
    run as one batched product, at the cost of the un-expanded matrix.

    Parameters
    ----------
    weight : tensor of shape (n_blocks, block_outputs, block_inputs)
        Initial blocks.
    bias : tensor of shape (n_blocks, block_outputs)
        Initial biases.
    inputs : int tensor of shape (n_blocks, block_inputs)
        The input that each column of a block reads. Blocks with fewer inputs than the
        largest one are padded with any index, masked.
    in_features : int
        Number of inputs of the layer.
    mask : bool tensor of the shape of `weight`, default=None
        The kept positions; None: all of them.
    outputs : int tensor of shape (out_features,), default=None
        The flat block outputs that exist, where some were pruned; None: all.

    Attributes
    ----------
    gathers : bool
        Whether the blocks are not just runs of neighbouring columns.
    dense : bool
        Whether all outputs of a block keep the same inputs: all that is masked, if
        anything, is whole inputs or outputs.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import BlockLinear
    >>> inputs = torch.tensor([[0, 2], [1, 3]])
    >>> layer = BlockLinear(torch.ones(2, 1, 2), torch.zeros(2, 1), inputs, 4)
    >>> layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist(), layer.n_nonzero
    ([[4.0, 6.0]], 6)
    """

    def __init__(self, weight, bias, inputs, in_features, mask=None, outputs=None):
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(weight if mask is None else weight * mask)
        self.bias = nn.Parameter(bias)
        self.register_buffer("inputs", inputs)
        self.register_buffer("mask", mask)
        self.register_buffer("outputs", outputs)
        self.gathers = not torch.equal(
            inputs.flatten().cpu(), torch.arange(in_features)
        )
        self.dense = mask is None or self._is_dense()

    @property
    def out_features(self):
        """Number of outputs."""
        return self.bias.numel() if self.outputs is None else len(self.outputs)

    def forward(self, x, gathered=False, out=None):
        """Map x (n_rows, in_features) to (n_rows, out_features), that of `out`.

        With ``gathered=True``, x is what :meth:`gather` returns.
        """
        weight, bias = in_precision_of(x, self.weight, self.bias)
        # What is gathered is zero where all is masked, and so is the gradient.
        masked = self.mask is not None and not (gathered and self.dense)
        if masked and torch.is_grad_enabled():
            weight = weight * self.mask
        if self.gathers and not gathered:
            x = select_columns(x, self.inputs.flatten())
        outputs = multiply_blocks(x, weight, bias)
        if self.outputs is not None:
            outputs = select_columns(outputs, self.outputs)
        return outputs if out is None else out.copy_(outputs)

    def _backward(self, x, gradient, first=False, gathered=False):
        # gradient: of what forward made of x; that of x is None for the first layer.
        weight, bias = self.weight, self.bias
        if self.outputs is not None:
            gradient = scatter_columns(gradient, self.outputs, bias.numel())
        if self.gathers and not gathered:
            x = select_columns(x, self.inputs.flatten())
        block_gradients(x, gradient, weight, out=(weight.grad, bias.grad))
        if first:
            return None
        back = block_input_gradient(x, gradient, weight)
        if self.gathers:
            back = scatter_columns(back, self.inputs.flatten(), self.in_features)
        return back

    def gather(self, x, in_place=False):
        """Lay x (n_rows, in_features) out by blocks, zero where all is masked.

        With ``in_place=True``, x itself may be what is returned.
        """
        if self.gathers:
            x = x.index_select(1, self.inputs.flatten())
        elif not in_place:
            x = x.clone()
        if self.mask is not None:
            unread = ~self.mask.any(1).flatten()
            x.index_fill_(1, unread.nonzero().squeeze(1), 0.0)
        return x

    def _is_dense(self):
        exists = torch.ones_like(self.bias, dtype=torch.bool)
        if self.outputs is not None:
            exists.fill_(False).view(-1)[self.outputs] = True
        read = self.mask.any(1, keepdim=True)
        return torch.equal(self.mask, read & exists.unsqueeze(2))

    def _scatter(self, blocks):
        """Lay values of the shape of `weight` out as (out_features, in_features)."""
        n_blocks, block_outputs, _ = blocks.shape
        dense = blocks.new_zeros(n_blocks, block_outputs, self.in_features)
        index = self.inputs.unsqueeze(1).expand(-1, block_outputs, -1)
        # Padding repeats an index with the value zero (or False): add, not assign.
        dense.scatter_add_(2, index, blocks)
        dense = dense.flatten(0, 1)
        return dense if self.outputs is None else dense[self.outputs]

    def kept(self):
        """Return the kept positions, bool (out_features, in_features)."""
        mask = torch.ones_like(self.weight) if self.mask is None else self.mask
        return self._scatter(mask.to(torch.float32)) > 0

    def dense_weight(self):
        """Return the weight, (out_features, in_features), zero where pruned."""
        return self._scatter(self.weight.detach())

    def unit_bias(self):
        """Return the bias of every output, (out_features,)."""
        bias = self.bias.detach().flatten()
        return bias if self.outputs is None else bias[self.outputs]

    @property
    def n_nonzero(self):
        """Kept positions, biases included, padding not."""
        n_kept = self.weight.numel() if self.mask is None else int(self.mask.sum())
        return n_kept + self.out_features

    @torch.no_grad()
    def fold_input(self, scale, shift):
        """Make the layer act on x where it acted on ``(x - shift) * scale``."""
        scale, shift = scale[self.inputs].unsqueeze(1), shift[self.inputs].unsqueeze(1)
        _fold(self.weight, self.bias, scale, shift, lambda w: (w * shift).sum(2))


def _fold(weight, bias, scale, shift, weighted_shift):
    """Fold an affine map of the input into weight and bias, in double precision."""
    scaled = weight.double() * scale
    bias.copy_(bias.double() - weighted_shift(scaled))
    weight.copy_(scaled)
