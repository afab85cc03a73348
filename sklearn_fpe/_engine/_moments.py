"""Running mean and variance of columns, for any spread that float64 holds."""

from __future__ import annotations

import numpy as np
import torch

from sklearn_fpe._engine._views import View, as_double, chunks
from sklearn_fpe.nn import Affine

PLAIN_DEVIATIONS = (1e-100, 1e100)
"""Deviations whose squares float64 holds; others are divided by a power of two."""

MIN_RELATIVE_SPREAD = 16 * np.finfo(np.float64).eps
"""Standard deviation, relative to the mean, up to which a column counts as constant.

What differs in the last few bits only is rounding, not signal.
"""


class Moments:
    """Weighted mean and variance of columns (Chan, Golub and LeVeque, 1983).

    Deviations are taken from the first row seen, because a difference of neighbouring
    numbers is exact. So a constant column has variance zero, and a spread that is small
    beside the mean is not lost.

    Parameters
    ----------
    n_columns : int
        Columns.

    Attributes
    ----------
    weight : float
        Sum of the weights seen.
    shift : ndarray of float64 of shape (n_columns,)
        The first row seen.
    unit : ndarray of float64 of shape (n_columns,)
        Powers of two: the unit of deviations from `shift`.
    mean, m2 : ndarray of float64 of shape (n_columns,)
        Mean, and sum of weighted squared deviations from it, of
        ``(x - shift) / unit``.
    """

    def __init__(self, n_columns: int) -> None:
        self.weight = 0.0
        self.shift = np.zeros(n_columns)
        self.unit = np.ones(n_columns)
        self.mean = np.zeros(n_columns)
        self.m2 = np.zeros(n_columns)

    def to_state(self) -> dict[str, np.ndarray]:
        """Return the attributes by name, as arrays."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Moments:
        """Make moments of copies of what :meth:`to_state` returned."""
        moments = cls(len(state["shift"]))
        for name, value in state.items():
            setattr(moments, name, np.array(value))
        moments.weight = float(moments.weight)
        return moments

    def update(self, view: View, weights: np.ndarray) -> Moments:
        """Add the rows of a view.

        Parameters
        ----------
        view : View of shape (n_rows, n_columns)
            Rows.
        weights : ndarray of shape (n_rows,)
            Positive weights.

        Returns
        -------
        self : Moments
            These moments.

        Raises
        ------
        ValueError
            If a column's spread is too large for float64; the message names it.
        """
        for rows in chunks(*view.shape):
            part = as_double(view.read(rows))
            if self.weight == 0:
                self.shift = part[0].cpu().numpy().copy()
            part -= torch.from_numpy(self.shift).to(part.device)
            self._choose_units(part)
            if (self.unit != 1).any():
                part /= torch.from_numpy(self.unit).to(part.device)
            w = torch.from_numpy(weights[rows].astype(np.float64)).to(part.device)
            total = float(w.sum())
            mean = w @ part / total
            part -= mean
            mean, m2 = mean.cpu().numpy(), (w @ part.square_()).cpu().numpy()
            self._add(total, mean, m2)
        return self

    def _choose_units(self, part: torch.Tensor) -> None:
        """Choose the unit of columns whose first deviations are very small or large."""
        undecided = self.m2 == 0
        if not undecided.any():
            return
        columns = torch.from_numpy(np.flatnonzero(undecided)).to(part.device)
        largest = part.index_select(1, columns).abs().amax(0).cpu().numpy()
        least, most = PLAIN_DEVIATIONS
        extreme = (largest > 0) & ((largest < least) | (largest > most))
        extreme &= np.isfinite(largest)
        _, exponent = np.frexp(largest[extreme])
        # Not 2.0 ** 1024, which overflows.
        self.unit[np.flatnonzero(undecided)[extreme]] = np.ldexp(1.0, exponent - 1)

    def _add(self, total: float, mean: np.ndarray, m2: np.ndarray) -> None:
        delta = mean - self.mean
        share = total / (self.weight + total)
        with np.errstate(over="ignore", invalid="ignore"):
            self.mean = self.mean + delta * share
            self.m2 = self.m2 + m2 + delta**2 * (self.weight * share)
        self.weight += total
        if not np.isfinite(self.m2).all():
            columns = np.flatnonzero(~np.isfinite(self.m2)).tolist()
            raise ValueError(
                f"The spread of a column must fit float64; that of column "
                f"{', '.join(map(str, columns[:5]))} does not. Scale the column first."
            )

    def exactly_constant(self) -> np.ndarray:
        """Return which columns have one value only, bool (n_columns,)."""
        return (self.m2 == 0) & (self.mean == 0)

    def constant(self) -> np.ndarray:
        """Return which columns are constant up to rounding, bool (n_columns,)."""
        mean, deviation = self._mean_and_deviation()
        return deviation <= MIN_RELATIVE_SPREAD * np.abs(mean)

    def affine(self) -> Affine:
        """Return mean and standard deviation, 1 for columns that are constant."""
        mean, deviation = self._mean_and_deviation()
        return Affine(mean, np.where(self.constant(), 1.0, deviation))

    def _mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.shift + self.mean * self.unit
        return mean, np.sqrt(self.m2 / self.weight) * self.unit
