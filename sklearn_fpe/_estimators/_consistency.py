"""What must stay the same while training goes on, and what the data cannot teach."""

import warnings

import numpy as np

from sklearn_fpe._estimators._parameters import stack_level


def check_unchanged(estimator, recipe, learned, standardized):
    """Check that the parameters which shaped a network still describe it.

    Parameters
    ----------
    estimator : BaseFPE
        The estimator.
    recipe : Recipe
        What its parameters describe now.
    learned : Recipe
        What the network was made with.
    standardized : bool
        Whether the network was trained on standardised inputs.
    """
    before, now = learned.shape, recipe.shape
    pairs = {
        "hidden_layer_sizes": (before.hidden, now.hidden),
        "expansion": (before.expansion, now.expansion),
        "split": (learned.split, recipe.split),
        "feature_groups": (_plain(learned.groups), _plain(recipe.groups)),
        "prune": (learned.prune, recipe.prune),
        "skip_connection": (before.skip, now.skip),
        "budget": (learned.budget, recipe.budget),
        "activation": (learned.activation, recipe.activation),
        "standardize": (standardized, bool(estimator.standardize)),
    }
    for name, (old, new) in pairs.items():
        check_same(name, old, new)


def check_same_targets(made, learned):
    """Check that the parameters which shaped the targets are the same."""
    check_same("task", type(learned).__name__, type(made).__name__)
    weights = [getattr(targets, "class_weight", None) for targets in (learned, made)]
    check_same("class_weight", *weights)


def check_same(name, old, new):
    if old != new:
        old, new = (getattr(value, "name", value) for value in (old, new))
        raise ValueError(
            f"{name} must stay {old!r} to continue with the network that was made "
            f"with it, by warm_start or partial_fit, got {new!r}. Fit a clone to "
            f"start anew."
        )


def _plain(groups):
    return None if groups is None else np.asarray(groups, dtype=object).tolist()


def warn_constant(estimator, trainer):
    """Warn of columns that differ by rounding only, because they count as constant."""
    found = {"X": trainer.moments, "y": getattr(trainer.targets, "moments", None)}
    for name, moments in found.items():
        if moments is None:
            continue
        columns = np.flatnonzero(moments.constant() & ~moments.exactly_constant())
        if len(columns):
            names = vars(estimator).get("feature_names_in_") if name == "X" else None
            shown = columns.tolist() if names is None else names[columns].tolist()
            warnings.warn(
                f"The values of {name} in column {', '.join(map(str, shown[:5]))} "
                f"differ in the last digits of float64 only, so they count as "
                f"constant: subtract their mean before you store them.",
                UserWarning,
                stacklevel=stack_level(),
            )
