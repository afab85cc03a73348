"""What the processes of one fit have to agree on, and what they reduce."""

import reprlib

import joblib
import numpy as np

from sklearn_fpe._engine._moments import Moments
from sklearn_fpe._engine._views import View
from sklearn_fpe._engine._world import digest
from sklearn_fpe._estimators._parameters import plain

OF_PROCESS = {"device", "verbose", "distributed"}
"""Parameters that processes may choose on their own."""


def check_supported(estimator):
    """Check that a fit on several processes has no parameter that acts on one."""
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
    """Check that all processes make the same call.

    Parameters
    ----------
    estimator : BaseFPE
        The estimator; its parameters are compared.
    world : World
        The processes.
    device : torch.device
        Where this one computes; the types are compared.
    learned : Learned or None
        What the call continues from.
    given : dict of bool
        Optional arguments, and whether they were given.
    """
    if world.size == 1:
        return
    facts = {"class": type(estimator).__name__, "device type": device.type}
    facts |= {f"argument {name}": is_given for name, is_given in given.items()}
    facts["model to continue from"] = None
    if learned is not None:
        facts["model to continue from"] = digest(learned.network.state_dict().values())
    facts = {name: (fact, repr(fact)) for name, fact in facts.items()}
    for name, value in estimator.get_params(deep=False).items():
        if name not in OF_PROCESS:
            facts[f"parameter {name}"] = _described(name, value)
    check_equal_facts(world, facts)


def check_columns(estimator, world):
    """Check that all processes have learned the same columns of X."""
    if world.size == 1:
        return
    names = vars(estimator).get("feature_names_in_")
    names = None if names is None else list(names)
    n_columns = estimator.n_features_in_
    facts = {
        "number of columns of X": (n_columns, n_columns),
        "names of the columns of X": (names, reprlib.repr(names)),
    }
    check_equal_facts(world, facts)


def check_equal_facts(world, facts):
    """Compare facts with those of process 0; name the first that differs.

    Parameters
    ----------
    world : World
        The processes.
    facts : dict
        Pairs of a value to compare and a text to show, by name.
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
    """Return a hash that is equal where values of a parameter are, and a text."""
    value = plain(value)
    text = reprlib.repr(value)
    if name == "random_state" and not isinstance(value, int):
        return "not an integer", text  # the seeds are those of process 0
    try:
        return joblib.hash(value), text
    except Exception:  # what cannot be pickled, such as a lambda, is not compared
        return type(value).__name__, text


def all_labels(world, seen):
    """Return the sorted labels of all processes.

    Parameters
    ----------
    world : World
        The processes.
    seen : ndarray of shape (n_labels,)
        Sorted labels of this process.
    """
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
    """Return weights inversely proportional to the frequencies of all processes.

    Parameters
    ----------
    world : World
        The processes.
    classes : ndarray of shape (n_classes,)
        All classes.
    codes : int ndarray of shape (n_rows,)
        Class numbers of the rows of this process.
    weights : ndarray of shape (n_rows,)
        Their weights.

    Returns
    -------
    of_class : ndarray of shape (n_classes,)
        0 for classes without a row.
    """
    counts = np.bincount(codes, weights, minlength=len(classes))
    counts = world.total(counts, "class frequencies")
    present = counts > 0
    of_class = np.zeros(len(classes))
    of_class[present] = counts.sum() / (present.sum() * counts[present])
    return of_class


def split_off(n_rows, share, strata, seed):
    """Draw rows to hold out on one of several processes.

    Unlike scikit-learn's, the stratified draw never fails where a class is rare, as it
    may be in the rows of one process: the rows are sorted by class, in random order
    within a class, and taken at equal distances.

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
    """Return the coefficient of determination over the rows of all processes.

    The mean over columns, as ``sklearn.metrics.r2_score`` returns it.
    """
    y, predicted = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
    # Divided by a power of two, because the squares of large values overflow.
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
