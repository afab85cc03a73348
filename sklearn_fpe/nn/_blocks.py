"""The product of all blocks of a layer, and the order of activations in memory.

Blocks compute activations unit by unit: the result is (n_rows, n_units) like any other,
but lies in memory as (n_units, n_rows). So the outputs of all blocks are one matrix
without being copied together, and the product runs along the rows, however few outputs
a block has. The layers after them take their input as it lies.
"""

import torch

FEW_ROWS = 16
"""Rows below which blocks compute row by row: the product is then the faster one."""


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
        From :data:`FEW_ROWS` rows on it lies in memory unit by unit.
    """
    n_blocks, _, block_inputs = weight.shape
    blocks = x.unflatten(1, (n_blocks, block_inputs)).transpose(0, 1)
    if len(x) < FEW_ROWS:
        out = torch.baddbmm(bias.unsqueeze(1), blocks, weight.mT)
        return out.transpose(0, 1).flatten(1)
    # Adding in place spares a copy of the bias as large as the output.
    out = torch.bmm(weight, blocks.mT).add_(bias.unsqueeze(2))
    return out.flatten(0, 1).mT


def by_unit(x):
    """Tell whether x (n_rows, n_units) lies in memory unit by unit."""
    return x.stride(0) == 1 and len(x) >= FEW_ROWS


def select_columns(x, columns):
    """Select columns of x, and keep the order in which it lies in memory."""
    if by_unit(x):
        return x.mT.index_select(0, columns).mT
    return x.index_select(1, columns)
