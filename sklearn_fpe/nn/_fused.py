"""Hidden blocks and output layer in one pass, block by block, for prediction.

The children of an expanded layer are several times the parents, and on a CPU it is
their activations, not the products, that cost. Where they outgrow the cache, each block
is taken through to the output before the next one is begun, in the same scratch memory.
Training needs all activations for the gradient, and gains nothing.
"""

import torch

FUSE_ABOVE = 2**19
"""Bytes of hidden activations above which blocks are run one by one.

Below, more calls cost more than less traffic saves.
"""


def worth_fusing(x, weight):
    """Tell whether block by block is the faster way: from shapes, if no gradient."""
    n_blocks, _, block_outputs = weight.shape
    size = len(x) * n_blocks * block_outputs * x.element_size()
    on_cpu = x.device.type == "cpu" and not torch.is_grad_enabled()
    return on_cpu and n_blocks > 1 and size > FUSE_ABOVE


def fused_blocks(x, weight, bias, activate, output_weight, output_bias):
    """Compute ``activate(blocks of x) output_weight' + output_bias``.

    Parameters
    ----------
    x : tensor of shape (n_rows, n_blocks * block_inputs)
        Input, in the order of the blocks.
    weight : tensor of shape (n_blocks, block_inputs, block_outputs)
        Hidden blocks.
    bias : tensor of shape (n_blocks, block_outputs)
        Hidden biases.
    activate : callable
        Activation.
    output_weight : tensor of shape (n_outputs, n_blocks * block_outputs)
        Output layer.
    output_bias : tensor of shape (n_outputs,)
        Output biases.

    Returns
    -------
    outputs : tensor of shape (n_rows, n_outputs)
    """
    n_blocks, n_in, n_out = weight.shape
    outputs = output_bias.repeat(len(x), 1)
    hidden = x.new_empty(len(x), n_out)
    for a in range(n_blocks):
        inputs = x[:, a * n_in : (a + 1) * n_in]
        torch.addmm(bias[a], inputs, weight[a], out=hidden)
        outputs.addmm_(
            activate(hidden), output_weight[:, a * n_out : (a + 1) * n_out].T
        )
    return outputs
