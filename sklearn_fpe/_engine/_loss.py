"""Losses, each with its derivative and its link, as objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_ROW_MAJOR_CLASSES = 32
"""Classes from which the log-softmax on a CPU is computed along rows.

Shorter rows are computed along columns, because torch does not vectorise them.
"""


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of raw outputs, averaged over rows with weights.

    Parameters
    ----------
    label_smoothing : float in [0, 1), default=0.0
        Share of every target that is spread evenly over the classes.
    """

    name: ClassVar[str]
    of_entries: ClassVar[bool] = False
    """Whether every output of a row has a loss, so that entries may have weights."""
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), got {self.label_smoothing!r}."
            )

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of rows (n_rows,) or of entries (n_rows, n_outputs)."""

    @abstractmethod
    def gradient(
        self, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return :meth:`losses`, and the gradient of their sum weighted by `shares`.

        The outputs may be overwritten.
        """

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of weight times loss, divided by the number of rows.

        Parameters
        ----------
        outputs : tensor of shape (n_rows, n_outputs)
            Raw outputs.
        targets : tensor of shape (n_rows,) or (n_rows, n_outputs)
            Class numbers, indicators or standardised targets.
        weights : tensor of shape (n_rows,) or (n_rows, n_outputs)
            Weights of rows or, for losses of entries, of entries.
        """
        self._check_weights(weights)
        losses = self.losses(outputs, targets)
        if losses.ndim > weights.ndim:
            losses = losses.sum(dim=1)
        return (losses * weights).sum() / len(weights)

    def shares(self, weights: Tensor, n_rows: int) -> tuple[Tensor, ...]:
        """Return tensors of the shape of `weights` for :meth:`differentiate`.

        `weights` covers several batches of `n_rows` rows. The first tensor is the share
        of every loss in the loss of its batch.
        """
        return (weights / n_rows,)

    def differentiate(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted mean loss and its gradient with respect to the outputs.

        The outputs may be overwritten. `shares` are the batch's rows of :meth:`shares`;
        without them, they are computed here.
        """
        self._check_weights(weights)
        return self._differentiate(
            outputs, targets, *(shares or self.shares(weights, len(weights)))
        )

    def _differentiate(
        self, outputs: Tensor, targets: Tensor, *shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, gradient = self.gradient(outputs, targets, shares[0])
        if losses.ndim > shares[0].ndim:
            losses = losses.sum(dim=1)
        if losses.ndim == 1:
            return torch.dot(losses, shares[0]), gradient
        return (losses * shares[0]).sum(), gradient

    def _check_weights(self, weights: Tensor) -> None:
        if weights.ndim > 1 and not self.of_entries:
            raise ValueError(
                f"The loss {self.name!r} is one of rows: it takes weights of shape "
                f"(n_rows,), got {tuple(weights.shape)}."
            )


class Softmax(Loss):
    """Cross-entropy of class numbers."""

    name = "softmax"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of every row."""
        return F.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def gradient(
        self, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and gradient, see :meth:`Loss.gradient`."""
        if self.label_smoothing == 0:
            log_p, gradient = self._likelihood(outputs, targets, shares, -shares)
            return log_p.neg_(), gradient
        classes, of_row = targets.unsqueeze(1), shares.unsqueeze(1)
        log_p = _log_softmax(outputs)
        losses = log_p.gather(1, classes).squeeze(1).neg_()
        kept = 1 - self.label_smoothing
        losses = kept * losses - self.label_smoothing * log_p.mean(dim=1)
        uniform = self.label_smoothing / outputs.shape[1]
        gradient = log_p.exp_().sub_(uniform).mul_(of_row)
        return losses, gradient.scatter_add_(1, classes, -kept * of_row)

    def shares(self, weights: Tensor, n_rows: int) -> tuple[Tensor, ...]:
        """Return the shares and their negatives, see :meth:`Loss.shares`."""
        shares = weights / n_rows
        return shares, -shares

    def _differentiate(
        self, outputs: Tensor, targets: Tensor, *shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.label_smoothing:
            return super()._differentiate(outputs, targets, *shares)
        log_p, gradient = self._likelihood(outputs, targets, *shares)
        return torch.dot(log_p, shares[1]), gradient

    @staticmethod
    def _likelihood(
        outputs: Tensor, targets: Tensor, shares: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the log-likelihood of every row, and the gradient of the loss."""
        classes = targets.unsqueeze(1)
        log_p = _log_softmax(outputs)
        of_rows = log_p.gather(1, classes).squeeze(1)
        gradient = log_p.exp_().mul_(shares.unsqueeze(1))
        return of_rows, gradient.scatter_add_(1, classes, negative.unsqueeze(1))


class Sigmoid(Loss):
    """Binary cross-entropy of every column, summed over columns."""

    name = "sigmoid"
    of_entries = True

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy of every entry."""
        return F.binary_cross_entropy_with_logits(
            outputs, self._smooth(targets), reduction="none"
        )

    def gradient(
        self, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and gradient, see :meth:`Loss.gradient`."""
        targets = self._smooth(targets)
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        of_row = shares.unsqueeze(1) if shares.ndim == 1 else shares
        return losses, outputs.sigmoid_().sub_(targets).mul_(of_row)

    def _smooth(self, targets: Tensor) -> Tensor:
        if self.label_smoothing == 0:
            return targets
        return targets * (1 - self.label_smoothing) + self.label_smoothing / 2


class Squared(Loss):
    """Half the squared error, averaged over columns."""

    name = "squared"

    def __post_init__(self) -> None:
        if self.label_smoothing != 0:
            raise ValueError("label_smoothing is for classes, not for real targets.")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean half squared error of every row."""
        return 0.5 * (outputs - targets).square().mean(dim=1)

    def gradient(
        self, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and gradient, see :meth:`Loss.gradient`."""
        gradient = outputs.sub_(targets)
        losses = 0.5 * gradient.square().mean(dim=1)
        return losses, gradient.mul_((shares / outputs.shape[1]).unsqueeze(1))


LOSSES = {loss.name: loss for loss in (Softmax, Sigmoid, Squared)}
"""The losses by name."""


def _log_softmax(outputs: Tensor) -> Tensor:
    """Return the logarithm of the softmax of every row."""
    if outputs.shape[1] < MIN_ROW_MAJOR_CLASSES and not outputs.is_cuda:
        return torch.log_softmax(outputs.mT.contiguous(), dim=0).mT
    return torch.log_softmax(outputs, dim=1)
