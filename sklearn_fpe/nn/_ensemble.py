"""Several networks as one, whose predictions are averaged."""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sklearn_fpe.nn._mlp import MLP

LINKS = ("softmax", "sigmoid", "identity")
"""Functions that map the outputs of an :class:`Ensemble` to predictions."""


class Ensemble(nn.Module):
    """Networks whose predictions are averaged.

    The link of the outputs is the mean of the members' predictions, so for
    ``"softmax"`` the outputs are the logarithms of mean probabilities.

    Parameters
    ----------
    members : sequence of MLP
        Networks with equal numbers of inputs and of outputs.
    link : {"softmax", "sigmoid", "identity"}
        Function that maps outputs to predictions.

    Raises
    ------
    ValueError
        If there is no member, or the link is unknown.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import MLP, Ensemble
    >>> members = [MLP.dense([4, 3, 2]) for _ in range(2)]
    >>> network, x = Ensemble(members, "softmax"), torch.ones(1, 4)
    >>> mean = sum(member(x).softmax(1) for member in members) / 2
    >>> torch.allclose(network(x).softmax(1), mean)
    True
    """

    members: MutableSequence[MLP]

    def __init__(self, members: Sequence[MLP], link: str) -> None:
        super().__init__()
        if link not in LINKS:
            raise ValueError(f"link must be one of {LINKS}, got {link!r}.")
        if not members:
            raise ValueError("members must hold at least one network, got none.")
        self.link = link
        self.members = cast("MutableSequence[MLP]", nn.ModuleList(members))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Map x (n_rows, n_inputs) to outputs (n_rows, n_outputs).

        They are written into `out` if it is given, which autograd cannot record.
        """
        outputs = torch.stack([member(x) for member in self.members])
        if self.link == "softmax":
            log_p = torch.log_softmax(outputs, dim=2)
            combined = torch.logsumexp(log_p, dim=0) - math.log(len(self.members))
        elif self.link == "sigmoid":
            positive = torch.logsumexp(logsigmoid(outputs), dim=0)
            combined = positive - torch.logsumexp(logsigmoid(-outputs), dim=0)
        else:
            combined = outputs.mean(dim=0)
        return combined if out is None else out.copy_(combined)

    def transform(self, x: Tensor) -> Tensor:
        """Map x (n_rows, n_inputs) to the last hidden activations of all members."""
        return torch.cat([member.transform(x) for member in self.members], dim=1)

    @property
    def n_nonzero(self) -> int:
        """Kept weights and biases of all members."""
        return sum(member.n_nonzero for member in self.members)

    @property
    def n_weights(self) -> int:
        """Weights of all members, pruned ones included."""
        return sum(member.n_weights for member in self.members)

    @property
    def n_units(self) -> int:
        """Columns of what :meth:`transform` returns."""
        return sum(member.n_units for member in self.members)

    @property
    def n_outputs(self) -> int:
        """Columns of the outputs."""
        return self.members[0].n_outputs

    @property
    def n_values(self) -> int:
        """Values that a prediction holds at a time for a row."""
        n_outputs = self.n_outputs * len(self.members)
        return max(member.n_values for member in self.members) + n_outputs

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.members[0].device
