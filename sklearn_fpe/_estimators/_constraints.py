"""The parameters: the values they may take, and their role in a cached warm-up."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
)

from sklearn_fpe.nn import Activation, PruneRule, SplitRule
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

CONSTRAINTS: dict[str, list] = {
    "hidden_layer_sizes": [
        "array-like",
        Interval(Integral, 1, None, closed="left"),
    ],
    "expansion": ["array-like", Interval(Integral, 1, None, closed="left")],
    "split": [StrOptions({"auto", *SPLITS}), SplitRule, callable],
    "feature_groups": ["array-like", None],
    "prune": [StrOptions({"auto", *PRUNES}), PruneRule],
    "warmup": [
        Interval(Integral, 0, None, closed="left"),
        Interval(Real, 0, 1, closed="both"),
    ],
    "budget": [Interval(Integral, 1, None, closed="left"), None],
    "activation": [StrOptions(set(ACTIVATIONS)), Activation],
    "batch_size": [
        StrOptions({"auto"}),
        Interval(Integral, 1, None, closed="left"),
    ],
    "learning_rate": [StrOptions({"constant", "cosine"})],
    "learning_rate_init": [
        StrOptions({"auto"}),
        Interval(Real, 0, None, closed="neither"),
    ],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "standardize": ["boolean"],
    "weight_decay": [
        StrOptions({"auto"}),
        Interval(Real, 0, None, closed="left"),
    ],
    "early_stopping": ["boolean"],
    "scoring": [str, callable, None],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [
        Interval(Integral, 1, None, closed="left"),
        Options(Real, {np.inf}),
    ],
    "tol": [Interval(Real, 0, None, closed="left")],
    "refit": ["boolean"],
    "warm_start": ["boolean"],
    "device": [str, torch.device],
    "precision": [StrOptions({"float32", "tf32", "bfloat16"})],
    "skorch_callbacks": [list, None],
    "memory": [str, HasMethods("cache"), HasMethods("__fspath__"), None],
    "random_state": ["random_state"],
    "distributed": ["boolean"],
    "verbose": ["boolean", Interval(Integral, 0, None, closed="left")],
}
"""The parameters that all estimators have; a subclass adds its own."""

NOT_OF_WARM_UP = {
    *("expansion", "split", "feature_groups", "prune", "budget"),
    *("early_stopping", "validation_fraction", "n_iter_no_change", "tol", "scoring"),
    *("refit", "warm_start", "verbose", "memory", "skorch_callbacks", "distributed"),
    "n_estimators",
    # These act on the warm-up through the data, or stand in the key as resolved.
    *("class_weight", "task", "hidden_layer_sizes", "warmup", "batch_size", "device"),
    *("learning_rate_init", "weight_decay"),
}
"""The parameters that the key of a cached warm-up leaves out."""
