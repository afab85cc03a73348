"""Batched matrix products over the blocks of a layer.

Block outputs are written into one column-major matrix of shape (n_rows, n_units),
because that avoids concatenating them. With few rows, or with narrow blocks outside of
training, the products write a row-major matrix instead, because that is faster. Later
layers accept either memory order.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_COLUMN_MAJOR_ROWS = 16
"""Rows below which the products write row-major outputs."""

ROW_MAJOR_OUTPUTS = range(12, 65)
"""Outputs per block for which the products write row-major outputs in prediction."""


def is_traced() -> bool:
    """Tell whether torch records the computation for any number of rows.

    Choices that depend on the number of rows or on strides must not be made then.
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


def multiply_blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``x_a W_a' + b_a`` for all blocks a.

    Parameters
    ----------
    x : tensor of shape (n_rows, n_blocks * block_inputs)
        Input, in the order of the blocks.
    weight : tensor of shape (n_blocks, block_outputs, block_inputs)
        Blocks.
    bias : tensor of shape (n_blocks, block_outputs)
        Biases.

    Returns
    -------
    outputs : tensor of shape (n_rows, n_blocks * block_outputs)
        Row-major or column-major.
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
    """Add the columns of x to those of zeros (n_rows, n_columns); keep the order.

    The gradient of :func:`select_columns`.
    """
    if is_column_major(x):
        return x.new_zeros(n_columns, len(x)).index_add_(0, columns, x.mT).mT
    return x.new_zeros(len(x), n_columns).index_add_(1, columns, x)


def block_gradients(
    x: Tensor, gradient: Tensor, weight: Tensor, out: tuple[Tensor, Tensor]
) -> None:
    """Write the gradients of :func:`multiply_blocks` for weight and bias.

    Parameters
    ----------
    x, weight
        As in :func:`multiply_blocks`.
    gradient : tensor of shape (n_rows, n_blocks * block_outputs)
        Gradient of the loss with respect to the outputs.
    out : (tensor, tensor)
        Where to write, of the shapes of weight and bias.
    """
    n_blocks, block_outputs, block_inputs = weight.shape
    blocks = x.view(len(x), n_blocks, block_inputs).transpose(0, 1)
    gradients = gradient.view(len(x), n_blocks, block_outputs).permute(1, 2, 0)
    torch.bmm(gradients, blocks, out=out[0])
    torch.sum(gradients, 2, out=out[1])


def block_input_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient with respect to x, in the memory order of x."""
    gradients = gradient.view(len(x), *weight.shape[:2]).transpose(0, 1)
    if is_column_major(x):
        return torch.bmm(weight.mT, gradients.mT).flatten(0, 1).mT
    return torch.bmm(gradients, weight).transpose(0, 1).flatten(1)
