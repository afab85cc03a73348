"""Real targets, and their score."""

import numpy as np
import torch
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d

from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe._engine._world import SINGLE
from sklearn_fpe._estimators import _together
from sklearn_fpe._estimators._arrays import LARGEST, check_range
from sklearn_fpe.nn import Affine
from sklearn_fpe.nn._state import flag, record, require

SINGLE_SCALES = (1e-30, 1e30)
"""Smallest and largest standard deviation of targets that are predicted in float32."""

MAX_SINGLE_OFFSET = 1e4
"""Largest mean of such targets, in standard deviations: rounding is below 0.001."""

PLAIN_SIZES = (1e-100, 1e100)
"""Sizes of values whose squares float64 holds."""


class RealTargets:
    """Real targets, one column or several, standardised for the network.

    `affine` has the weighted mean and standard deviation (1 where constant) of all rows
    learned, and `moments` their running statistics; None: `affine` stays as it is.
    `one_dimensional` tells whether y was given as shape (n_samples,).
    """

    moments = None
    default_scoring = None
    y_numeric = True
    rows_to_score = 2  # the variance of one row is zero
    loss = "squared"
    link = "identity"

    def to_state(self):
        """Return the attributes by name, as plain values, dicts and arrays."""
        return {
            "one_dimensional": self.one_dimensional,
            "affine": self.affine.to_state(),
            "moments": None if self.moments is None else self.moments.to_state(),
        }

    @classmethod
    def from_state(cls, state, name):
        """Make targets of the result of :meth:`to_state`, and check it."""
        fields = ("one_dimensional", "affine", "moments")
        one_dimensional, affine, moments = record(state, name, fields)
        targets = cls()
        targets.affine = Affine.from_state(affine, f"{name}.affine")
        targets.n_columns = n = len(targets.affine.mean)
        targets.one_dimensional = flag(one_dimensional, f"{name}.one_dimensional")
        fits = n == 1 or not one_dimensional
        require(fits, f"{name}.one_dimensional must be False for several columns")
        if moments is not None:
            targets.moments = Moments.from_state(moments, n, f"{name}.moments")
        return targets

    def check(self, y, weights, *, learn, classes=None, name="y", world=SINGLE):
        """Check targets and, if `learn`, learn their shape."""
        if classes is not None:
            raise ValueError(f"classes must be None for real targets, got {classes!r}.")
        check_range(y, name)
        y = np.asarray(y, dtype=np.float64)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        n_columns = 1 if y.ndim == 1 else y.shape[1]
        if learn:
            world.check_equal(y.shape[1:], f"shapes of the rows of {name}")
            self.one_dimensional = y.ndim == 1
            self.n_columns = n_columns
            self.moments = Moments(n_columns)
            self.affine = Affine.identity(n_columns)
        elif n_columns != self.n_columns:
            raise ValueError(
                f"{name} must have {self.n_columns} columns, as the targets first "
                f"fitted, got shape {y.shape}."
            )
        return y

    def row_weights(self, y, weights, world=SINGLE):
        """Return the sample weights."""
        return weights

    def entry_weights(self, y, weights, world=SINGLE):
        """Return None: the weights of a row hold for all its targets."""

    def learn_scale(self, y, weights, world=SINGLE):
        """Learn location and scale of more targets, those of all processes."""
        if self.moments is not None:
            self.moments.update(View(y.reshape(len(y), -1)), weights, "y", world=world)
            self.affine = self.moments.affine()

    def constant(self):
        """Tell which columns were constant so far."""
        return self.moments.constant()

    def strata(self, y):
        """Return None: a hold-out is not stratified."""

    def encode(self, y):
        """Standardise checked targets into a float32 tensor."""
        with np.errstate(over="ignore"):  # infinity is an error below
            y = self.affine(y.reshape(len(y), -1))
        largest = np.abs(y).max(initial=0.0)
        if largest > LARGEST:
            # Rows held out, or of a later batch: the scale is that of others.
            raise ValueError(
                f"y must be within {LARGEST:.3g} standard deviations of the targets "
                f"learned from, to fit float32; got {largest:.3g}."
            )
        return torch.from_numpy(y.astype(np.float32))

    def codes(self, outputs):
        """Return raw outputs: they are encoded targets."""
        return outputs

    def decode(self, codes):
        """Turn encoded targets, an ndarray, into float64 in the units of the targets.

        Where float64 cannot hold these, they are infinite.
        """
        with np.errstate(over="ignore"):
            y = self.affine.undo(codes.astype(np.float64))
        return y[:, 0] if self.one_dimensional else y

    decide = decode

    def fit_single(self):
        """Tell whether float32 can hold predictions in the units of the targets."""
        mean, scale = np.abs(self.affine.mean), self.affine.scale
        least, most = SINGLE_SCALES
        fit = (mean / MAX_SINGLE_OFFSET <= scale) & (least <= scale) & (scale <= most)
        return bool(fit.all())

    def score(self, y, predicted, weights, world=SINGLE):
        """Return the coefficient of determination, over the rows of all processes."""
        if world.size > 1:
            return _together.r2_of_all(world, y, predicted, weights)
        return r2(y, predicted, weights)

    def output_affine(self):
        """Return location and scale of the targets."""
        return self.affine


def r2(y, predicted, weights):
    """Return the coefficient of determination, for any size that float64 holds.

    Both are divided by a power of two, which changes no digit, because the squares of
    large values would overflow. It is -inf where the errors are too large beside the
    variance of y for float64.
    """
    # As Python's float, because 1e100 is too large for NumPy's float32.
    size = float(max(np.abs(y).max(initial=0.0), np.abs(predicted).max(initial=0.0)))
    is_plain = PLAIN_SIZES[0] < size < PLAIN_SIZES[1] or size in (0, np.inf)
    unit = 1.0 if is_plain else 2.0 ** (np.frexp(size)[1] - 1)
    with np.errstate(over="ignore"):
        return float(r2_score(y / unit, predicted / unit, sample_weight=weights))
