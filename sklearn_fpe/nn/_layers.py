"""The layers that run a partitioned weight matrix.

They hold kept positions only as trainable freedom, and answer the same questions:
which positions are kept, what is the dense matrix, how many non-zeros. Which one runs
a layer is decided where a network is expanded.

Pruned positions are zero when a layer is made and stay zero in training, so only
training multiplies by the mask: that keeps their gradients at zero.

A layer computes in the precision of its input, whatever that of its parameters.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sklearn_fpe.nn._pickling import PickledAsArrays

WIDEN_ABOVE = 256
"""Rows above which contiguous blocks multiply by zeros rather than gather columns.

The zeros are laid out anew in every call, which few rows do not repay.
"""


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

    def forward(self, x):
        """Map x (n_rows, in_features) to (n_rows, out_features)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

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

    ``y = x (W * mask)' + b``. In training the product with the mask stands in the
    forward pass, so the gradient of a pruned weight is exactly zero and, starting from
    zero, it stays zero under momentum and weight decay.

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

    def forward(self, x):
        """Map x (n_rows, in_features) to (n_rows, out_features)."""
        weight = self.weight * self.mask if self.training else self.weight
        return F.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))

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
    columns: child block ``a`` computes ``y_a = x[:, inputs[a]] W_a + b_a``. All blocks
    run as one batched product, at the cost of the un-expanded matrix.

    Parameters
    ----------
    weight : tensor of shape (n_blocks, block_inputs, block_outputs)
        Initial blocks.
    bias : tensor of shape (n_blocks, block_outputs)
        Initial biases.
    inputs : int tensor of shape (n_blocks, block_inputs)
        The input that each row of a block reads. Blocks with fewer inputs than the
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
    aligned : bool
        Whether every block reads only from its run of equal length: then columns that
        are not read cost less as zeros of the weight than as a gather of x.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import BlockLinear
    >>> inputs = torch.tensor([[0, 2], [1, 3]])
    >>> layer = BlockLinear(torch.ones(2, 2, 1), torch.zeros(2, 1), inputs, 4)
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
        self.aligned = self.gathers and _is_aligned(inputs.cpu(), in_features)

    @property
    def out_features(self):
        """Number of outputs."""
        return self.bias.numel() if self.outputs is None else len(self.outputs)

    def forward(self, x, gathered=False):
        """Map x (n_rows, in_features) to (n_rows, out_features).

        With ``gathered=True``, x is ``x[:, inputs.flatten()]`` already.
        """
        x, weight, bias = self.operands(x, gathered)
        n_blocks, block_inputs, _ = weight.shape
        blocks = x.view(len(x), n_blocks, block_inputs).transpose(0, 1)
        out = torch.baddbmm(bias.unsqueeze(1), blocks, weight)
        out = out.transpose(0, 1).flatten(1)
        return out if self.outputs is None else out.index_select(1, self.outputs)

    def operands(self, x, gathered=False):
        """Return x in the order of the blocks, their weight and their bias.

        x and `gathered` are those of :meth:`forward`.
        """
        masked = self.training and self.mask is not None
        weight = self.weight * self.mask if masked else self.weight
        if self.aligned and not gathered and len(x) > WIDEN_ABOVE:
            weight = self._widen(weight)
        elif self.gathers and not gathered:
            x = x.index_select(1, self.inputs.flatten())
        return x, weight.to(x.dtype), self.bias.to(x.dtype)

    def spread(self, weight):
        """Lay the columns of `weight`, one an output, out over all block outputs."""
        if self.outputs is None:
            return weight
        wide = weight.new_zeros(len(weight), self.bias.numel())
        return wide.index_copy(1, self.outputs, weight)

    def _widen(self, weight):
        """Put zeros where inputs of a block are not read: less than a gather of x."""
        n_blocks, _, block_outputs = weight.shape
        wide = weight.new_zeros(self.in_features, block_outputs)
        # Padding repeats an index with the value zero: add, not assign.
        wide = wide.index_add(0, self.inputs.flatten(), weight.flatten(0, 1))
        return wide.view(n_blocks, -1, block_outputs)

    def _scatter(self, blocks):
        """Lay values of the shape of `weight` out as (out_features, in_features)."""
        n_blocks, _, block_outputs = blocks.shape
        dense = blocks.new_zeros(n_blocks, block_outputs, self.in_features)
        index = self.inputs.unsqueeze(1).expand(-1, block_outputs, -1)
        # Padding repeats an index with the value zero (or False): add, not assign.
        dense.scatter_add_(2, index, blocks.transpose(1, 2))
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
        scale, shift = scale[self.inputs].unsqueeze(2), shift[self.inputs].unsqueeze(2)
        _fold(self.weight, self.bias, scale, shift, lambda w: (w * shift).sum(1))


def _is_aligned(inputs, in_features):
    """Tell whether block a reads only the a-th run of columns, of equal lengths."""
    n_blocks = len(inputs)
    if in_features % n_blocks:
        return False
    run = in_features // n_blocks
    return bool((inputs // run == torch.arange(n_blocks).unsqueeze(1)).all())


def _fold(weight, bias, scale, shift, weighted_shift):
    """Fold an affine map of the input into weight and bias, in double precision."""
    scaled = weight.double() * scale
    bias.copy_(bias.double() - weighted_shift(scaled))
    weight.copy_(scaled)
