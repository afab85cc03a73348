"""Expand a dense network: split its neurons, prune to a budget, build its layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from sklearn_fpe.nn._arrays import to_numpy
from sklearn_fpe.nn._building import build_layers, matrix_layer
from sklearn_fpe.nn._layers import DenseLinear
from sklearn_fpe.nn._mlp import MLP
from sklearn_fpe.nn._prune import PRUNES, Plan, PruneRule, Splitter, get_prune
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import SplitRule, get_split


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

    The input edges of a neuron are partitioned among its children, its outgoing weights
    are copied to each of them, and its bias is divided among them. Then weights are
    pruned until `budget` parameters are left.

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
          children; the rest runs as dense matrices. Needs a split that all neurons
          share. Falls short of `budget` by less than the cheapest unit left out.
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
        Children per neuron of each hidden layer, as many as the inputs and the budget
        allow, up to the number asked for.

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
    if not all(isinstance(layer, DenseLinear) for layer in network.maps):
        kinds = [type(layer).__name__ for layer in network.maps]
        raise ValueError(f"network must have DenseLinear layers only, got {kinds}.")
    rule = get_prune(prune)
    if not rule.at_once:
        raise ValueError(
            f"prune={rule.name!r} prunes while the network trains; expand prunes at "
            f"once, for which there are "
            f"{[name for name, known in PRUNES.items() if known.at_once]}."
        )
    shape, budget = check_expansion(
        [*(layer.in_features for layer in network.layers), network.n_outputs],
        expansion,
        split,
        prune=rule,
        budget=budget,
        groups=groups,
        skip=network.skip is not None,
    )
    warn_expansion(shape, expansion, budget)
    splitting = get_split(split)
    expanded = expand_to(
        network, shape, budget, splitting, prune=rule, groups=groups, rng=rng
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
    layers, parents = build_layers(weights, biases, shape, plan, rng)
    skip = matrix_layer(weights[-1], None, plan.keep[-1]) if shape.skip else None
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
        The shape of the expanded network, see :func:`expand`.
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
    if rule.overlapping and pruning.at_once and max(asked, default=1) > 1:
        raise ValueError(
            f"split={rule.name!r} leaves it to training which child keeps which input: "
            f'it needs prune="gradual", got prune={pruning.name!r}.'
        )
    if pruning.needs_shared and rule.shared is False:
        raise ValueError(
            f'prune="{pruning.name}" needs a partition that all neurons of a layer '
            f"share, but split={rule.name!r} partitions every neuron's inputs on its "
            f'own. Use split="shared", "contiguous" or "feature", or '
            f'prune="magnitude".'
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
