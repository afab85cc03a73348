"""Prune rules: from a dense network and a budget to a plan of what is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_fpe.nn._magnitude import prune_magnitude
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._split import SplitRule, partition
from sklearn_fpe.nn._structured import (
    least_parents,
    prune_structured,
    structured_count,
)


@dataclass(frozen=True)
class Plan:
    """The partition of an expanded network, and its kept units and edges.

    Unit ``a * n_parents + i`` of a hidden layer is child ``a`` of parent ``i``; the
    units of a layer are the inputs of the next one. Arrays may be broadcast views.

    Parameters
    ----------
    children : list of int ndarrays of shape (n_parents, n_inputs)
        The partition of every hidden layer.
    alive : list of bool ndarrays of shape (n_units,)
        The units of every hidden layer that are kept.
    keep : list of bool ndarrays
        The edges that are kept: (n_parents, n_inputs) for every hidden layer,
        (n_outputs, n_units) for the output layer, (n_outputs, n_inputs) for the skip
        connection if there is one.
    siblings : list of int, default=None
        Siblings that share a dense block, for every hidden layer with a shared
        partition; each may then come to read the inputs of all of them. None: each
        child has a block of its own.

    Examples
    --------
    >>> from sklearn_fpe.nn import Plan, Shape
    >>> plan = Plan.keep_all(Shape(6, (4,), 3, expansion=(1,)))
    >>> [keep.shape for keep in plan.keep], plan.alive[0].sum()
    ([(4, 6), (3, 4)], np.int64(4))
    """

    children: list[np.ndarray]
    alive: list[np.ndarray]
    keep: list[np.ndarray]
    siblings: list[int] | None = None

    @classmethod
    def keep_all(cls, shape: Shape, children: list[np.ndarray] | None = None) -> Plan:
        """Return the plan that prunes nothing of a shape.

        `children` are the partitions; None: of one child each.
        """
        fan_ins = shape.fan_ins()
        shapes = list(zip([*shape.hidden, shape.n_outputs], fan_ins, strict=True))
        if children is None:
            children = [np.broadcast_to(np.intp(0), s) for s in shapes[:-1]]
        if shape.skip:
            shapes.append((shape.n_outputs, shape.n_inputs))
        return cls(
            children,
            [np.ones(n, dtype=bool) for n in fan_ins[1:]],
            [np.broadcast_to(True, s) for s in shapes],
        )


@dataclass(frozen=True)
class Splitter:
    """Splits layers by a rule, with the groups and the randomness that it needs.

    Parameters
    ----------
    rule : SplitRule
        The split rule.
    groups : array-like or None
        Group label of every input of the network.
    rng : numpy.random.Generator
        Source of randomness, for what a prune rule draws as well.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.nn import SplitRule, Splitter
    >>> def assign(weight, n_children, rng, groups):
    ...     row = np.arange(weight.shape[1]) % n_children
    ...     return np.tile(row, (len(weight), 1))
    >>> splitter = Splitter(SplitRule("interleaved", assign), None, None)
    >>> splitter.split(np.ones((1, 4)), n_children=2, level=0)
    array([[0, 1, 0, 1]])
    """

    rule: SplitRule
    groups: Any
    rng: np.random.Generator

    def split(self, weight: np.ndarray, n_children: int, level: int) -> np.ndarray:
        """Partition the inputs of every neuron of a hidden layer.

        `weight` is (n_parents, n_inputs), as is the partition, `n_children` the
        children of every parent, `level` the number of the layer, from 0.
        """
        rule = self.rule.at_level(level)
        return partition(weight, n_children, rule, groups=self.groups, rng=self.rng)

    def split_layers(
        self, weights: list[np.ndarray], shape: Shape
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Copy weights to the children of the layer before, and split every layer.

        `weights` are those of the dense parent, see :meth:`PruneRule.plan`, `shape`
        is that of the expanded network. Returns the weights over the units of the layer
        before instead of its parents, and the partition of every hidden layer.
        """
        copies = (1, *shape.expansion, 1)
        wide = [np.tile(w, (1, c)) for w, c in zip(weights, copies, strict=False)]
        children = [
            self.split(w, a, level)
            for level, (w, a) in enumerate(zip(wide, shape.expansion, strict=False))
        ]
        return wide, children


class PruneRule(ABC):
    """A rule that prunes an expanded network to a budget; subclass it for another.

    Attributes
    ----------
    name : str
        Name of the rule.
    needs_shared : bool
        Whether all neurons of a layer must have the same partition.
    exact : bool
        Whether the kept parameters are exactly as many as the budget.
    allows_skip : bool
        Whether the network may have a skip connection.
    at_once : bool
        Whether :meth:`plan` prunes to the budget. If not, the plan keeps more, and
        training prunes to the budget, see :meth:`hook`.

    Examples
    --------
    A rule that keeps the first layer whole and prunes the copies of outgoing weights:

    >>> import numpy as np
    >>> from sklearn_fpe.nn import MLP, Plan, PruneRule, expand
    >>> class OutgoingOnly(PruneRule):
    ...     name = "outgoing"
    ...
    ...     def least_budget(self, shape):
    ...         return shape.n_parameters() - shape.n_outputs * shape.fan_ins()[-1]
    ...
    ...     least_cost = least_budget
    ...
    ...     def plan(self, weights, shape, splitter, budget):
    ...         (n_units,) = shape.fan_ins()[1:]
    ...         _, children = splitter.split_layers(weights, shape)
    ...         outgoing = np.zeros((shape.n_outputs, n_units), dtype=bool)
    ...         n_kept = budget - self.least_budget(shape)
    ...         outgoing.flat[splitter.rng.permutation(outgoing.size)[:n_kept]] = True
    ...         keep = [np.ones(weights[0].shape, dtype=bool), outgoing]
    ...         return Plan(children, [np.ones(n_units, dtype=bool)], keep)
    >>> network, _ = expand(MLP.dense([6, 4, 3]), 2, prune=OutgoingOnly(), rng=0)
    >>> network.n_nonzero
    43
    """

    name: str
    needs_shared = False
    exact = True
    allows_skip = True
    at_once = True

    def __eq__(self, other: object) -> bool:
        """Tell whether two rules are of one class with equal parameters."""
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(type(self))  # because a parameter need not be hashable

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a registered rule by its name."""
        if PRUNES.get(getattr(self, "name", "")) is self:
            return get_prune, (self.name,)
        return super().__reduce__()

    @abstractmethod
    def least_budget(self, shape: Shape) -> int:
        """Return the least budget that the rule can meet for a shape, with biases."""

    @abstractmethod
    def least_cost(self, shape: Shape) -> int:
        """Return the least budget for a shape that pays for all children kept."""

    def hook(self, recipe: Any) -> Any:
        """Return an object that prunes during the fine-tuning, or None.

        `recipe` holds the settings that determine the network. The training calls the
        methods of the object, see ``sklearn_fpe._engine._hooks``.
        """
        return None

    @abstractmethod
    def plan(
        self, weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
    ) -> Plan:
        """Split every layer and choose the units and weights that stay.

        `weights` are those of the dense parent: (n_parents, n_inputs) for every hidden
        layer, (n_outputs, n_parents) for the output layer, and (n_outputs, n_inputs)
        for the skip connection if there is one. `shape` is that of the expanded
        network, `splitter` splits its layers and holds the source of randomness, and
        `budget` counts the parameters to keep, biases included.
        """


class Magnitude(PruneRule):
    """Keep the largest weights of all layers; no layer starves."""

    name = "magnitude"

    def least_budget(self, shape: Shape) -> int:
        """Return the cost of one path of edges with its biases."""
        return 2 * len(shape.hidden) + 1 + shape.n_outputs

    def least_cost(self, shape: Shape) -> int:
        """Return the cost of a bias, an edge in and an edge out for every child."""
        return shape.n_outputs + 3 * sum(shape.fan_ins()[1:])

    def plan(
        self, weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
    ) -> Plan:
        """Split all layers, then keep the largest weights of all."""
        wide, children = splitter.split_layers(weights, shape)
        return Plan(children, *prune_magnitude(wide, children, shape, budget))


class Structured(PruneRule):
    """Drop the least used inputs of a block and the weakest children."""

    name = "structured"
    needs_shared = True
    exact = False
    allows_skip = False

    def least_budget(self, shape: Shape) -> int:
        """Return the cost of one input and the least number of children per block."""
        return structured_count(shape, shape.expansion[0], least_parents(shape))

    # Blocks keep at least one child, whatever the expansion.
    least_cost = least_budget

    def plan(
        self, weights: list[np.ndarray], shape: Shape, splitter: Splitter, budget: int
    ) -> Plan:
        """Split and prune layer by layer."""
        return Plan(*prune_structured(weights, shape, splitter, budget))


def get_prune(prune: str | PruneRule) -> PruneRule:
    """Return a prune rule by its name in :data:`PRUNES`, or the object itself."""
    if isinstance(prune, PruneRule):
        if not isinstance(getattr(prune, "name", None), str):
            raise ValueError(f"{type(prune).__name__} needs a `name`, a string.")
        return prune
    if not isinstance(prune, str) or prune not in PRUNES:
        raise ValueError(
            f"prune must be one of {tuple(PRUNES)} or a PruneRule, got {prune!r}."
        )
    return PRUNES[prune]


PRUNES: dict[str, PruneRule] = {rule.name: rule for rule in (Magnitude(), Structured())}
"""The prune rules by name."""
