"""Running mean and variance of columns, for any spread that float64 holds."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from sklearn_fpe._engine._device import chunk_bytes, is_accelerator, upload
from sklearn_fpe._engine._views import View, as_double, chunks
from sklearn_fpe._engine._world import SINGLE, World
from sklearn_fpe.nn import Affine
from sklearn_fpe.nn._state import above_zero, array, record, require

PLAIN_DEVIATIONS = (1e-100, 1e100)
"""Deviations whose squares float64 holds; others are divided by a power of two."""

MIN_RELATIVE_SPREAD = 16 * np.finfo(np.float64).eps
"""Standard deviation, relative to the mean, up to which a column counts as constant.

A difference in the last few bits is rounding, not signal.
"""


class Moments:
    """Weighted mean and variance of columns (Chan, Golub and LeVeque, 1983).

    Deviations are taken from the first row seen, because the difference of numbers that
    are close is exact. So a constant column has variance zero, and a spread that is
    small beside the mean is not lost.

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
    def from_state(cls, state: Any, n_columns: int, name: str) -> Moments:
        """Make moments of a copy of a state, and check it; messages call it `name`."""
        moments = cls(n_columns)
        shapes = {key: np.shape(value) for key, value in vars(moments).items()}
        record(state, name, list(shapes))
        for key, shape in shapes.items():
            value = array(state[key], f"{name}.{key}", np.float64, shape)
            setattr(moments, key, value.copy())
        for key in ("weight", "unit"):
            above_zero(state[key], f"{name}.{key}", shapes[key])
        fits = (moments.m2 >= 0).all()
        require(fits, f"The array {name}.m2 must hold no negative numbers")
        moments.weight = float(moments.weight)
        return moments

    def update(
        self,
        view: View,
        weights: np.ndarray,
        name: str = "X",
        device: torch.device | None = None,
        world: World = SINGLE,
    ) -> Moments:
        """Add the rows of a view; return these moments.

        Parameters
        ----------
        view : View of shape (n_rows, n_columns)
            Rows.
        weights : ndarray of shape (n_rows,)
            Positive weights.
        name : str, default="X"
            Name of the rows in messages.
        device : torch.device, default=None
            Where to compute, unless the rows are on another device than the CPU.
        world : World, default=SINGLE
            The processes whose rows are added, each its own view.

        Raises
        ------
        ValueError
            If a column's spread is too large for float64; the message names it.
        """
        if world.size > 1:
            own = Moments(view.shape[1]).update(view, weights, name, device)
            for other in world.gather(own, f"moments of {name}"):
                self.merge(other, name)
            return self
        if isinstance(view.X, torch.Tensor) and is_accelerator(view.X.device):
            device = view.X.device
        if device is not None and is_accelerator(device):
            sums = self._sums_on(device, view, weights)
            if sums is not None:
                for of_piece in sums:
                    self._add(*of_piece, name)
                return self
        for rows in chunks(*view.shape):
            w = torch.from_numpy(weights[rows].astype(np.float64))
            total = float(w.sum())
            part = self._deviations(view, rows)
            first = (self.m2 == 0) & (self.mean == 0)
            if first.any():
                self._choose_units(part, first)
            mean, m2 = self._summed(part, w, total)
            most = PLAIN_DEVIATIONS[1]
            too_large = ~((np.abs(mean) <= most) & (m2 <= most**2))
            if too_large.any():
                part = self._deviations(view, rows)
                self._choose_units(part, too_large)
                mean, m2 = self._summed(part, w, total)
            self._add(total, mean, m2, name)
        return self

    def _sums_on(
        self, device: torch.device, view: View, weights: np.ndarray
    ) -> list[tuple[float, np.ndarray, np.ndarray]] | None:
        """Return weight, mean and m2 of every piece, computed on a device.

        The host waits for the first row and the sums. Returns None if deviations need a
        unit, because float64 does not hold their squares.
        """
        if (self.unit != 1).any():
            return None
        if self.weight == 0:
            self.shift = as_double(view.read(slice(0, 1)))[0].cpu().numpy().copy()
        slices = list(chunks(*view.shape, chunk_bytes(device)))
        on_host = torch.from_numpy(weights.astype(np.float64))
        w, shift = upload(on_host, device), upload(torch.from_numpy(self.shift), device)
        totals, found = [], []
        for rows, raw in zip(slices, view.pieces(slices, device), strict=True):
            part = as_double(raw)
            part -= shift
            least, most = torch.aminmax(part, dim=0)
            totals.append(float(on_host[rows].sum()))
            mean = w[rows] @ part / totals[-1]
            part -= mean
            m2 = w[rows] @ part.square_()
            found.append(torch.stack([mean, m2, torch.maximum(-least, most)]))
        means, m2s, sizes = torch.stack(found).cpu().numpy().transpose(1, 0, 2)
        small, large = PLAIN_DEVIATIONS
        plain = (sizes >= small) & (sizes <= large) & (m2s <= large**2)
        plain |= sizes == 0
        return list(zip(totals, means, m2s, strict=True)) if plain.all() else None

    def merge(self, other: Moments, name: str = "X") -> None:
        """Add the rows that other moments of the same columns have seen.

        Raises ValueError, like :meth:`update`.
        """
        if self.weight == 0:
            vars(self).update(copy.deepcopy(vars(other)))
            return
        with np.errstate(over="ignore"):
            shift = other.shift - self.shift
        largest = np.maximum.reduce([np.abs(shift), self._size(), other._size()])
        least, most = PLAIN_DEVIATIONS
        extreme = (largest > 0) & ((largest < least) | (largest > most))
        extreme &= np.isfinite(largest)
        unit = np.ones_like(largest)
        _, exponent = np.frexp(largest[extreme])
        unit[extreme] = np.ldexp(1.0, exponent - 1)
        with np.errstate(over="ignore", under="ignore"):
            ratio = self.unit / unit
            self.mean, self.m2 = self.mean * ratio, self.m2 * ratio * ratio
            self.unit, ratio = unit, other.unit / unit
            mean = shift / unit + other.mean * ratio
            m2 = other.m2 * ratio * ratio
        self._add(other.weight, mean, m2, name)

    def _size(self) -> np.ndarray:
        """Return the size of the deviations, (n_columns,): of mean and spread."""
        return np.maximum(np.abs(self.mean), np.sqrt(self.m2 / self.weight)) * self.unit

    def _deviations(self, view: View, rows: slice) -> torch.Tensor:
        """Return some rows minus the first row seen."""
        part = as_double(view.read(rows))
        if self.weight == 0:
            self.shift = part[0].cpu().numpy().copy()
        part -= torch.from_numpy(self.shift).to(part.device)
        return part

    def _summed(
        self, part: torch.Tensor, weights: torch.Tensor, total: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and m2, see :class:`Moments`, of deviations; overwrite them."""
        if (self.unit != 1).any():
            part /= torch.from_numpy(self.unit).to(part.device)
        weights = weights.to(part.device)
        mean = weights @ part / total
        part -= mean
        return mean.cpu().numpy(), (weights @ part.square_()).cpu().numpy()

    def _choose_units(self, part: torch.Tensor, where: np.ndarray) -> None:
        """Choose the unit of some columns, for deviations that are small or large.

        Earlier sums are converted, which is exact, because units are powers of two.
        """
        columns = torch.from_numpy(np.flatnonzero(where)).to(part.device)
        largest = np.zeros(len(where))
        largest[where] = part.index_select(1, columns).abs().amax(0).cpu().numpy()
        least, most = PLAIN_DEVIATIONS
        # Divided first, because a small unit would make the quotient overflow.
        extreme = (largest / most > np.minimum(self.unit, 1)) | (largest < least)
        # A spread that float64 does not hold is an error later.
        extreme &= (largest > 0) & np.isfinite(largest)
        _, exponent = np.frexp(largest[extreme])
        # Not 2.0 ** 1024, which overflows.
        unit = np.ldexp(1.0, exponent - 1)
        # 1 where the unit becomes smaller, because nothing was summed before.
        ratio = self.unit[extreme] / np.maximum(unit, self.unit[extreme])
        self.mean[extreme] *= ratio
        for _ in range(2):  # the square of the ratio may underflow
            self.m2[extreme] *= ratio
        self.unit[extreme] = unit

    def _add(self, total: float, mean: np.ndarray, m2: np.ndarray, name: str) -> None:
        delta = mean - self.mean
        share = total / (self.weight + total)
        with np.errstate(over="ignore", invalid="ignore"):
            self.mean = self.mean + delta * share
            self.m2 = self.m2 + m2 + delta**2 * (self.weight * share)
        self.weight += total
        if not np.isfinite(self.m2).all():
            columns = np.flatnonzero(~np.isfinite(self.m2)).tolist()
            raise ValueError(
                f"The spread of every column of {name} must fit float64; that of "
                f"column {', '.join(map(str, columns[:5]))} does not. Scale it first."
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
