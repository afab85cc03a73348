"""Targets: what they are, and how the network sees them."""

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from sklearn_fpe._data import ROUNDING, Moments, View
from sklearn_fpe._validation import LARGEST, check_range


class ClassTargets:
    """Labels, or a 0/1 indicator matrix of several labels.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
        Weights of the classes.

    Attributes
    ----------
    kind : {"binary", "multiclass", "multilabel"}
        Learned with `classes` by :meth:`check`.
    classes : ndarray of shape (n_classes,)
        Sorted labels.
    """

    y_numeric = False
    rows_to_score = 1

    def __init__(self, class_weight=None):
        self.class_weight = class_weight

    @property
    def loss(self):
        """Kind of loss."""
        return "softmax" if self.kind == "multiclass" else "sigmoid"

    @property
    def n_columns(self):
        """Columns of the network's output."""
        return 1 if self.kind == "binary" else len(self.classes)

    def check(self, y, weights, *, learn, classes=None, name="y"):
        """Check targets and, if `learn`, learn the classes of positive weight."""
        check_classification_targets(y)
        y_type = type_of_target(y, input_name=name)
        if y_type == "multiclass-multioutput":
            raise ValueError(
                f"{name} must be labels of shape (n_samples,) or a 0/1 indicator "
                f"matrix of shape (n_samples, n_labels), got {y_type} of shape "
                f"{y.shape}."
            )
        multilabel = y_type == "multilabel-indicator"
        if multilabel:
            y = y.toarray() if hasattr(y, "toarray") else y
            seen = np.arange(y.shape[1])
        else:
            y = column_or_1d(y, warn=True)
            seen = np.unique(y[weights > 0])
        if classes is not None:
            classes = np.unique(classes)
        if learn:
            self._learn(seen if classes is None else classes, multilabel)
        elif classes is not None and not np.array_equal(classes, self.classes):
            raise ValueError(
                f"classes must be those of the first call, {self.classes}, got "
                f"{classes}."
            )
        if multilabel != (self.kind == "multilabel"):
            raise ValueError(
                f"{name} must be {self.kind} targets with classes {self.classes}, as "
                f"the targets first fitted, got {y_type} of shape {y.shape}."
            )
        unknown = np.setdiff1d(seen, self.classes)
        if len(unknown) or (multilabel and len(seen) != len(self.classes)):
            raise ValueError(
                f"{name} must hold only the classes {self.classes}, got {seen}."
            )
        return y

    def _learn(self, classes, multilabel):
        if len(classes) < 2 and not multilabel:
            raise ValueError(
                f"y must hold at least two classes, got 1 class: {classes}."
            )
        self.classes = classes
        if multilabel:
            self.kind = "multilabel"
        else:
            self.kind = "binary" if len(classes) == 2 else "multiclass"

    def row_weights(self, y, weights):
        """Multiply sample weights by class weights."""
        if self.class_weight is None:
            return weights
        if self.kind == "multilabel":
            raise ValueError(
                f"class_weight must be None for a multi-label y, got "
                f"{self.class_weight!r}; use sample_weight."
            )
        used = weights > 0
        present = np.unique(y[used])
        # A dict must name classes; frequencies can only be had of those present.
        classes = self.classes if isinstance(self.class_weight, dict) else present
        of_class = compute_class_weight(
            self.class_weight, classes=classes, y=y[used], sample_weight=weights[used]
        )
        if not np.isfinite(of_class).all() or (of_class < 0).any():
            raise ValueError(
                f"class_weight must be finite and not negative, got "
                f"{self.class_weight!r}."
            )
        factor = np.zeros(len(y))
        factor[used] = of_class[np.searchsorted(classes, y[used])]
        if not factor.any():
            raise ValueError(
                f"class_weight must be positive for a class in y, got "
                f"{self.class_weight!r} for {present}."
            )
        return weights * factor

    def learn_scale(self, y, weights):
        """Do nothing: labels have no scale."""

    def constant(self):
        """Tell which columns are constant: none."""
        return np.zeros(self.n_columns, dtype=bool)

    def strata(self, y):
        """Return what a hold-out is stratified by: the class."""
        return None if self.kind == "multilabel" else y

    def encode(self, y):
        """Turn checked targets into a tensor for the loss."""
        if self.kind == "multilabel":
            return torch.from_numpy(np.asarray(y, dtype=np.float32))
        codes = np.searchsorted(self.classes, y)
        if self.kind == "binary":
            return torch.from_numpy(codes.astype(np.float32)[:, None])
        return torch.from_numpy(codes.astype(np.int64))

    def decide(self, outputs):
        """Turn raw outputs into predicted targets."""
        if self.kind == "multiclass":
            return self.classes[outputs.argmax(axis=1)]
        if self.kind == "binary":
            return self.classes[(outputs[:, 0] > 0).astype(np.intp)]
        return (outputs > 0).astype(np.int64)

    def score(self, y, outputs, weights):
        """Return the accuracy."""
        return accuracy_score(y, self.decide(outputs), sample_weight=weights)

    def output_affine(self):
        """Return scale and shift that turn network outputs into target units."""
        return np.ones(self.n_columns, np.float32), np.zeros(self.n_columns, np.float32)


class RealTargets:
    """Real targets, one column or several, standardised for the network.

    Attributes
    ----------
    n_columns : int
        Columns of the targets.
    one_dimensional : bool
        Whether y was given as shape (n_samples,).
    mean, scale : ndarray of shape (n_columns,)
        Weighted mean and standard deviation (1 where constant) of all rows learned.
    moments : Moments or None
        Their running statistics; None: mean and scale stand.
    """

    moments = None

    y_numeric = True
    rows_to_score = 2  # the variance of one row is zero
    loss = "squared"

    def check(self, y, weights, *, learn, classes=None, name="y"):
        """Check targets and, if `learn`, learn their shape."""
        if classes is not None:
            raise ValueError(f"classes must be None for real targets, got {classes!r}.")
        y = np.asarray(y, dtype=np.float64)
        check_range(y, name)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if learn:
            self.one_dimensional = y.ndim == 1
            self.n_columns = 1 if y.ndim == 1 else y.shape[1]
            self.moments = Moments(self.n_columns)
            self.mean = np.zeros(self.n_columns)
            self.scale = np.ones(self.n_columns)
        elif (1 if y.ndim == 1 else y.shape[1]) != self.n_columns:
            raise ValueError(
                f"{name} must have {self.n_columns} columns, as the targets first "
                f"fitted, got shape {y.shape}."
            )
        return y

    def row_weights(self, y, weights):
        """Return the sample weights."""
        return weights

    def learn_scale(self, y, weights):
        """Learn location and scale of more targets."""
        if self.moments is not None:
            self.moments.update(View(y.reshape(len(y), -1)), weights)
            scaler = self.moments.scaler()
            self.mean, self.scale = scaler.mean, scaler.scale

    def constant(self):
        """Tell which columns were constant so far."""
        return self.moments.constant()

    def strata(self, y):
        """Return what a hold-out is stratified by: nothing."""
        return None

    def encode(self, y):
        """Standardise checked targets into a float32 tensor."""
        y = y.reshape(len(y), -1) - self.mean
        # What rounding left of a constant is nothing to be learned.
        y[np.abs(y) <= ROUNDING * np.abs(self.mean)] = 0.0
        y /= self.scale
        largest = np.abs(y).max(initial=0.0)
        if largest > LARGEST:
            # Rows held out, or of a later batch: the scale is that of others.
            raise ValueError(
                f"y must be within {LARGEST:.3g} standard deviations of the targets "
                f"learned from, to fit float32; got {largest:.3g}."
            )
        return torch.from_numpy(y.astype(np.float32))

    def decide(self, outputs):
        """Turn raw outputs into predictions, in double precision."""
        y = outputs.astype(np.float64) * self.scale + self.mean
        return y[:, 0] if self.one_dimensional else y

    def score(self, y, outputs, weights):
        """Return the coefficient of determination."""
        return r2_score(y, self.decide(outputs), sample_weight=weights)

    def output_affine(self):
        """Return scale and shift that turn network outputs into target units."""
        return self.scale, self.mean
