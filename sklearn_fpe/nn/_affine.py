"""Location and scale of columns, by which inputs and targets are standardised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe.nn._state import above_zero, array, record, require


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x -> (x - mean) / scale`` of every column, in double precision.

    Parameters
    ----------
    mean, scale : ndarray of float64 of shape (n_columns,)
        Location, and scale other than zero.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_fpe.nn import Affine
    >>> affine = Affine(mean=np.array([10.0]), scale=np.array([2.0]))
    >>> affine(np.array([[14.0]])), affine.undo(np.array([[2.0]]))
    (array([[2.]]), array([[14.]]))
    """

    mean: np.ndarray
    scale: np.ndarray

    def to_state(self) -> dict[str, np.ndarray]:
        """Return mean and scale by name."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state(cls, state: Any, name: str) -> Affine:
        """Make a map of a copy of `state`, see :meth:`to_state`; errors say `name`."""
        mean, scale = record(state, name, ("mean", "scale"))
        scale = above_zero(scale, f"{name}.scale", (None,))
        mean = array(mean, f"{name}.mean", np.float64, scale.shape)
        with np.errstate(over="ignore"):
            fits = len(mean) and np.isfinite(mean / scale).all()
        require(fits, f"{name}.mean must be finite in units of {name}.scale")
        return cls(mean.copy(), scale.copy())

    @classmethod
    def identity(cls, n_columns: int) -> Affine:
        """Return the map of `n_columns` columns that changes nothing."""
        return cls(np.zeros(n_columns), np.ones(n_columns))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map the columns of an array of shape (n_rows, n_columns)."""
        return (x - self.mean) / self.scale

    def inverse(self) -> Affine:
        """Return the map that undoes this one."""
        return Affine(-self.mean / self.scale, 1.0 / self.scale)

    def compose(self, inner: Affine) -> Affine:
        """Return the map that applies `inner` first, then this one."""
        return Affine(inner.mean + inner.scale * self.mean, inner.scale * self.scale)

    def undo(self, x: np.ndarray) -> np.ndarray:
        """Map the columns back: ``x * scale + mean``."""
        return x * self.scale + self.mean

    def relative_to(self, other: Affine) -> Affine:
        """Return the map from the coordinates of `other` to those of this one.

        It equals ``self.compose(other.inverse())``, without the cancellation where the
        two means are close and large.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean = (self.mean - other.mean) / other.scale
            return Affine(mean, self.scale / other.scale)

    def tensors(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return mean and scale as double tensors on a device."""
        mean = torch.tensor(self.mean, dtype=torch.float64, device=device)
        return mean, torch.tensor(self.scale, dtype=torch.float64, device=device)
