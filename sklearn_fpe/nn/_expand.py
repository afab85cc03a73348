"""Expand a trained network: split, prune, build."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe.nn._arrays import to_numpy
from sklearn_fpe.nn._blocks import BlockLinear
from sklearn_fpe.nn._layers import DenseLinear, Layer, MaskedLinear
from sklearn_fpe.nn._mlp import MLP
from sklearn_fpe.nn._prune import PRUNES, Plan, PruneRule, Splitter, get_prune
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import SplitRule, balanced_runs, get_split, is_shared

ALL_COLUMNS_FROM = 0.75
"""Share of read columns from which on contiguous blocks multiply all their columns."""

COPY_NOISE = 0.5
"""Noise on copies of a parent that read all its inputs, in standard deviations.

Without noise, the copies of a neuron would stay equal.
"""


def expand(
    network: MLP,
    expansion: int | Sequence[int],
    split: str | SplitRule | Callable = "shared",
    *,
    prune: str | PruneRule = "magnitude",
    budget: int | None = None,
    groups: Any = None,
    rng: np.random.Generator | int | None = None,
) -> tuple[MLP, tuple[int, ...]]:
    """Split every hidden neuron of a dense network into children, within a budget.

    The input edges of a neuron are partitioned among its `expansion` children, its
    outgoing weights are copied to each of them, its bias is divided among them. Then
    weights are pruned until `budget` parameters are left.

    Parameters
    ----------
    network : MLP
        Dense network; it is left as it is.
    expansion : int or sequence of int
        Children per neuron, one for all hidden layers or one for each. An int is
        ignored where there is no hidden layer: the network is pruned only.
    split : str, SplitRule or callable, default="shared"
        How the inputs are partitioned, see :func:`partition`. ``"groups"`` refers to
        the network's inputs; deeper layers are then split ``"shared"``.
    prune : {"magnitude", "structured", "rewired"} or PruneRule, default="magnitude"
        - ``"magnitude"``: remove the smallest weights of all layers, but leave every
          layer a share; keeps `budget` parameters exactly.
        - ``"structured"``: remove the least used inputs of a block and the weakest
          children; what is kept runs as dense matrices. Needs a split that all
          neurons of a layer share. Falls short of `budget` by less than the cheapest
          unit that could still be added.
        - ``"rewired"``: keep the outgoing weights, and of the others the largest; an
          estimator moves edges in the fine-tuning. Needs a shared split, too.
    budget : int, default=None
        Non-zero parameters, biases included. None: as many as `network` has without
        its skip connection.
    groups : array-like of shape (n_inputs,), default=None
        Group label of every input, for ``split="groups"``.
    rng : numpy.random.Generator or int, default=None
        Source of randomness.

    Returns
    -------
    expanded : MLP
        The expanded network, on the device of `network`.
    expansion : tuple of int
        Children per neuron of each hidden layer: the largest number that the inputs
        and the budget allow, up to the one asked for.

    Raises
    ------
    ValueError
        If a parameter does not fit; see :func:`check_expansion`.

    Warns
    -----
    UserWarning
        If a layer gets a smaller expansion than was asked for, or if the copies of
        the outgoing weights alone exceed the budget.

    References
    ----------
    "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn_fpe.nn import MLP, expand
    >>> dense = MLP.dense([64, 8, 10])
    >>> expanded, expansion = expand(dense, 4, rng=0)
    >>> expansion, expanded.n_nonzero == dense.n_nonzero
    ((4,), True)
    """
    kinds = [type(layer).__name__ for layer in network.maps]
    if not all(isinstance(layer, DenseLinear) for layer in network.maps):
        raise ValueError(f"network must have DenseLinear layers only, got {kinds}.")
    widths = [network.layers[0].in_features]
    widths += [layer.out_features for layer in network.layers]
    rule = get_prune(prune)
    if not rule.at_once:
        raise ValueError(
            f"prune={rule.name!r} prunes while the network trains; expand prunes at "
            f"once, for which there are "
            f"{[name for name, known in PRUNES.items() if known.at_once]}."
        )
    shape, budget = check_expansion(
        widths,
        expansion,
        split,
        prune=rule,
        budget=budget,
        groups=groups,
        skip=network.skip is not None,
    )
    warn_expansion(shape, expansion, budget)
    expanded = expand_to(
        network,
        shape,
        budget,
        get_split(split),
        prune=rule,
        groups=groups,
        rng=rng,
    )
    return expanded, shape.expansion


def expand_to(
    network: MLP,
    shape: Shape,
    budget: int,
    split: SplitRule,
    *,
    prune: PruneRule,
    groups: Any,
    rng: np.random.Generator | int | None,
) -> MLP:
    """Expand to the shape that :func:`check_expansion` returned; see :func:`expand`."""
    weights = [to_numpy(layer.weight) for layer in network.maps]
    biases = [to_numpy(layer.dense_bias()) for layer in network.layers]
    rng = np.random.default_rng(rng)
    if shape.n_parameters() == budget and set(shape.expansion) <= {1}:
        plan = Plan.keep_all(shape)
    else:
        plan = prune.plan(weights, shape, Splitter(split, groups, rng), budget)
    layers, parents = _build(weights, biases, shape, plan, rng)
    skip = None
    if shape.skip:
        skip = _matrix_layer(weights[-1], None, plan.keep[-1])
    expanded = MLP(layers, network.activation, parents, skip)
    if prune.at_once and expanded.n_nonzero > budget:
        raise ValueError(
            f"prune={prune.name!r} kept {expanded.n_nonzero} parameters, more than the "
            f"budget of {budget}."
        )
    if network.input_mean is not None and network.input_scale is not None:
        expanded.input_mean = network.input_mean.clone()
        expanded.input_scale = network.input_scale.clone()
    return expanded.to(network.device)


def check_expansion(
    widths: Sequence[int],
    expansion: int | Sequence[int],
    split: str | SplitRule | Callable,
    *,
    prune: str | PruneRule = "magnitude",
    budget: int | None = None,
    groups: Any = None,
    skip: bool = False,
) -> tuple[Shape, int]:
    """Check an expansion before any training, and resolve shape and budget.

    Parameters
    ----------
    widths : sequence of int
        Inputs, hidden widths, outputs.
    expansion, split, prune, budget, groups
        As in :func:`expand`.
    skip : bool, default=False
        Whether there is a skip connection. It does not raise the default budget.

    Returns
    -------
    shape : Shape
        The shape of the network, with the largest expansion that the inputs and the
        budget allow, up to the one asked for.
    budget : int
        The budget: that of the dense parent if None was given.

    Raises
    ------
    ValueError
        If the arguments do not fit one another; the message names the condition.

    Examples
    --------
    >>> from sklearn_fpe.nn import check_expansion
    >>> shape, budget = check_expansion([64, 8, 10], 4, "shared")
    >>> shape.expansion, budget
    ((4,), 610)
    """
    n_inputs, *hidden, n_outputs = (int(w) for w in widths)
    asked = _of_every_layer(expansion, len(hidden))
    if len(asked) != len(hidden):
        raise ValueError(
            f"expansion must be an int or have one entry per hidden layer, of which "
            f"there are {len(hidden)}, got expansion={expansion!r}."
        )
    if not all(_is_int(a) and a >= 1 for a in asked):
        raise ValueError(f"expansion must be integers >= 1, got {expansion!r}.")
    if not (budget is None or _is_int(budget)):
        raise ValueError(f"budget must be an integer or None, got {budget!r}.")
    rule, pruning = get_split(split), get_prune(prune)
    if pruning.needs_shared and rule.shared is False:
        raise ValueError(
            f'prune="{pruning.name}" needs a partition that all neurons of a layer '
            f"share, but split={rule.name!r} partitions every neuron's inputs on its "
            f'own. Use split="shared", "contiguous" or "feature", or '
            f'prune="magnitude".'
        )
    if rule.overlapping and pruning.at_once and max(asked, default=1) > 1:
        raise ValueError(
            f"split={rule.name!r} leaves it to training which child keeps which input: "
            f'it needs prune="gradual", got prune={pruning.name!r}.'
        )
    if (skip or not hidden) and not pruning.allows_skip:
        raise ValueError(
            f"prune={pruning.name!r} keeps dense blocks only, and weights from inputs "
            f'straight to outputs are none: use prune="magnitude" or "gradual".'
        )
    limit = rule.max_children(n_inputs, groups)
    expansion = tuple(int(a) for a in asked)
    shape = Shape(n_inputs, tuple(hidden), n_outputs, expansion, skip and bool(hidden))
    shape = _within_inputs(shape, limit)
    parent = shape.parent()
    budget = parent.default_budget() if budget is None else int(budget)
    # Fewer children are cheaper to keep: the least budget is that of no expansion.
    least, most = pruning.least_budget(parent), shape.n_parameters()
    if not least <= budget <= most:
        raise ValueError(
            f"budget must be in [{least}, {most}] for hidden_layer_sizes="
            f"{tuple(hidden)} with {n_inputs} inputs, {n_outputs} outputs and "
            f"expansion={shape.expansion}, got {budget}."
        )
    return _within_budget(shape, limit, budget, pruning), budget


def _of_every_layer(value: Any, n_layers: int) -> list[Any]:
    """Return a list of an entry per layer, from one for all or one for each."""
    return [value] * n_layers if np.ndim(value) == 0 else [*value]


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _within_inputs(shape: Shape, limit: int) -> Shape:
    """Lower the expansions so that no layer has more children than inputs to assign.

    `limit` is the largest number of children that the split allows the first layer.
    """
    expansion = []
    for asked, width in zip(shape.expansion, shape.hidden, strict=True):
        expansion.append(min(asked, limit))
        limit = width * expansion[-1]
    return replace(shape, expansion=tuple(expansion))


def _within_budget(shape: Shape, limit: int, budget: int, rule: PruneRule) -> Shape:
    """Lower the largest expansions until the budget can pay for the children."""
    while max(shape.expansion, default=1) > 1 and rule.least_cost(shape) > budget:
        expansion = list(shape.expansion)
        expansion[int(np.argmax(expansion))] -= 1
        fewer = _within_inputs(replace(shape, expansion=tuple(expansion)), limit)
        if rule.exact and fewer.n_parameters() < budget:
            break
        shape = fewer
    return shape


def warn_expansion(
    shape: Shape,
    asked: int | Sequence[int],
    budget: int,
    at_once: bool = True,
    stacklevel: int = 3,
) -> None:
    """Warn where an expansion is smaller than asked for, or larger than helps."""
    wanted = tuple(_of_every_layer(asked, len(shape.hidden)))
    copies = shape.n_outputs * shape.fan_ins()[-1]
    if shape.expansion != wanted:
        message = (
            f"expansion={wanted} is not possible with {shape.n_inputs} inputs, "
            f"hidden layers of {shape.hidden} and a budget of {budget} parameters; "
            f"using expansion={shape.expansion}."
        )
    elif at_once and max(shape.expansion, default=1) > 1 and copies > budget:
        message = (
            f"The outgoing weights of the children ({copies}) alone exceed the budget "
            f"({budget}), so most of them are pruned: a smaller expansion than "
            f"{shape.expansion[-1]} may serve better."
        )
    else:
        return
    warnings.warn(message, UserWarning, stacklevel=stacklevel)


def _build(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    shape: Shape,
    plan: Plan,
    rng: np.random.Generator,
) -> tuple[list[Layer], list[Tensor]]:
    """Make the fastest exact layer of every matrix, over living units."""
    layers: list[Layer] = []
    parents = []
    inputs = np.arange(shape.n_inputs)
    outgoing = 1.0
    for level, units in enumerate(plan.alive):
        n_children, n_parents = shape.expansion[level], shape.hidden[level]
        children = plan.children[level][:, inputs]
        weight = outgoing * weights[level][:, inputs % weights[level].shape[1]]
        bias = biases[level]
        # Children that read all inputs do what the parent does, so they share its
        # outputs; those that partition the inputs share its bias.
        overlap = n_children > 1 and bool((children < 0).all())
        layers.append(
            _copies(weight, bias, n_children, rng)
            if overlap
            else _hidden_layer(
                weight,
                bias / n_children,
                children.clip(min=0),
                plan.keep[level][:, inputs],
                units.reshape(n_children, n_parents),
                1 if plan.siblings is None else plan.siblings[level],
            )
        )
        outgoing = 1 / n_children if overlap else 1.0
        parents.append(torch.from_numpy(np.flatnonzero(units) % n_parents))
        inputs = np.flatnonzero(units)
    weight = outgoing * weights[len(plan.alive)][:, inputs % shape.widths[-2]]
    keep = plan.keep[len(plan.alive)]
    layers.append(_matrix_layer(weight, biases[-1], keep[:, inputs]))
    return layers, parents


def _copies(
    weight: np.ndarray, bias: np.ndarray, n_children: int, rng: np.random.Generator
) -> DenseLinear:
    """Return children that read all inputs: copies of their parents with noise."""
    wide, scale = np.tile(weight, (n_children, 1)), COPY_NOISE * weight.std()
    noise = scale * rng.standard_normal(wide.shape)
    values = (wide + noise).astype(weight.dtype)
    return DenseLinear(
        torch.from_numpy(values), torch.from_numpy(np.tile(bias, n_children))
    )


def _hidden_layer(
    weight: np.ndarray,
    bias: np.ndarray,
    children: np.ndarray,
    keep: np.ndarray,
    alive: np.ndarray,
    siblings: int,
) -> Layer:
    """Run a shared partition as dense blocks, an independent one as a masked matrix."""
    block, parent = np.nonzero(alive)
    n_blocks = len(alive) // siblings
    # A single child is a block of its own where inputs were dropped.
    if is_shared(children) and (n_blocks > 1 or not keep.any(axis=0).all()):
        return _block_layer(weight, bias, children[0], keep, alive, siblings)
    kept = keep[parent] & (children[parent] == block[:, None])
    return _matrix_layer(weight[parent], bias[parent], kept)


def _matrix_layer(
    weight: np.ndarray, bias: np.ndarray | None, kept: np.ndarray
) -> Layer:
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
    """Build padded blocks of a shared partition.

    Where the blocks are runs of equal length and read most of their columns, they
    hold zeros for the others, because that costs less than selecting columns.
    """
    blocks = []
    n_parents = alive.shape[1]
    groups = alive.reshape(-1, siblings * n_parents)
    all_columns = (
        len(labels) % len(groups) == 0
        and alive.any(axis=1).all()
        and (labels == balanced_runs(len(labels), len(alive))).all()
        and keep.any(axis=0).mean() >= ALL_COLUMNS_FROM
    )
    for a, units in enumerate(groups):
        rows = np.flatnonzero(units)
        if len(rows):
            of_block = np.flatnonzero(labels // siblings == a)
            child, parent = np.divmod(rows, n_parents)
            kept = keep[np.ix_(parent, of_block)]
            if siblings > 1:
                own = labels[of_block] == (a * siblings + child)[:, None]
                kept = kept & own
            read = kept.any(axis=0) | all_columns | (siblings > 1)
            blocks.append((parent, of_block[read], kept[:, read]))
    n_in = max(len(columns) for _, columns, _ in blocks)
    n_out = max(len(parent) for parent, _, _ in blocks)
    shape = (len(blocks), n_out, n_in)
    values = np.zeros(shape, dtype=weight.dtype)
    mask = np.zeros(shape, dtype=bool)
    inputs = np.empty((len(blocks), n_in), dtype=np.int64)
    biases = np.zeros((len(blocks), n_out), dtype=bias.dtype)
    exists = np.zeros((len(blocks), n_out), dtype=bool)
    for a, (parent, columns, kept) in enumerate(blocks):
        place = np.s_[a, : len(parent), : len(columns)]
        values[place] = weight[np.ix_(parent, columns)]
        mask[place] = kept
        # Padding reads a column of the block again, times zero.
        inputs[a] = columns[0] if len(columns) else 0
        inputs[a, : len(columns)] = columns
        biases[a, : len(parent)] = bias[parent]
        exists[a, : len(parent)] = True
    return BlockLinear(
        torch.from_numpy(values),
        torch.from_numpy(biases),
        torch.from_numpy(inputs),
        in_features=len(labels),
        mask=None if mask.all() else torch.from_numpy(mask),
        outputs=None if exists.all() else torch.from_numpy(np.flatnonzero(exists)),
    )
