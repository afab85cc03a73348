"""The layer of dense blocks, which runs a shared partition as one batched product.

The blocks write their outputs into one column-major matrix of shape (n_rows, n_units),
because that avoids concatenating them; with few rows, or with narrow blocks outside of
training, into a row-major one, because that is faster. Later layers accept both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._layers import (
    MIN_COLUMN_MAJOR_ROWS,
    Layer,
    in_precision_of,
    is_column_major,
    is_recorded,
    is_traced,
)

ROW_MAJOR_OUTPUTS = range(12, 65)
"""Outputs per block for which the products write row-major outputs in prediction."""


class BlockLinear(Layer):
    """Affine map by dense blocks: every child of a block reads the block's inputs.

    A layer whose neurons share one partition is block diagonal up to the order of its
    columns: block ``a`` computes ``y_a = x[:, inputs[a]] W_a' + b_a``. All blocks run
    as one batched product, at the cost of the matrix before the expansion.

    Parameters
    ----------
    weight : tensor of shape (n_blocks, block_outputs, block_inputs)
        Initial blocks.
    bias : tensor of shape (n_blocks, block_outputs)
        Initial biases.
    inputs : int tensor of shape (n_blocks, block_inputs)
        The input that each column of a block reads. Blocks with fewer inputs than the
        largest one are padded with an index they have already, masked.
    in_features : int
        Number of inputs of the layer.
    mask : bool tensor of the shape of `weight`, default=None
        The kept weights; None: all of them.
    outputs : int tensor of shape (out_features,), default=None
        The flat block outputs that exist, where some were pruned; None: all.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import BlockLinear
    >>> inputs = torch.tensor([[0, 2], [1, 3]])
    >>> layer = BlockLinear(torch.ones(2, 1, 2), torch.zeros(2, 1), inputs, 4)
    >>> layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist(), layer.n_nonzero
    ([[4.0, 6.0]], 6)
    """

    kind = "block"
    bias: nn.Parameter
    inputs: Tensor
    outputs: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        inputs: Tensor,
        in_features: int,
        mask: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = bias.numel() if outputs is None else len(outputs)
        self.weight = nn.Parameter(weight if mask is None else weight * mask)
        self.bias = nn.Parameter(bias)
        self.register_buffer("inputs", inputs)
        self.register_buffer("mask", mask)
        self.register_buffer("outputs", outputs)
        self.reorders_columns = not torch.equal(
            inputs.flatten().cpu(), torch.arange(in_features, device="cpu")
        )

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Map x (n_rows, in_features) to (n_rows, out_features), see :class:`Layer`."""
        weight: Tensor = self.weight
        if self.mask is not None and self.masks_gradient and is_recorded():
            weight = weight * self.mask
        weight, bias = in_precision_of(x, weight, self.bias)
        if self.reorders_columns:
            x = select_columns(x, self.inputs.flatten())
        outputs = multiply_blocks(x, weight, bias)
        if self.outputs is not None:
            outputs = select_columns(outputs, self.outputs)
        return outputs if out is None else out.copy_(outputs)

    def backward(
        self, x: Tensor, gradient: Tensor, first: bool = False
    ) -> Tensor | None:
        """Write gradients from `x` and `gradient`, see :meth:`DenseLinear.backward`.

        With `first`, the gradient with respect to `x` is not computed.
        """
        weight, bias, n_rows = self.weight, self.bias, len(x)
        n_blocks, block_outputs, block_inputs = weight.shape
        if self.outputs is not None:
            gradient = scatter_columns(gradient, self.outputs, bias.numel())
        if self.reorders_columns:
            x = select_columns(x, self.inputs.flatten())
        blocks = x.view(n_rows, n_blocks, block_inputs).transpose(0, 1)
        gradients = gradient.view(n_rows, n_blocks, block_outputs).transpose(0, 1)
        assert weight.grad is not None
        assert bias.grad is not None
        torch.bmm(gradients.mT, blocks, out=weight.grad)
        torch.sum(gradients.mT, 2, out=bias.grad)
        if first:
            return None
        if is_column_major(x):
            back = torch.bmm(weight.mT, gradients.mT).flatten(0, 1).mT
        else:
            back = torch.bmm(gradients, weight).transpose(0, 1).flatten(1)
        if self.reorders_columns:
            back = scatter_columns(back, self.inputs.flatten(), self.in_features)
        return back

    def arrange(self, x: Tensor) -> Tensor:
        """Return the columns of x (n_rows, in_features) in the order of the blocks."""
        if not self.reorders_columns:
            return x
        return x.index_select(1, self.inputs.flatten())

    def arranged(self) -> BlockLinear:
        """Return a layer with the same parameters that acts on arranged columns."""
        twin = BlockLinear.__new__(BlockLinear)
        nn.Module.__init__(twin)
        twin.in_features = self.inputs.numel()
        twin.out_features = self.out_features
        twin.weight, twin.bias = self.weight, self.bias
        order = torch.arange(self.inputs.numel(), device=self.inputs.device)
        twin.register_buffer("inputs", order.view(self.inputs.shape))
        twin.register_buffer("mask", self.mask)
        twin.register_buffer("outputs", self.outputs)
        twin.reorders_columns = False
        return twin

    def check_mask(self, mask: Tensor) -> None:
        """Raise a ValueError if :meth:`set_mask` cannot take `mask`."""
        super().check_mask(mask)
        if (mask & ~self.available()).any():
            raise ValueError(
                "mask must be False where the layer has no weight to keep."
            )

    def available(self) -> Tensor:
        """Return the weights that a mask may keep, bool of the shape of `weight`.

        Excluded are padded columns and outputs that do not exist.
        """
        inputs = self.inputs
        earlier = (inputs.unsqueeze(1) == inputs.unsqueeze(2)).tril(-1).any(2)
        exists = torch.ones_like(self.bias, dtype=torch.bool)
        if self.outputs is not None:
            exists.fill_(False).view(-1)[self.outputs] = True
        return exists.unsqueeze(2) & ~earlier.unsqueeze(1)

    def total_in(self, values: Tensor) -> Tensor:
        """Sum `values` of weights, of the shape of `weight`, into every output."""
        total = values.sum(2).flatten()
        return total if self.outputs is None else total[self.outputs]

    def total_out(self, values: Tensor) -> Tensor:
        """Sum `values` of weights, of the shape of `weight`, out of every input."""
        total, inputs = values.sum(1).flatten(), self.inputs.flatten()
        return total.new_zeros(self.in_features).index_add_(0, inputs, total)

    def between(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the weights that join `inputs` to `outputs`, see :class:`Layer`."""
        if self.outputs is not None:
            chosen = torch.zeros_like(self.bias, dtype=torch.bool).flatten()
            chosen[self.outputs] = outputs
            outputs = chosen
        outputs = outputs.view(self.bias.shape)
        return outputs.unsqueeze(2) & inputs[self.inputs].unsqueeze(1)

    def rows_into(self, outputs: Tensor) -> Tensor:
        """Return the row of ``weight.flatten(0, -2)`` into each of `outputs`, int64."""
        return outputs if self.outputs is None else self.outputs[outputs]

    def inputs_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the input at each of `rows`, see :meth:`rows_into`, and `columns`."""
        blocks = rows.div(self.weight.shape[1], rounding_mode="floor")
        return self.inputs[blocks, columns]

    def select_units(self, inputs: Tensor, outputs: Tensor) -> Layer:
        """Return a layer over some `inputs` and `outputs`, see :class:`Layer`."""
        exists = torch.arange(self.bias.numel(), device=self.bias.device)
        exists = (exists if self.outputs is None else self.outputs)[outputs]
        # Inputs that are gone are read by no kept weight; they become padding.
        number = inputs.cumsum(0) - 1
        read = inputs[self.inputs]
        first = torch.where(read, self.inputs, self.in_features).amin(1, keepdim=True)
        first = first.clamp(max=self.in_features - 1)
        columns = number[torch.where(read, self.inputs, first)].clamp(min=0)
        mask = self.mask if bool(read.all()) else self.kept()
        return BlockLinear(
            self.weight.detach().clone(),
            self.bias.detach().clone(),
            columns,
            in_features=int(inputs.sum()),
            mask=mask,
            outputs=None if len(exists) == self.bias.numel() else exists,
        )

    def _scatter(self, blocks: Tensor) -> Tensor:
        """Return values of the shape of `weight` as (out_features, in_features)."""
        dense = blocks.new_zeros(*blocks.shape[:2], self.in_features)
        # Add instead of assigning, because padding repeats an index with a zero.
        dense.scatter_add_(2, self.inputs.unsqueeze(1).expand_as(blocks), blocks)
        dense = dense.flatten(0, 1)
        return dense if self.outputs is None else dense[self.outputs]

    def dense_weight(self) -> Tensor:
        """Return the weight, (out_features, in_features), zero where pruned."""
        return self._scatter(self.weight.detach())

    def dense_mask(self) -> Tensor:
        """Return the kept weights, bool (out_features, in_features)."""
        mask = torch.ones_like(self.weight) if self.mask is None else self.mask
        return self._scatter(mask.to(torch.float32)) > 0

    def dense_bias(self) -> Tensor:
        """Return the bias of every output, (out_features,)."""
        bias = self.bias.detach().flatten()
        return bias if self.outputs is None else bias[self.outputs]

    @torch.no_grad()
    def scale_input(self, affine: Affine) -> Tensor:
        """Fold the scale of ``affine(x)`` into the weight, see :class:`Layer`."""
        mean, scale = affine.tensors(self.weight.device)
        scaled = self.weight.double() / scale[self.inputs].unsqueeze(1)
        self.weight.copy_(scaled)
        return -(scaled * mean[self.inputs].unsqueeze(1)).sum(2)

    def extra_repr(self) -> str:
        """Describe shape, blocks and density for ``print``."""
        n_blocks, block_outputs, block_inputs = self.weight.shape
        blocks = f"blocks={n_blocks} of {block_outputs}×{block_inputs}"
        density = self.n_weights / max(1, self.in_features * self.out_features)
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, {blocks}, density={density:.3g}"


def multiply_blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``x_a W_a' + b_a`` for all blocks a, row-major or column-major.

    x is (n_rows, n_blocks * block_inputs), in the order of the blocks; the result is
    (n_rows, n_blocks * block_outputs).
    """
    n_blocks, block_outputs, block_inputs = weight.shape
    blocks = x.view(x.shape[0], n_blocks, block_inputs).transpose(0, 1)
    if is_traced() or len(x) < MIN_COLUMN_MAJOR_ROWS:
        out = torch.baddbmm(bias.unsqueeze(1), blocks, weight.mT)
        return out.transpose(0, 1).flatten(1)
    if block_outputs in ROW_MAJOR_OUTPUTS and not torch.is_grad_enabled():
        # Only possible without autograd, which cannot record `out=`.
        out = x.new_empty(len(x), bias.numel())
        by_block = out.view(len(x), n_blocks, block_outputs).transpose(0, 1)
        torch.bmm(blocks, weight.mT, out=by_block)
        return out.add_(bias.flatten())
    # Adding in place avoids a copy of the bias as large as the output.
    out = torch.bmm(weight, blocks.mT).add_(bias.unsqueeze(2))
    return out.flatten(0, 1).mT


def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Select columns of x and keep its memory order."""
    if is_column_major(x):
        return x.mT.index_select(0, columns).mT
    return x.index_select(1, columns)


def scatter_columns(x: Tensor, columns: Tensor, n_columns: int) -> Tensor:
    """Return the gradient of :func:`select_columns`, (n_rows, n_columns), of one x."""
    if is_column_major(x):
        return x.new_zeros(n_columns, len(x)).index_add_(0, columns, x.mT).mT
    return x.new_zeros(len(x), n_columns).index_add_(1, columns, x)
