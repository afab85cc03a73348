"""Class labels as targets, and predictions made of raw outputs."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from sklearn_fpe._engine._world import SINGLE
from sklearn_fpe._estimators import _class_weights, _together
from sklearn_fpe._estimators._arrays import NUMBERS
from sklearn_fpe._estimators._inputs import check_classes
from sklearn_fpe._estimators._real_targets import RealTargets
from sklearn_fpe.nn import Affine
from sklearn_fpe.nn._state import choice, record, require

FIELDS = ("kind", "classes", "class_weight")


class ClassTargets:
    """Labels, or a 0/1 indicator matrix of several labels.

    :meth:`check` learns `kind`, one of "binary", "multiclass" and "multilabel", and
    `classes`, the sorted labels, or the numbers of the columns of an indicator matrix.
    """

    y_numeric = False
    rows_to_score = 1

    def __init__(self, class_weight=None):
        self.class_weight = class_weight

    def to_state(self):
        """Return kind, classes and class weights by name."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def from_state(cls, state, name):
        """Make targets of the result of :meth:`to_state`, and check it."""
        kind, classes, weight = record(state, name, FIELDS)
        choice(kind, f"{name}.kind", ("binary", "multiclass", "multilabel"))
        labels = classes.tolist() if isinstance(classes, np.ndarray) else []
        try:
            # Strictly, because labels are found by bisection.
            increasing = all(a < b for a, b in pairwise(labels))
        except TypeError:
            increasing = False
        n = len(labels)
        is_range = n > 0 and labels == list(range(n))
        fits = {"binary": n == 2, "multiclass": n > 2, "multilabel": is_range}[kind]
        require(
            increasing and fits,
            f"{name}.classes of a {kind} problem must be as many labels as it has, in "
            f"increasing order",
            labels,
        )
        is_name = isinstance(weight, str) and weight == "balanced"
        fits = is_name or isinstance(weight, dict | list | tuple | None)
        message = f"{name}.class_weight must be a dict, a list, 'balanced' or None"
        require(fits, message, weight)
        targets = cls(weight)
        targets.kind, targets.classes = kind, classes
        return targets

    @property
    def loss(self):
        """Name of the loss."""
        return "softmax" if self.kind == "multiclass" else "sigmoid"

    # The function that maps outputs to probabilities has the same name.
    link = loss

    @property
    def default_scoring(self):
        """What early stopping watches; None is the accuracy.

        That of several labels, the share of rows without any error, often stays at 0.
        """
        return "loss" if self.kind == "multilabel" else None

    @property
    def n_columns(self):
        """Columns of the network's output."""
        return 1 if self.kind == "binary" else len(self.classes)

    def check(self, y, weights, *, learn, classes=None, name="y", world=SINGLE):
        """Check targets and, if `learn`, learn the classes of positive weight.

        The classes are those of all processes of a world.
        """
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
            if not ((y == 0) | (y == 1)).all():
                raise ValueError(
                    f"{name} must be a 0/1 indicator matrix if it has several columns, "
                    f"got the values {np.unique(y)}."
                )
            seen = np.arange(y.shape[1])
        else:
            y = column_or_1d(y, warn=True)
            seen = np.unique(y[weights > 0])
        if classes is not None:
            classes = check_classes(classes)
            if learn and multilabel and not np.array_equal(classes, seen):
                raise ValueError(
                    f"classes must be the numbers of the columns of {name}, {seen}, "
                    f"for a 0/1 indicator matrix, got {classes}."
                )
        if learn:
            what = f"{len(seen)} columns of 0 and 1" if multilabel else "labels"
            world.check_equal(what, f"kinds of {name}")
            self._learn(seen if classes is None else classes, multilabel, world)
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
        are_known = np.array_equal if multilabel else _are_among
        if not are_known(seen, self.classes):
            raise ValueError(
                f"{name} must hold only the classes {self.classes}, got {seen}."
            )
        return y if multilabel else _as_dtype(y, self.classes.dtype)

    def _learn(self, classes, multilabel, world):
        if multilabel:
            self.kind, self.classes = "multilabel", classes
            return
        self.classes = _together.all_labels(world, classes)
        if len(self.classes) < 2:
            raise ValueError(
                f"y must hold at least two classes, got 1 class: {self.classes}."
            )
        self.kind = "binary" if len(self.classes) == 2 else "multiclass"

    def row_weights(self, y, weights, world=SINGLE):
        """Multiply sample weights by those of labels, not of an indicator matrix."""
        if self.class_weight is None or self.kind == "multilabel":
            return weights
        given, classes = self.class_weight, self.classes
        return _class_weights.weigh_rows(given, classes, y, weights, world)

    def entry_weights(self, y, weights, world=SINGLE):
        """Return float32 weights of the entries of an indicator matrix, or None.

        scikit-learn gives a row the product of the weights of its entries, which would
        let a label weight the loss of another. Instead the loss weights every entry: it
        is the sum of ``W / W.mean()`` times the cross-entropies, divided by the number
        of rows, where W is the entry weights times the sample weights as a column.
        """
        if self.class_weight is None or self.kind != "multilabel":
            return None
        given = self.class_weight
        table = _class_weights.weights_by_column(given, y, weights, world)
        zero, one = table.astype(np.float32).T
        return np.where(np.asarray(y) > 0, one, zero)

    def learn_scale(self, y, weights, world=SINGLE):
        """Do nothing: labels have no scale."""

    def constant(self):
        """Tell which columns are constant: none."""
        return np.zeros(self.n_columns, dtype=bool)

    def strata(self, y):
        """Return the classes, by which a hold-out is stratified."""
        return None if self.kind == "multilabel" else y

    def encode(self, y):
        """Turn checked targets into a tensor for the loss."""
        if self.kind == "multilabel":
            return torch.from_numpy(np.asarray(y, dtype=np.float32))
        codes = np.searchsorted(self.classes, y)
        if self.kind == "binary":
            return torch.from_numpy(codes.astype(np.float32)[:, None])
        return torch.from_numpy(codes.astype(np.int64))

    def codes(self, outputs):
        """Turn raw outputs, a tensor or an ndarray, into encoded targets."""
        return outputs.argmax(1) if self.kind == "multiclass" else outputs > 0

    def decode(self, codes):
        """Turn encoded targets, an ndarray, into labels or an indicator matrix."""
        if self.kind == "multilabel":
            return codes.astype(np.int64)
        codes = codes if self.kind == "multiclass" else codes[:, 0]
        return self.classes[codes.astype(np.intp, copy=False)]

    def decide(self, outputs):
        """Turn raw outputs, an ndarray, into predicted targets."""
        return self.decode(self.codes(outputs))

    def probabilities(self, outputs):
        """Turn raw outputs, an ndarray, into probabilities."""
        return PROBABILITIES.on_host(self, outputs)

    def tensor_of_probabilities(self, logits):
        """Turn raw outputs into probabilities, (n_samples, n_classes)."""
        # Both of two classes, because 1 - p would be rounded where p is near 1.
        logits = self._of_all_classes(logits)
        return logits.softmax(1) if self.kind == "multiclass" else logits.sigmoid()

    def tensor_of_log_probabilities(self, logits):
        """Turn raw outputs into logarithms of probabilities, without underflow.

        Where the probability rounds to 1, its logarithm is 0.
        """
        logits = self._of_all_classes(logits)
        if self.kind == "multiclass":
            log_p = logits.log_softmax(1)
        else:
            log_p = torch.nn.functional.logsigmoid(logits)
        resolution = torch.finfo(log_p.dtype).eps
        return log_p.masked_fill_(log_p > -resolution, 0.0)

    def _of_all_classes(self, logits):
        """Return a column for every class or label, not one for two classes."""
        return torch.cat([-logits, logits], 1) if self.kind == "binary" else logits

    def score(self, y, predicted, weights, world=SINGLE):
        """Return the accuracy, over the rows of all processes of a world."""
        score = accuracy_score(y, predicted, sample_weight=weights)
        return world.mean(score, weights.sum(), "scores")

    def output_affine(self):
        """Return location and scale of the targets: labels have none."""
        return Affine.identity(self.n_columns)


class Link(NamedTuple):
    """A kind of prediction that is made of raw outputs.

    `on_device` maps targets and raw outputs, a tensor, to a tensor on the same device,
    and `finish` maps targets and its copy, an ndarray, to predictions, if these differ.
    Where there is a `finish`, `on_device` takes an ndarray as well.
    """

    on_device: Callable
    finish: Callable | None = None

    def on_host(self, targets, outputs):
        """Turn raw outputs, an ndarray, into predictions."""
        if self.finish is not None:
            return self.finish(targets, self.on_device(targets, outputs))
        return self.on_device(targets, torch.from_numpy(outputs)).numpy()


LABELS = Link(ClassTargets.codes, ClassTargets.decode)
PROBABILITIES = Link(ClassTargets.tensor_of_probabilities)
LOG_PROBABILITIES = Link(ClassTargets.tensor_of_log_probabilities)


def _are_among(labels, classes):
    """Tell whether all labels are classes; 1 is not "1"."""
    kinds = {labels.dtype.kind, classes.dtype.kind}
    if len(kinds) == 1 or kinds <= set(NUMBERS) or kinds <= set("UO"):
        return np.isin(_as_dtype(labels, classes.dtype), classes).all()
    return False


def _as_dtype(labels, dtype):
    """Give numeric labels the dtype of the classes if that changes none of them.

    NumPy compares unsigned with signed integers, and integers with floats, as float64,
    which cannot tell large integers apart.
    """
    if labels.dtype == dtype or not {labels.dtype.kind, dtype.kind} <= set(NUMBERS):
        return labels
    with np.errstate(invalid="ignore", over="ignore"):
        converted = labels.astype(dtype)
        unchanged = (converted == labels) & (converted.astype(labels.dtype) == labels)
    return converted if unchanged.all() else labels


def targets_from_state(state, name):
    """Make targets of the result of their ``to_state``, and check it.

    `name` is that of the targets in messages.
    """
    is_real = isinstance(state, dict) and "one_dimensional" in state
    return (RealTargets if is_real else ClassTargets).from_state(state, name)
