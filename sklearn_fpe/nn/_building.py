"""Execution: make the fastest exact layers of the units and edges that a plan keeps.

Where all neurons of a layer share a partition, its inputs fall into blocks, each read
by one child of every neuron, so the layer runs as dense blocks. Any other layer runs as
one matrix, masked where edges were pruned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe.nn._blocks import BlockLinear
from sklearn_fpe.nn._layers import DenseLinear, Layer, MaskedLinear
from sklearn_fpe.nn._prune import Plan
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import balanced_runs, is_shared

ALL_COLUMNS_FROM = 0.75
"""Share of read columns from which on contiguous blocks multiply all their columns."""

COPY_NOISE = 0.5
"""Noise on copies of a parent that read all its inputs, in standard deviations.

Without noise, the copies of a neuron would stay equal.
"""


def build_layers(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    shape: Shape,
    plan: Plan,
    rng: np.random.Generator,
) -> tuple[list[Layer], list[Tensor]]:
    """Make the layers of an expanded network, and the parent of every living unit.

    Weights and biases are those of the dense parent. Outgoing weights are copied to the
    children, and a bias is divided among them, so that the children together compute
    what their parent computed before its activation.
    """
    layers: list[Layer] = []
    parents = []
    inputs = np.arange(shape.n_inputs)
    outgoing = 1.0
    for level, units in enumerate(plan.alive):
        n_children, n_parents = shape.expansion[level], shape.hidden[level]
        children, keep = plan.children[level][:, inputs], plan.keep[level][:, inputs]
        weight = outgoing * weights[level][:, inputs % weights[level].shape[1]]
        bias, alive = biases[level] / n_children, units.reshape(n_children, n_parents)
        siblings = 1 if plan.siblings is None else plan.siblings[level]
        overlap = n_children > 1 and (children < 0).all()
        outgoing = 1 / n_children if overlap else 1.0
        children = children.clip(min=0)
        # A single child is a block of its own where inputs were dropped.
        in_blocks = n_children > siblings or not keep.any(axis=0).all()
        if overlap:
            # Children that read all inputs do what the parent does, so they share its
            # outputs instead of its bias.
            layers.append(_copies(weight, biases[level], n_children, rng))
        elif in_blocks and is_shared(children):
            row = children[0]
            layers.append(_block_layer(weight, bias, row, keep, alive, siblings))
        else:
            child, parent = np.nonzero(alive)
            kept = keep[parent] & (children[parent] == child[:, None])
            layers.append(matrix_layer(weight[parent], bias[parent], kept))
        inputs = np.flatnonzero(units)
        parents.append(torch.from_numpy(inputs % n_parents))
    last = len(plan.alive)
    weight = outgoing * weights[last][:, inputs % shape.widths[-2]]
    layers.append(matrix_layer(weight, biases[last], plan.keep[last][:, inputs]))
    return layers, parents


def _copies(
    weight: np.ndarray, bias: np.ndarray, n_children: int, rng: np.random.Generator
) -> DenseLinear:
    """Return children that read all inputs: copies of their parents with noise."""
    wide = np.tile(weight, (n_children, 1))
    noise = COPY_NOISE * weight.std() * rng.standard_normal(wide.shape)
    values = torch.from_numpy((wide + noise).astype(weight.dtype))
    return DenseLinear(values, torch.from_numpy(np.tile(bias, n_children)))


def matrix_layer(
    weight: np.ndarray, bias: np.ndarray | None, kept: np.ndarray
) -> Layer:
    """Make a layer of one matrix, masked if not all of its weights are kept."""
    # In row-major order, which a pickle restores, so that results stay the same bits.
    values = torch.from_numpy(np.array(weight, order="C"))
    biases = None if bias is None else torch.from_numpy(bias.copy())
    if kept.all():
        return DenseLinear(values, biases)
    return MaskedLinear(values, biases, torch.from_numpy(np.array(kept, order="C")))


def _block_layer(
    weight: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    keep: np.ndarray,
    alive: np.ndarray,
    siblings: int,
) -> BlockLinear:
    """Make padded blocks of a shared partition, `labels` (n_inputs,).

    Where the blocks are runs of equal length and read most of their columns, they
    hold zeros for the others, because that costs less than selecting columns.
    """
    n_parents = alive.shape[1]
    groups = alive.reshape(-1, siblings * n_parents)
    all_columns = (
        len(labels) % len(groups) == 0
        and alive.any(axis=1).all()
        and (labels == balanced_runs(len(labels), len(alive))).all()
        and keep.any(axis=0).mean() >= ALL_COLUMNS_FROM
    )
    blocks = []
    for a, units in enumerate(groups):
        if units.any():
            child, parent = np.divmod(np.flatnonzero(units), n_parents)
            columns = np.flatnonzero(labels // siblings == a)
            own = labels[columns] == (a * siblings + child)[:, None]
            kept = keep[np.ix_(parent, columns)] & own
            read = kept.any(axis=0) | all_columns | (siblings > 1)
            blocks.append((parent, columns[read], kept[:, read]))
    n_out, n_in = np.max([kept.shape for _, _, kept in blocks], axis=0)
    values = np.zeros((len(blocks), n_out, n_in), dtype=weight.dtype)
    mask = np.zeros(values.shape, dtype=bool)
    inputs = np.empty((len(blocks), n_in), dtype=np.int64)
    biases = np.zeros((len(blocks), n_out), dtype=bias.dtype)
    exists = np.zeros(biases.shape, dtype=bool)
    for a, (parent, columns, kept) in enumerate(blocks):
        rows, read = slice(len(parent)), slice(len(columns))
        values[a, rows, read] = weight[np.ix_(parent, columns)]
        mask[a, rows, read] = kept
        # Padding reads a column of the block again, times zero.
        inputs[a] = columns[0] if len(columns) else 0
        inputs[a, read] = columns
        biases[a, rows] = bias[parent]
        exists[a, rows] = True
    return BlockLinear(
        torch.from_numpy(values),
        torch.from_numpy(biases),
        torch.from_numpy(inputs),
        in_features=len(labels),
        mask=None if mask.all() else torch.from_numpy(mask),
        outputs=None if exists.all() else torch.from_numpy(np.flatnonzero(exists)),
    )
