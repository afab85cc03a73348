"""Targets: what they are, and how the network sees them."""

from collections.abc import Callable
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe._engine._world import SINGLE
from sklearn_fpe._estimators import _together
from sklearn_fpe._estimators._inputs import LARGEST, NUMBERS, check_classes, check_range
from sklearn_fpe.nn import Affine
from sklearn_fpe.nn._state import choice, flag, record, require

SINGLE_SCALES = (1e-30, 1e30)
"""Smallest and largest standard deviation of targets that are predicted in float32."""

MAX_SINGLE_OFFSET = 1e4
"""Largest mean, in standard deviations, of targets that are predicted in float32.

Rounding is then less than a thousandth of the standard deviation.
"""


PLAIN_SIZES = (1e-100, 1e100)
"""Sizes of values whose squares float64 holds."""


class Link(NamedTuple):
    """How raw outputs become predictions, on the CPU and on other devices.

    Parameters
    ----------
    on_host : callable
        Maps targets and raw outputs, an ndarray, to predictions.
    on_device : callable
        Maps targets and raw outputs, a tensor, to a tensor on the same device, of which
        less has to be copied than of raw outputs.
    finish : callable, default=None
        Maps targets and that tensor, as an ndarray, to predictions; None: it is them.
    """

    on_host: Callable
    on_device: Callable
    finish: Callable | None = None


class ClassTargets:
    """Labels, or a 0/1 indicator matrix of several labels.

    Parameters
    ----------
    class_weight : dict, list of dict, "balanced" or None
        Weights of the classes, a dict from label to weight. For an indicator matrix, a
        list with a dict for every column, from 0 and 1 to weights, or a dict from the
        numbers of columns to such dicts. What is not named has weight 1.

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

    def to_state(self):
        """Return kind, classes and class weights by name."""
        names = ("kind", "classes", "class_weight")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(cls, state, name):
        """Make targets of what :meth:`to_state` returned, and check it."""
        kind, classes, weight = record(state, name, ("kind", "classes", "class_weight"))
        choice(kind, f"{name}.kind", ("binary", "multiclass", "multilabel"))
        labels = classes.tolist() if isinstance(classes, np.ndarray) else []
        try:
            # A label that is not above its neighbour has no place of its own.
            increasing = all(a < b for a, b in pairwise(labels))
        except TypeError:
            increasing = False
        n = len(labels)
        # The labels of an indicator matrix are its columns.
        is_range = n > 0 and labels == list(range(n))
        fits = {"binary": n == 2, "multiclass": n > 2, "multilabel": is_range}[kind]
        require(
            increasing and fits,
            f"{name}.classes of a {kind} problem must be as many labels as it has, in "
            f"increasing order",
            labels,
        )
        is_name = isinstance(weight, str) and weight == "balanced"
        require(
            weight is None or is_name or isinstance(weight, dict | list | tuple),
            f"{name}.class_weight must be a dict, a list, 'balanced' or None",
            weight,
        )
        targets = cls(weight)
        targets.kind, targets.classes = kind, classes
        return targets

    @property
    def loss(self):
        """Name of the loss."""
        return "softmax" if self.kind == "multiclass" else "sigmoid"

    @property
    def link(self):
        """Name of what maps outputs to probabilities."""
        return self.loss

    @property
    def default_scoring(self):
        """What early stopping watches: accuracy, or the loss for several labels.

        The accuracy of several labels counts rows without any error, which stays at 0
        in many epochs of many problems.
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
        y_type = _type_of(y, name)
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
            if multilabel and not np.array_equal(classes, seen):
                raise ValueError(
                    f"classes must be the numbers of the columns of {name}, {seen}, "
                    f"for a 0/1 indicator matrix, got {classes}."
                )
        if learn:
            labels = seen if classes is None else classes
            world.check_equal(
                f"{len(seen)} columns of 0 and 1" if multilabel else "labels",
                f"kinds of {name}",
            )
            if not multilabel:
                labels = _together.all_labels(world, labels)
            self._learn(labels, multilabel)
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
        if multilabel:
            is_known = len(seen) == len(self.classes)
        else:
            is_known = _are_among(seen, self.classes)
        if not is_known:
            raise ValueError(
                f"{name} must hold only the classes {self.classes}, got {seen}."
            )
        return y if multilabel else _as_dtype(y, self.classes.dtype)

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

    def row_weights(self, y, weights, world=SINGLE):
        """Multiply sample weights by the weights of the rows' classes.

        ``"balanced"`` counts the rows of all processes of a world. The weights of an
        indicator matrix belong to entries, see :meth:`entry_weights`.
        """
        if self.class_weight is None or self.kind == "multilabel":
            return weights
        if not isinstance(self.class_weight, (dict, str)):
            raise ValueError(
                f"class_weight must be a dict from label to weight, 'balanced' or None "
                f"for labels of shape (n_samples,), got {self.class_weight!r}."
            )
        used = weights > 0
        present = np.unique(y[used])
        if isinstance(self.class_weight, dict):
            self._check_numbers(self.class_weight)
            classes = self.classes
            of_class = _weights_by_label(self.class_weight, classes)
        else:
            # One process counts the classes in y only, as scikit-learn does.
            classes = present if world.size == 1 else self.classes
            codes = np.searchsorted(classes, y[used])
            of_class = _together.balanced_weights(world, classes, codes, weights[used])
        factor = np.zeros(len(y))
        factor[used] = of_class[np.searchsorted(classes, y[used])]
        if not factor.any():
            raise ValueError(
                f"class_weight must be positive for a class in y, got "
                f"{self.class_weight!r} for {present}."
            )
        with np.errstate(over="ignore"):
            factor *= weights
            total = factor.sum()
        if not np.isfinite(total):
            raise ValueError(
                f"class_weight times sample_weight must have a finite sum, got "
                f"{self.class_weight!r} and weights of up to {weights.max():g}."
            )
        return factor

    def label_weights(self, y, weights, world=SINGLE):
        """Return the weights of the entries 0 and 1 of an indicator matrix, by column.

        Parameters
        ----------
        y : ndarray of shape (n_samples, n_labels)
            Checked targets.
        weights : ndarray of shape (n_samples,)
            Sample weights; ``"balanced"`` counts every row as often as they say.
        world : World, default=SINGLE
            The processes whose rows ``"balanced"`` counts.

        Returns
        -------
        label_weights : ndarray of shape (n_labels, 2) or None
            None if there is no `class_weight`, or if the targets are labels.
        """
        if self.class_weight is None or self.kind != "multilabel":
            return None
        n_labels = len(self.classes)
        table = np.ones((n_labels, 2))
        if isinstance(self.class_weight, str):
            counts = np.stack([weights @ (y == 0), weights @ (y == 1)], axis=1)
            counts = world.total(counts, "frequencies of labels")
            total = world.total(weights.sum(), "sums of weights")
            # The weight is 1 where a column holds one class only, as it is for labels.
            both = (counts > 0).all(axis=1)
            table[both] = total / (2 * counts[both])
            return table
        for column, of_column in self._by_column(n_labels):
            self._check_numbers(of_column)
            for entry, weight in of_column.items():
                if entry not in (0, 1):
                    raise ValueError(
                        f"class_weight must map 0 and 1 to weights in every column of "
                        f"a multi-label y, got the key {entry!r} in column {column}."
                    )
                table[int(column), int(entry)] = weight
        if not table[np.arange(n_labels), y.astype(np.intp)][weights > 0].any():
            raise ValueError(
                f"class_weight must be positive for an entry of y, got "
                f"{self.class_weight!r}."
            )
        return table

    def entry_weights(self, y, weights, world=SINGLE):
        """Return a weight for every entry of an indicator matrix, or None.

        The loss must multiply the binary cross-entropy of every entry by its weight
        before it sums over the columns. scikit-learn multiplies the weights of a row
        over its columns instead, which would let a label weight the loss of another.
        Let W be the entry weights times the sample weights as a column. The loss of
        all rows is then the sum of ``W / W.mean()`` times the cross-entropies, divided
        by the number of rows, so that a common factor of the weights changes nothing.

        Returns
        -------
        entry_weights : ndarray of float32 of shape (n_samples, n_labels) or None
        """
        table = self.label_weights(y, weights, world)
        if table is None:
            return None
        table = table.astype(np.float32)
        return np.where(np.asarray(y) > 0, table[:, 1], table[:, 0])

    def _by_column(self, n_labels):
        """Yield pairs of a column's number and its dict of weights."""
        given = self.class_weight
        pairs = list(given.items() if isinstance(given, dict) else enumerate(given))
        is_complete = isinstance(given, dict) or len(pairs) == n_labels
        if not is_complete or not all(isinstance(d, dict) for _, d in pairs):
            raise ValueError(
                f"class_weight must be 'balanced', a list of {n_labels} dicts from 0 "
                f"and 1 to weights, one for each column of a multi-label y, or a dict "
                f"from columns to such dicts, got {given!r}."
            )
        for column, of_column in pairs:
            if column not in range(n_labels):
                raise ValueError(
                    f"class_weight must name columns of y from 0 to {n_labels - 1}, "
                    f"got {column!r}."
                )
            yield column, of_column

    def _check_numbers(self, weights):
        """Check a dict from classes to weights."""
        for label, weight in weights.items():
            if not isinstance(weight, Real):
                raise ValueError(
                    f"class_weight must map every label to a number, got {weight!r} "
                    f"for {label!r}."
                )
            if not 0 <= weight < np.inf:
                raise ValueError(
                    f"class_weight must be finite and not negative, got {weight!r} for "
                    f"{label!r}."
                )

    def learn_scale(self, y, weights, world=SINGLE):
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

    def codes(self, outputs):
        """Turn raw outputs, a tensor, into encoded targets on the same device."""
        if self.kind == "multiclass":
            return outputs.argmax(dim=1)
        return (outputs > 0).long()

    def decide(self, outputs):
        """Turn raw outputs into predicted targets."""
        if self.kind == "multiclass":
            return self.classes[outputs.argmax(axis=1)]
        if self.kind == "binary":
            return self.classes[(outputs[:, 0] > 0).astype(np.intp)]
        return (outputs > 0).astype(np.int64)

    def decode(self, codes):
        """Turn encoded targets, an ndarray, back into labels."""
        if self.kind == "multilabel":
            return codes.astype(np.int64)
        return self.classes[codes.reshape(len(codes)).astype(np.intp)]

    def probabilities(self, outputs):
        """Turn raw outputs into probabilities, (n_samples, n_classes)."""
        return self.tensor_of_probabilities(torch.from_numpy(outputs)).numpy()

    def tensor_of_probabilities(self, logits):
        """Turn raw outputs, a tensor, into probabilities on the same device."""
        if self.kind == "multiclass":
            return torch.softmax(logits, dim=1)
        if self.kind == "binary":
            # Both are computed: the rest of a probability near 1 would be rounded.
            return torch.sigmoid(torch.cat([-logits, logits], dim=1))
        return torch.sigmoid(logits)

    def log_probabilities(self, outputs):
        """Turn raw outputs into logarithms of probabilities, without underflow.

        Where the probability rounds to 1, its logarithm is 0.
        """
        return self.tensor_of_log_probabilities(torch.from_numpy(outputs)).numpy()

    def tensor_of_log_probabilities(self, logits):
        """Turn raw outputs, a tensor, into logarithms, on the same device."""
        if self.kind == "multiclass":
            log_p = torch.log_softmax(logits, dim=1)
        else:
            if self.kind == "binary":
                logits = torch.cat([-logits, logits], dim=1)
            log_p = torch.nn.functional.logsigmoid(logits)
        resolution = torch.finfo(log_p.dtype).eps
        return log_p.masked_fill_(log_p > -resolution, 0.0)

    def score(self, y, predicted, weights, world=SINGLE):
        """Return the accuracy, over the rows of all processes of a world."""
        score = accuracy_score(y, predicted, sample_weight=weights)
        return world.mean(score, weights.sum(), "scores")

    def output_affine(self):
        """Return location and scale of the targets: labels have none."""
        return Affine.identity(self.n_columns)


LABELS = Link(ClassTargets.decide, ClassTargets.codes, ClassTargets.decode)
PROBABILITIES = Link(ClassTargets.probabilities, ClassTargets.tensor_of_probabilities)
LOG_PROBABILITIES = Link(
    ClassTargets.log_probabilities, ClassTargets.tensor_of_log_probabilities
)


def _weights_by_label(class_weight, classes):
    """Return the weights that a dict gives to classes, 1 to those it does not name.

    scikit-learn's ``compute_class_weight`` would look up the number 1 for the label
    "1", and takes no dates.
    """
    others = [label for label in classes if label not in class_weight]
    if others and len(classes) - len(others) < len(class_weight):
        raise ValueError(
            f"The classes, {np.array(others).tolist()}, are not in class_weight, got "
            f"{class_weight!r}."
        )
    return np.array([float(class_weight.get(label, 1)) for label in classes])


def _type_of(y, name):
    """Return scikit-learn's name of the type of labels, after its checks."""
    check_classification_targets(y)
    return type_of_target(y, input_name=name)


def _are_among(labels, classes):
    """Tell whether all labels are classes; 1 is not "1"."""
    both_numbers = {labels.dtype.kind, classes.dtype.kind} <= set(NUMBERS)
    both_strings = {labels.dtype.kind, classes.dtype.kind} <= set("UO")
    if both_numbers or both_strings or labels.dtype.kind == classes.dtype.kind:
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


def r2(y, predicted, weights):
    """Return the coefficient of determination, for any size that float64 holds.

    Both are divided by a power of two, which changes no digit, because the squares of
    large values would overflow. It is -inf where the errors are too large beside the
    variance of y for float64.
    """
    # As Python's float, because 1e100 is too large for NumPy's float32.
    size = float(max(np.abs(y).max(initial=0.0), np.abs(predicted).max(initial=0.0)))
    unit = 1.0
    if not PLAIN_SIZES[0] < size < PLAIN_SIZES[1] and 0 < size < np.inf:
        unit = 2.0 ** (np.frexp(size)[1] - 1)
    with np.errstate(over="ignore"):
        return float(r2_score(y / unit, predicted / unit, sample_weight=weights))


class RealTargets:
    """Real targets, one column or several, standardised for the network.

    Attributes
    ----------
    n_columns : int
        Columns of the targets.
    one_dimensional : bool
        Whether y was given as shape (n_samples,).
    affine : Affine
        Weighted mean and standard deviation (1 where constant) of all rows learned.
    moments : Moments or None
        Their running statistics; None: `affine` does not change any more.
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
        """Make targets of what :meth:`to_state` returned, and check it."""
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
        if learn:
            world.check_equal(y.shape[1:], f"shapes of the rows of {name}")
            self.one_dimensional = y.ndim == 1
            self.n_columns = 1 if y.ndim == 1 else y.shape[1]
            self.moments = Moments(self.n_columns)
            self.affine = Affine.identity(self.n_columns)
        elif (1 if y.ndim == 1 else y.shape[1]) != self.n_columns:
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
        """Return what a hold-out is stratified by: nothing."""
        return None

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
        """Turn raw outputs, a tensor, into encoded targets: they are the same."""
        return outputs

    def decode(self, codes):
        """Turn encoded targets, an ndarray, back into the units of the targets."""
        return self.decide(codes)

    def decide(self, outputs):
        """Turn raw outputs into predictions, in double precision.

        Where float64 cannot hold the units of the targets, they are infinite.
        """
        with np.errstate(over="ignore"):
            y = self.affine.undo(outputs.astype(np.float64))
        return y[:, 0] if self.one_dimensional else y

    def fit_single(self):
        """Tell whether float32 can hold predictions in the units of the targets."""
        mean, scale = np.abs(self.affine.mean), self.affine.scale
        least, most = SINGLE_SCALES
        fit = (mean / MAX_SINGLE_OFFSET <= scale) & (scale >= least)
        return bool((fit & (scale <= most)).all())

    def score(self, y, predicted, weights, world=SINGLE):
        """Return the coefficient of determination, over the rows of all processes."""
        if world.size > 1:
            return _together.r2_of_all(world, y, predicted, weights)
        return r2(y, predicted, weights)

    def output_affine(self):
        """Return location and scale of the targets."""
        return self.affine


def targets_from_state(state, name):
    """Make targets of what their ``to_state`` returned, and check it.

    `name` is that of the targets in messages.
    """
    is_real = isinstance(state, dict) and "one_dimensional" in state
    return (RealTargets if is_real else ClassTargets).from_state(state, name)
