"""The shape of a network before and after its expansion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sklearn_fpe.nn._state import flag, record, require, sizes


@dataclass(frozen=True)
class Shape:
    """Inputs, parents per hidden layer, outputs, children per parent.

    Parameters
    ----------
    n_inputs : int
        Inputs of the network.
    hidden : tuple of int
        Parent neurons of every hidden layer.
    n_outputs : int
        Outputs of the network.
    expansion : tuple of int
        Children per parent of every hidden layer.
    skip : bool, default=False
        Whether there is a skip connection, weights from all inputs to all outputs.

    Examples
    --------
    >>> from sklearn_fpe.nn import Shape
    >>> shape = Shape(n_inputs=64, hidden=(8,), n_outputs=10, expansion=(4,))
    >>> shape.n_parameters(), shape.parent().n_parameters()
    (874, 610)
    """

    n_inputs: int
    hidden: tuple[int, ...]
    n_outputs: int
    expansion: tuple[int, ...]
    skip: bool = False

    @classmethod
    def from_state(cls, state: Any, n_inputs: int, n_outputs: int, name: str) -> Shape:
        """Make a shape of its fields, `state`, and check them; errors say `name`.

        If the state has numbers of inputs and outputs, they must be `n_inputs` and
        `n_outputs`.
        """
        needed, ends = ("hidden", "expansion", "skip"), ("n_inputs", "n_outputs")
        hidden, expansion, skip, *given = record(state, name, needed, ends)
        fits = given in ([None, None], [n_inputs, n_outputs])
        require(fits, f"{name} must have {n_inputs} and {n_outputs} ends", given)
        hidden = sizes(hidden, f"{name}.hidden")
        expansion = sizes(expansion, f"{name}.expansion", len(hidden))
        shape = cls(n_inputs, hidden, n_outputs, expansion, flag(skip, f"{name}.skip"))
        fits = all(a <= n for a, n in zip(expansion, shape.fan_ins(), strict=False))
        require(fits, f"{name}.expansion must be at most the inputs of a layer")
        fits = bool(hidden) or not skip
        require(fits, f"{name}.skip must be a bool, False without hidden layers")
        return shape

    @property
    def widths(self) -> list[int]:
        """Inputs, parents per hidden layer, outputs."""
        return [self.n_inputs, *self.hidden, self.n_outputs]

    def fan_ins(self) -> list[int]:
        """Return the units that feed each hidden layer and the output layer."""
        units = [h * a for h, a in zip(self.hidden, self.expansion, strict=True)]
        return [self.n_inputs, *units]

    def n_parameters(self) -> int:
        """Count the parameters before pruning, biases included."""
        fan_ins = self.fan_ins()
        weights = sum(h * n for h, n in zip(self.hidden, fan_ins, strict=False))
        skip = self.n_inputs * self.n_outputs if self.skip else 0
        return weights + sum(fan_ins[1:]) + self.n_outputs * (fan_ins[-1] + 1) + skip

    def parent(self) -> Shape:
        """Return the shape of the dense parent network."""
        return replace(self, expansion=(1,) * len(self.hidden))

    def default_budget(self) -> int:
        """Return the parameters of the dense parent without the skip connection."""
        return replace(self.parent(), skip=False).n_parameters()
