"""The targets: labels, or location and scale of real values."""

import reprlib
from itertools import pairwise

from sklearn_fpe._persistence import _statistics
from sklearn_fpe._persistence._checks import ModelFileError, choice, record
from sklearn_fpe._persistence._values import CannotSaveError, decode_array, encode_array
from sklearn_fpe._targets import RealTargets


def describe(targets):
    """Return what JSON can hold of targets, and their arrays by name."""
    if isinstance(targets, RealTargets):
        arrays = _statistics.describe(targets, "targets")
        arrays |= _statistics.describe_moments(targets.moments, "targets.moments")
        return {"one_dimensional": targets.one_dimensional}, arrays
    try:
        return {"kind": targets.kind, "classes": encode_array(targets.classes)}, {}
    except CannotSaveError as error:
        raise ValueError(f"The class labels cannot be saved: {error}.") from error


def rebuild(described, arrays, estimator):
    """Make the targets that a file describes.

    Parameters
    ----------
    described : object
        What stood in JSON.
    arrays : Arrays
        The arrays; those of the targets are taken.
    estimator : BaseFPE
        What it says of the kind of its targets is checked already.
    """
    try:
        targets = estimator._make_targets()
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    if isinstance(targets, RealTargets):
        _fill_real(targets, described, arrays)
    else:
        _fill_labels(targets, described)
    return targets


def _fill_labels(targets, described):
    kind, classes = record(described, ("kind", "classes"), "The targets")
    targets.kind = choice(kind, ("binary", "multiclass", "multilabel"), "The kind")
    targets.classes = decode_array(classes, "The classes")
    _check_classes(targets.classes, kind)
    if isinstance(targets.class_weight, dict):
        weights = targets.class_weight.values()
        if not all(type(w) in (int, float) and w >= 0 for w in weights):
            raise ModelFileError(
                f"class_weight must have weights of at least 0, got "
                f"{reprlib.repr(targets.class_weight)}."
            )


def _fill_real(targets, described, arrays):
    (flag,) = record(described, ["one_dimensional"], "The targets")
    mean, scale = _statistics.rebuild(arrays, "targets")
    if type(flag) is not bool or flag > (len(mean) == 1):
        raise ModelFileError(
            "one_dimensional must be a bool, false for several columns."
        )
    targets.one_dimensional, targets.n_columns = flag, len(mean)
    targets.mean, targets.scale = mean, scale
    targets.moments = _statistics.rebuild_moments(arrays, "targets.moments", len(mean))


def _check_classes(classes, problem):
    try:
        # A label that is equal to its neighbour or below it has no place of its own.
        increasing = all(a < b for a, b in pairwise(classes))
    except TypeError:
        increasing = False
    n = len(classes)
    fits = {
        "binary": n == 2,
        "multiclass": n > 2,
        # The labels of an indicator matrix are its columns.
        "multilabel": n > 0 and classes.tolist() == list(range(n)),
    }
    if not increasing or not fits[problem]:
        raise ModelFileError(
            f"The classes of a {problem} problem must be as many labels as it has, in "
            f"increasing order, got {n}: {reprlib.repr(classes.tolist())}."
        )
