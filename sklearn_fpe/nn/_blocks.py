"""The products of all blocks of a layer, and the order of activations in memory.

The outputs of all blocks are to be one matrix without being copied together. So blocks
compute activations unit by unit: the result is (n_rows, n_units) like any other, but
lies in memory as (n_units, n_rows). Only where there are few rows, or where blocks are
narrow and autograd does not record, they compute row by row. The layers after them take
their input as it lies.
"""

import torch

FEW_ROWS = 16
"""Rows below which blocks compute row by row: the product is then the faster one."""

NARROW = range(12, 65)
"""Outputs of a block for which it computes row by row, however many rows there are.

The products then write into one matrix, which they cannot where autograd records.
"""


def multiply_blocks(x, weight, bias):
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
        It may lie in memory unit by unit, see :func:`by_unit`.
    """
    n_blocks, block_outputs, block_inputs = weight.shape
    blocks = x.view(len(x), n_blocks, block_inputs).transpose(0, 1)
    if len(x) < FEW_ROWS:
        out = torch.baddbmm(bias.unsqueeze(1), blocks, weight.mT)
        return out.transpose(0, 1).flatten(1)
    if block_outputs in NARROW and not torch.is_grad_enabled():
        out = x.new_empty(len(x), bias.numel())
        by_block = out.view(len(x), n_blocks, block_outputs).transpose(0, 1)
        torch.bmm(blocks, weight.mT, out=by_block)
        return out.add_(bias.flatten())
    # Adding in place spares a copy of the bias as large as the output.
    out = torch.bmm(weight, blocks.mT).add_(bias.unsqueeze(2))
    return out.flatten(0, 1).mT


def by_unit(x):
    """Tell whether x (n_rows, n_units) lies in memory unit by unit."""
    return x.ndim == 2 and x.stride(0) == 1 and len(x) >= FEW_ROWS


def select_columns(x, columns):
    """Select columns of x, and keep the order in which it lies in memory."""
    if by_unit(x):
        return x.mT.index_select(0, columns).mT
    return x.index_select(1, columns)


def scatter_columns(x, columns, n_columns):
    """Add the columns of x to those of zeros (n_rows, n_columns), and keep its order.

    The gradient of :func:`select_columns`.
    """
    if by_unit(x):
        return x.new_zeros(n_columns, len(x)).index_add_(0, columns, x.mT).mT
    return x.new_zeros(len(x), n_columns).index_add_(1, columns, x)


def block_gradients(x, gradient, weight, out):
    """Write the gradient of :func:`multiply_blocks` with respect to weight and bias.

    Parameters
    ----------
    x, weight
        As there.
    gradient : tensor of shape (n_rows, n_blocks * block_outputs)
        Gradient with respect to the outputs.
    out : (tensor, tensor)
        Where to write, of the shapes of weight and bias.
    """
    n_blocks, block_outputs, block_inputs = weight.shape
    blocks = x.view(len(x), n_blocks, block_inputs).transpose(0, 1)
    gradients = gradient.view(len(x), n_blocks, block_outputs).permute(1, 2, 0)
    torch.bmm(gradients, blocks, out=out[0])
    torch.sum(gradients, 2, out=out[1])


def block_input_gradient(x, gradient, weight):
    """Return the gradient with respect to x, in memory like x."""
    gradients = gradient.view(len(x), *weight.shape[:2]).transpose(0, 1)
    if by_unit(x):
        return torch.bmm(weight.mT, gradients.mT).flatten(0, 1).mT
    return torch.bmm(gradients, weight).transpose(0, 1).flatten(1)
