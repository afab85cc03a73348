"""Expand a trained network: split, prune, build."""

import warnings
from dataclasses import replace
from numbers import Integral

import numpy as np
import torch

from sklearn_fpe.nn import _prune
from sklearn_fpe.nn._layers import BlockLinear, DenseLinear, MaskedLinear
from sklearn_fpe.nn._mlp import MLP
from sklearn_fpe.nn._partition import deal, is_shared, max_children, partition

WHOLE_FROM = 0.75
"""Share of read columns from which on runs of columns are multiplied whole."""


def expand(
    network,
    expansion,
    split="shared",
    *,
    prune="magnitude",
    budget=None,
    groups=None,
    rng=None,
):
    """Split every hidden neuron of a dense network into children, within a budget.

    The input edges of a neuron are partitioned among its `expansion` children, its
    outgoing weights are copied to each of them, its bias is divided among them. Then
    weights are pruned until the parameters number `budget`.

    Parameters
    ----------
    network : MLP
        Dense network; it is left as it is.
    expansion : int or sequence of int
        Children per neuron, one for all hidden layers or one for each.
    split : {"random", "shared", "contiguous", "feature", "groups"} or callable
        How the inputs are dealt, see :func:`partition`. ``"groups"`` speaks of the
        network's inputs; deeper layers are then split ``"shared"``.
    prune : {"magnitude", "structured"}, default="magnitude"
        - ``"magnitude"``: the smallest weights of all layers go, no layer starves;
          the parameters number `budget` exactly.
        - ``"structured"``: the least used inputs of a block and the weakest children
          go; what is kept runs as dense matrices. Needs a split that all neurons of a
          layer share. Falls short of `budget` by less than the cheapest unit that
          could still be added.
    budget : int, default=None
        Non-zero parameters, biases included. None: as many as `network` has.
    groups : array-like of shape (n_inputs,), default=None
        Group label of every input, for ``split="groups"``.
    rng : numpy.random.Generator or int, default=None
        Source of randomness.

    Returns
    -------
    expanded : MLP
        The expanded network, on the device of `network`.
    expansion : tuple of int
        Children per neuron of each hidden layer as it was done: the largest that the
        inputs and the budget allow, up to the one asked for.

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
    kinds = [type(layer).__name__ for layer in network.layers]
    if not all(isinstance(layer, DenseLinear) for layer in network.layers):
        raise ValueError(f"network must have DenseLinear layers only, got {kinds}.")
    widths = [network.layers[0].in_features]
    widths += [layer.out_features for layer in network.layers]
    sizes, budget = check_expansion(
        widths, expansion, split, prune=prune, budget=budget, groups=groups
    )
    warn_expansion(sizes, expansion, budget)
    expanded = expand_to(
        network, sizes, budget, split, prune=prune, groups=groups, rng=rng
    )
    return expanded, sizes.expansion


def expand_to(network, sizes, budget, split, *, prune, groups, rng):
    """Expand to what :func:`check_expansion` settled; see :func:`expand`."""
    weights = [_numpy(layer.weight) for layer in network.layers]
    biases = [_numpy(layer.bias) for layer in network.layers]
    rng = np.random.default_rng(rng)
    if sizes.n_parameters() == budget and set(sizes.expansion) == {1}:
        parts = _whole(sizes)
    elif prune == "structured":
        parts = _structured(weights, sizes, split, budget, rng)
    else:
        parts = _magnitude(weights, sizes, split, groups, budget, rng)
    device = network.layers[0].weight.device
    layers, parents = _build(weights, biases, sizes, *parts)
    expanded = MLP(layers, network.activation, parents)
    expanded.center = None if network.center is None else network.center.clone()
    return expanded.to(device)


def check_expansion(
    widths, expansion, split, *, prune="magnitude", budget=None, groups=None
):
    """Check an expansion before any training, and settle what can be had.

    Parameters
    ----------
    widths : sequence of int
        Inputs, hidden widths, outputs.
    expansion, split, prune, budget, groups
        As in :func:`expand`.

    Returns
    -------
    sizes : Sizes
        The shape of the network, with the expansion that can be had.
    budget : int
        The budget.

    Raises
    ------
    ValueError
        If the arguments do not fit one another; the message says what must hold.

    Examples
    --------
    >>> from sklearn_fpe.nn import check_expansion
    >>> sizes, budget = check_expansion([64, 8, 10], 4, "shared")
    >>> sizes.expansion, budget
    ((4,), 610)
    """
    n_inputs, *hidden, n_outputs = (int(w) for w in widths)
    asked = [expansion] * len(hidden) if np.ndim(expansion) == 0 else [*expansion]
    if not hidden or len(asked) != len(hidden):
        raise ValueError(
            f"expansion must be an int or have one entry per hidden layer, of which "
            f"there must be one or more; there are {len(hidden)} hidden layers, got "
            f"expansion={expansion!r}."
        )
    if not all(_is_int(a) and a >= 1 for a in asked):
        raise ValueError(f"expansion must be integers >= 1, got {expansion!r}.")
    if not (budget is None or _is_int(budget)):
        raise ValueError(f"budget must be an integer or None, got {budget!r}.")
    if prune not in _prune.PRUNES:
        raise ValueError(f"prune must be one of {_prune.PRUNES}, got {prune!r}.")
    if prune == "structured" and split in ("random", "groups"):
        raise ValueError(
            f'prune="structured" needs a partition that all neurons of a layer share, '
            f"but split={split!r} deals every neuron's inputs on its own. Use "
            f'split="shared", "contiguous" or "feature", or prune="magnitude".'
        )
    limit = max_children(n_inputs, split, groups)
    sizes = _prune.Sizes(
        n_inputs, tuple(hidden), n_outputs, tuple(int(a) for a in asked)
    )
    sizes = _within_inputs(sizes, limit)
    dense = replace(sizes, expansion=(1,) * len(hidden))
    budget = dense.n_parameters() if budget is None else int(budget)
    # Fewer children are cheaper to keep: the least budget is that of no expansion.
    least, _ = _prune.budget_range(dense, prune)
    _, most = _prune.budget_range(sizes, prune)
    if not least <= budget <= most:
        raise ValueError(
            f"budget must be in [{least}, {most}] for hidden_layer_sizes="
            f"{tuple(hidden)} with {n_inputs} inputs, {n_outputs} outputs and "
            f"expansion={sizes.expansion}, got {budget}."
        )
    return _within_budget(sizes, limit, budget, prune), budget


def _is_int(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _within_inputs(sizes, limit):
    """Lower the expansions so that no layer has more children than inputs to deal.

    `limit` is what the split can deal the network's inputs to.
    """
    expansion = []
    for asked, width in zip(sizes.expansion, sizes.hidden, strict=True):
        expansion.append(min(asked, limit))
        limit = width * expansion[-1]
    return replace(sizes, expansion=tuple(expansion))


def _within_budget(sizes, limit, budget, prune):
    """Lower the largest expansions until the budget can pay for the children."""
    while max(sizes.expansion) > 1 and _least_cost(sizes, prune) > budget:
        expansion = list(sizes.expansion)
        expansion[int(np.argmax(expansion))] -= 1
        fewer = _within_inputs(replace(sizes, expansion=tuple(expansion)), limit)
        if prune == "magnitude" and fewer.n_parameters() < budget:
            break
        sizes = fewer
    return sizes


def _least_cost(sizes, prune):
    """Return the least budget on which all children that the rule keeps can live."""
    if prune == "structured":
        return _prune.budget_range(sizes, prune)[0]
    # A bias, an edge in and an edge out for every child.
    return sizes.n_outputs + 3 * sum(sizes.fan_ins()[1:])


def warn_expansion(sizes, asked, budget, stacklevel=3):
    """Warn where an expansion is less than was asked for, or more than helps."""
    if np.ndim(asked) == 0:
        asked = [asked] * len(sizes.hidden)
    copies = sizes.n_outputs * sizes.fan_ins()[-1]
    if sizes.expansion != tuple(asked):
        message = (
            f"expansion={tuple(asked)} cannot be had with {sizes.n_inputs} inputs, "
            f"hidden layers of {sizes.hidden} and a budget of {budget} parameters; "
            f"using expansion={sizes.expansion}."
        )
    elif max(sizes.expansion, default=1) > 1 and copies > budget:
        message = (
            f"The outgoing weights of the children ({copies}) alone exceed the budget "
            f"({budget}), so most of them are pruned: a smaller expansion than "
            f"{sizes.expansion[-1]} may serve better."
        )
    else:
        return
    warnings.warn(message, UserWarning, stacklevel=stacklevel)


def _numpy(tensor):
    return tensor.detach().cpu().numpy()


def _layer_split(split, level):
    """Group labels speak of the network's input."""
    return "shared" if level and isinstance(split, str) and split == "groups" else split


def _whole(sizes):
    """Keep everything of a network that is not expanded."""
    fan_ins = sizes.fan_ins()
    shapes = list(zip([*sizes.hidden, sizes.n_outputs], fan_ins, strict=True))
    children = [np.broadcast_to(np.intp(0), shape) for shape in shapes[:-1]]
    alive = [np.ones(n, dtype=bool) for n in fan_ins[1:]]
    return children, alive, [np.broadcast_to(True, shape) for shape in shapes]


def _magnitude(weights, sizes, split, groups, budget, rng):
    """Split all layers, then prune the smallest weights of all."""
    copies = (1, *sizes.expansion)
    wide = [np.tile(w, (1, c)) for w, c in zip(weights, copies, strict=True)]
    children = [
        partition(w, a, _layer_split(split, level), groups=groups, rng=rng)
        for level, (w, a) in enumerate(zip(wide[:-1], sizes.expansion, strict=True))
    ]
    return children, *_prune.prune_magnitude(wide, children, sizes, budget)


def _structured(weights, sizes, split, budget, rng):
    """Split and prune layer by layer: a layer's living units are dealt to blocks.

    Masks are broadcast, not stored: a block keeps all that its inputs and its
    children span.
    """
    contiguous = isinstance(split, str) and split == "contiguous"
    input_share = _prune.INPUT_SHARE["contiguous" if contiguous else "other"]
    n_reads, n_parents = _prune.structured_sizes(sizes, budget, input_share)
    spare = budget - _prune.structured_count(sizes, n_reads, n_parents)
    fan_outs = (*n_parents[1:], sizes.n_outputs)
    children, alive, keep = [], [], []
    inputs = np.arange(sizes.n_inputs)
    n_units = sizes.n_inputs
    for level, n_children in enumerate(sizes.expansion):
        weight = weights[level][:, inputs % weights[level].shape[1]]
        living = partition(weight, n_children, _layer_split(split, level), rng=rng)
        if not is_shared(living):
            raise ValueError(
                'prune="structured" needs a partition that all neurons of a layer '
                "share: a callable split must return equal rows."
            )
        energy = (weight * np.linalg.norm(weights[level + 1], axis=0)[:, None]) ** 2
        labels = living[0]
        if len(np.unique(labels)) < n_children:
            raise ValueError(
                'prune="structured" needs inputs for every child: a callable split '
                f"must return all children in [0, {n_children}), got "
                f"{np.unique(labels).tolist()}."
            )
        reads = np.ones(len(inputs), dtype=bool)
        if level == 0:
            reads = _prune.choose_inputs(energy, labels, n_reads)
        units, spare = _prune.choose_units(
            energy[:, reads],
            labels[reads],
            n_children,
            n_parents[level],
            spare,
            unit_cost=1 + fan_outs[level],
        )
        row = np.zeros(n_units, dtype=np.intp)
        row[inputs] = labels
        read = np.zeros(n_units, dtype=bool)
        read[inputs] = reads
        shape = (sizes.hidden[level], n_units)
        children.append(np.broadcast_to(row, shape))
        keep.append(np.broadcast_to(read, shape))
        alive.append(units)
        inputs, n_units = np.flatnonzero(units), len(units)
    keep.append(np.broadcast_to(True, (sizes.n_outputs, n_units)))
    return children, alive, keep


def _build(weights, biases, sizes, children, alive, keep):
    """Make the fastest exact layer of every matrix, over living units."""
    layers, parents = [], []
    inputs = np.arange(sizes.n_inputs)
    for level, units in enumerate(alive):
        parent = np.flatnonzero(units) % sizes.hidden[level]
        layers.append(
            _hidden_layer(
                weights[level][:, inputs % weights[level].shape[1]],
                biases[level] / sizes.expansion[level],
                children[level][:, inputs],
                keep[level][:, inputs],
                units.reshape(sizes.expansion[level], sizes.hidden[level]),
            )
        )
        parents.append(torch.from_numpy(parent))
        inputs = np.flatnonzero(units)
    weight = weights[-1][:, inputs % weights[-1].shape[1]]
    layers.append(_matrix_layer(weight, biases[-1], keep[-1][:, inputs]))
    return layers, parents


def _hidden_layer(weight, bias, children, keep, alive):
    """Run a shared partition as dense blocks, an independent one as a masked matrix."""
    block, parent = np.nonzero(alive)
    # A single child is a block of its own where inputs were dropped.
    if is_shared(children) and (len(alive) > 1 or not keep.any(axis=0).all()):
        return _block_layer(weight, bias, children[0], keep, alive)
    kept = keep[parent] & (children[parent] == block[:, None])
    return _matrix_layer(weight[parent], bias[parent], kept)


def _matrix_layer(weight, bias, kept):
    weight, bias = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
    if not kept.all():
        return MaskedLinear(weight, bias, torch.from_numpy(np.array(kept)))
    layer = torch.nn.utils.skip_init(DenseLinear, *reversed(weight.shape))
    layer.weight = torch.nn.Parameter(weight)
    layer.bias = torch.nn.Parameter(bias)
    return layer


def _block_layer(weight, bias, labels, keep, alive):
    """Lay a shared partition out as padded blocks.

    Where the blocks are runs of equal length, they keep columns that they do not read
    as zeros, if these are few: that costs less than to gather the others.
    """
    blocks = []
    whole = (
        len(labels) % len(alive) == 0
        and alive.any(axis=1).all()
        and (labels == deal(len(labels), len(alive))).all()
        and keep.any(axis=0).mean() >= WHOLE_FROM
    )
    for a, units in enumerate(alive):
        rows = np.flatnonzero(units)
        if len(rows):
            of_block = np.flatnonzero(labels == a)
            read = keep[np.ix_(rows, of_block)].any(axis=0) | whole
            blocks.append((rows, of_block[read]))
    n_in = max(len(columns) for _, columns in blocks)
    n_out = max(len(rows) for rows, _ in blocks)
    shape = (len(blocks), n_out, n_in)
    values = np.zeros(shape, dtype=weight.dtype)
    mask = np.zeros(shape, dtype=bool)
    inputs = np.empty((len(blocks), n_in), dtype=np.int64)
    biases = np.zeros((len(blocks), n_out), dtype=bias.dtype)
    exists = np.zeros((len(blocks), n_out), dtype=bool)
    for a, (rows, columns) in enumerate(blocks):
        place = np.s_[a, : len(rows), : len(columns)]
        values[place] = weight[np.ix_(rows, columns)]
        mask[place] = keep[np.ix_(rows, columns)]
        # Padding reads a column of the block again, times zero.
        inputs[a] = columns[0] if len(columns) else 0
        inputs[a, : len(columns)] = columns
        biases[a, : len(rows)] = bias[rows]
        exists[a, : len(rows)] = True
    return BlockLinear(
        torch.from_numpy(values),
        torch.from_numpy(biases),
        torch.from_numpy(inputs),
        in_features=len(labels),
        mask=None if mask.all() else torch.from_numpy(mask),
        outputs=None if exists.all() else torch.from_numpy(np.flatnonzero(exists)),
    )
