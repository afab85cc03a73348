"""Targets: what they are, and how the network sees them."""

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target


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

    def check(self, y, weights, *, learn, classes=None):
        """Check targets and, if `learn`, learn the classes of positive weight."""
        check_classification_targets(y)
        y_type = type_of_target(y, input_name="y")
        if y_type == "multilabel-indicator":
            y = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
            if learn:
                self.kind, self.classes = "multilabel", np.arange(y.shape[1])
            elif self.kind != "multilabel" or y.shape[1] != len(self.classes):
                raise ValueError(
                    f"y must have the form it was first fitted with, {self.kind} of "
                    f"{len(self.classes)} classes, got {y.shape[1]} label columns."
                )
            return y
        if y_type == "multiclass-multioutput":
            raise ValueError(
                "y must be labels of shape (n_samples,) or a 0/1 indicator matrix of "
                f"shape (n_samples, n_labels), got {y_type} of shape {y.shape}."
            )
        y = column_or_1d(y, warn=True)
        seen = np.unique(y[weights > 0])
        if learn:
            self.classes = seen if classes is None else np.unique(classes)
            if len(self.classes) < 2:
                raise ValueError(
                    f"y must hold at least two classes, got 1 class: {self.classes}."
                )
            self.kind = "binary" if len(self.classes) == 2 else "multiclass"
        elif self.kind == "multilabel":
            raise ValueError(
                f"y must be an indicator matrix of {len(self.classes)} labels, as it "
                f"was first fitted with, got labels of shape {y.shape}."
            )
        unknown = np.setdiff1d(seen, self.classes)
        if len(unknown):
            raise ValueError(
                f"y must hold only the classes {self.classes}, got {unknown} too."
            )
        return y

    def row_weights(self, y, weights):
        """Multiply sample weights by class weights."""
        if self.class_weight is None:
            return weights
        if self.kind == "multilabel":
            raise ValueError(
                f"class_weight must be None for a multi-label y, got "
                f"{self.class_weight!r}; use sample_weight."
            )
        factor = np.zeros(len(y))
        used = weights > 0
        factor[used] = compute_sample_weight(self.class_weight, y[used])
        return weights * factor

    def learn_scale(self, y, weights):
        """Do nothing: labels have no scale."""

    def strata(self, y):
        """Return what a hold-out is stratified by."""
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
        Weighted mean and standard deviation (1 where constant).
    """

    y_numeric = True
    loss = "squared"

    def check(self, y, weights, *, learn, classes=None):
        """Check targets and, if `learn`, learn their shape."""
        y = np.asarray(y, dtype=np.float64)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if learn:
            self.one_dimensional = y.ndim == 1
            self.n_columns = 1 if y.ndim == 1 else y.shape[1]
            self.mean = np.zeros(self.n_columns)
            self.scale = np.ones(self.n_columns)
        elif (1 if y.ndim == 1 else y.shape[1]) != self.n_columns:
            raise ValueError(
                f"y must have {self.n_columns} columns, as it was first fitted with, "
                f"got shape {y.shape}."
            )
        return y

    def row_weights(self, y, weights):
        """Return the sample weights."""
        return weights

    def learn_scale(self, y, weights):
        """Learn location and scale of the targets."""
        y = y.reshape(len(y), -1)
        self.mean = np.average(y, axis=0, weights=weights)
        scale = np.sqrt(np.average((y - self.mean) ** 2, axis=0, weights=weights))
        constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(self.mean)
        self.scale = np.where(constant | (scale == 0), 1.0, scale)

    def strata(self, y):
        """Return what a hold-out is stratified by: nothing."""
        return None

    def encode(self, y):
        """Standardise checked targets into a float32 tensor."""
        y = (y.reshape(len(y), -1) - self.mean) / self.scale
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
