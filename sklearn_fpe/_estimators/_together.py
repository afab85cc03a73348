"""Checks and reductions over the processes that fit one model together."""

import itertools
import reprlib

import joblib
import numpy as np

from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe._engine._world import digest
from sklearn_fpe._estimators._parameters import plain

OF_PROCESS = {"device", "verbose", "distributed"}
"""Parameters that may differ between processes."""


def check_supported(estimator):
    """Raise if a parameter is set that acts on one process only."""
    if estimator.skorch_callbacks:
        raise ValueError(
            "distributed=True does not support skorch_callbacks, because they would "
            "act on one process only: set skorch_callbacks=None."
        )
    if estimator.memory is not None:
        raise ValueError(
            "distributed=True does not support memory, because a warm-up that one "
            "process takes from its cache would have to be trained by the others: set "
            "memory=None."
        )


def check_alike(estimator, world, device, learned, given):
    """Raise if the processes do not make the same call.

    Compared are the parameters of the estimator, the type of the device, the model
    `learned` (or None) that training continues from, and whether each of the optional
    arguments was given, `given`.
    """
    if world.size == 1:
        return
    facts = {"class": type(estimator).__name__, "device type": device.type}
    facts |= {f"argument {name}": is_given for name, is_given in given.items()}
    facts["model to continue from"] = None
    if learned is not None:
        # As dense matrices, because a loaded model may have other layer classes.
        maps = learned.network.maps
        weights = [(m.dense_weight(), m.dense_mask(), m.dense_bias()) for m in maps]
        facts["model to continue from"] = digest(itertools.chain(*weights))
    facts = {name: (fact, repr(fact)) for name, fact in facts.items()}
    for name, value in estimator.get_params(deep=False).items():
        if name not in OF_PROCESS:
            facts[f"parameter {name}"] = _described(name, value)
    _check_equal(world, facts)


def check_columns(estimator, world):
    """Raise if the processes have learned different columns of X."""
    if world.size == 1:
        return
    names = vars(estimator).get("feature_names_in_")
    names = None if names is None else list(names)
    n_columns = estimator.n_features_in_
    facts = {
        "number of columns of X": (n_columns, n_columns),
        "names of the columns of X": (names, reprlib.repr(names)),
    }
    _check_equal(world, facts)


def _check_equal(world, facts):
    """Raise if a fact differs from that of process 0.

    `facts` maps names to pairs: a value to compare and a text for the message.
    """
    everyone = world.gather(facts, "parameters and arguments")
    for rank, others in enumerate(everyone):
        for name, (value, text) in everyone[0].items():
            other, other_text = others.get(name, (None, "none"))
            if other != value:
                raise ValueError(
                    f"All processes must make the same call, but the {name} differs: "
                    f"process 0 has {text}, process {rank} has {other_text}."
                )


def _described(name, value):
    """Return a hash of the value of a parameter, to compare it, and a text."""
    value = plain(value)
    text = reprlib.repr(value)
    if name == "random_state" and not isinstance(value, int):
        return "not an integer", text  # because all take the seeds of process 0
    try:
        return joblib.hash(value), text
    except Exception:  # a lambda, for example, cannot be pickled: compare its type
        return type(value).__name__, text


def all_labels(world, seen):
    """Return the sorted labels of all processes, given those of this process."""
    if world.size == 1:
        return seen
    everyone = world.gather(seen, "labels")
    kinds = [_kind(labels.dtype) for labels in everyone]
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"y must hold labels of one kind in all processes, but process 0 has "
                f"{everyone[0].dtype} and process {rank} has {everyone[rank].dtype}."
            )
    return np.unique(np.concatenate(everyone))


def _kind(dtype):
    return next((kind for kind in ("biuf", "UO") if dtype.kind in kind), dtype.kind)


def balanced_weights(world, classes, codes, weights):
    """Return class weights inversely proportional to the frequencies everywhere.

    Parameters
    ----------
    world : World
        The processes.
    classes : ndarray of shape (n_classes,)
        All classes.
    codes, weights : ndarrays of shape (n_rows,)
        Class numbers and weights of the rows of this process.

    Returns
    -------
    of_class : ndarray of shape (n_classes,)
        Weights; 0 for classes without a row.
    """
    counts = np.bincount(codes, weights, minlength=len(classes))
    counts = world.total(counts, "class frequencies")
    present = counts > 0
    of_class = np.zeros(len(classes))
    of_class[present] = counts.sum() / (present.sum() * counts[present])
    return of_class


def split_off(n_rows, share, strata, seed):
    """Draw rows to hold out on one of several processes.

    The rows are sorted by class, shuffled within a class, and taken at equal distances.
    scikit-learn's stratified split would fail if a process had one row of a class.

    Parameters
    ----------
    n_rows : int
        Rows of this process.
    share : float in (0, 1)
        Share to hold out, rounded up; at least one row stays to train on.
    strata : array-like of shape (n_rows,) or None
        Classes.
    seed : tuple of int
        Seed of the draw.

    Returns
    -------
    train, held : int ndarray
        Row numbers, in increasing order.

    Raises
    ------
    ValueError
        If there are less than two rows.
    """
    if n_rows < 2:
        raise ValueError(
            f"early_stopping needs at least two rows of positive weight in every "
            f"process, one to train and one to validate on, got {n_rows}: give X_val "
            f"and y_val."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_rows)
    if strata is not None:
        codes = np.unique(strata, return_inverse=True)[1]
        order = order[np.argsort(codes[order], kind="stable")]
    n_held = min(int(np.ceil(share * n_rows)), n_rows - 1)
    places = ((np.arange(n_held) + rng.random()) * n_rows / n_held).astype(np.intp)
    return np.sort(np.delete(order, places)), np.sort(order[places])


def r2_of_all(world, y, predicted, weights):
    """Return ``sklearn.metrics.r2_score`` over the rows of all processes."""
    y, predicted = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
    # Divide by a power of two, because the squares of large values overflow.
    largest = max(world.gather(max(np.abs(y).max(), np.abs(predicted).max()), "sizes"))
    unit = 2.0 ** (np.frexp(largest)[1] - 1) if 0 < largest < np.inf else 1.0
    y, predicted = y / unit, predicted / unit
    moments = Moments(y.shape[1]).update(View(y), weights, "y", world=world)
    missed = weights @ ((y - predicted) / moments.unit) ** 2
    missed = world.total(missed, "squared errors")
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = 1 - missed / moments.m2
    # As scikit-learn scores constant targets.
    scores = np.where(moments.m2 > 0, scores, np.where(missed > 0, 0.0, 1.0))
    return float(scores.mean())
