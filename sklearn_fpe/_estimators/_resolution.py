"""From parameters and data to a recipe, settings and a device."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.utils import check_random_state

from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._recipe import Learned, Recipe, Seeds, Settings
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._engine._world import SINGLE, World
from sklearn_fpe._estimators import _parameters, _together
from sklearn_fpe.nn import Shape, check_expansion
from sklearn_fpe.nn._activation import get_activation
from sklearn_fpe.nn._expand import warn_expansion
from sklearn_fpe.nn._prune import get_prune
from sklearn_fpe.nn._split import get_split

ROWS_IN_PIECES = 10_000
"""Rows that `partial_fit`, which cannot count those to come, is taken to train on."""

FREE_WIDTH = 32
"""Units of a hidden layer from which `default_decay` does not count it as narrow."""


def check_parameters(estimator) -> int:
    """Check what does not depend on data; return the epochs of the warm-up."""
    _parameters.resolve_hidden(estimator.hidden_layer_sizes)
    _parameters.resolve_expansion(estimator.expansion)
    if estimator.distributed:
        _together.check_supported(estimator)
    if estimator.memory is not None:
        _parameters.check_cache(estimator)
    _parameters.check_skorch_callbacks(
        estimator.skorch_callbacks,
        estimator.early_stopping,
        rules_of(estimator, None, False)[1],
    )
    if estimator.refit and not estimator.early_stopping:
        raise ValueError(
            "refit=True trains again for the epochs that early stopping found "
            "best: it needs early_stopping=True."
        )
    if estimator.refit and estimator.skorch_callbacks:
        raise ValueError(
            "refit=True trains twice, and skorch_callbacks could stop or change "
            "the second training, too: set skorch_callbacks=None or refit=False."
        )
    # Without setting up CUDA for "auto", which may choose the CPU.
    _parameters.resolve_device(estimator.device, work=0)
    return _parameters.resolve_warmup(estimator.warmup, estimator.max_iter)


def check_validation(estimator, X_val, y_val, sample_weight_val=None):
    """Check that rows to validate on are given whole, and are of use."""
    if (X_val is None) != (y_val is None):
        given, missing = ("X_val", "y_val")[:: 1 if y_val is None else -1]
        raise ValueError(f"{given} is given, but {missing} is not.")
    if X_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val is given, but X_val is not.")
        return
    if not estimator.early_stopping:
        raise ValueError(
            "X_val and y_val are given, but early_stopping=False would not use "
            "them: set early_stopping=True."
        )
    if estimator.refit:
        raise ValueError(
            "refit=True trains again with the rows of X that were held out; with "
            "X_val none are: set refit=False."
        )


def check_partial(estimator):
    """Check that the parameters are ones that ``partial_fit`` supports."""
    if estimator.early_stopping:
        raise ValueError(
            "partial_fit does not support early_stopping=True: the caller decides "
            "which call is the last."
        )
    if getattr(estimator, "class_weight", None) == "balanced":
        raise ValueError(
            'partial_fit does not support class_weight="balanced": the class '
            "frequencies of all rows are not known. Pass a dict."
        )


def rules_of(estimator, learned: Learned | None, in_pieces: bool):
    """Resolve `split` and `prune`, of which ``"auto"`` stands for several."""
    prune = estimator.prune
    if isinstance(prune, str) and prune == "auto":
        if learned is not None:
            prune = learned.recipe.prune
        else:
            # The budget holds after every call of partial_fit, so that it cannot
            # be approached gradually.
            prune = "magnitude" if in_pieces else "gradual"
    prune = get_prune(prune)
    if in_pieces and learned is None and not prune.at_once:
        raise ValueError(
            f"partial_fit cannot prune gradually, because the budget holds after "
            f'every call: set prune="auto", "magnitude", "structured" or "rewired", '
            f"got {estimator.prune!r}."
        )
    split = estimator.split
    if isinstance(split, str) and split == "auto":
        if learned is not None:
            split = learned.recipe.split
        else:
            split = "shared" if prune.at_once else "learned"
    split = get_split(split)
    if in_pieces and learned is None and split.overlapping and _expands(estimator):
        raise ValueError(
            f"partial_fit cannot learn the split, because it cannot prune gradually: "
            f'set split="auto", "shared" or "random", got {estimator.split!r}.'
        )
    return split, prune


def _expands(estimator) -> bool:
    """Tell whether there are neurons to split."""
    hidden = _parameters.resolve_hidden(estimator.hidden_layer_sizes)
    return bool(
        hidden and np.max(_parameters.resolve_expansion(estimator.expansion)) > 1
    )


def recipe_of(
    estimator,
    n_features,
    targets,
    learned: Learned | None,
    in_pieces: bool = False,
    world: World = SINGLE,
) -> Recipe:
    """Resolve shape, expansion, budget and seeds; raise if they conflict."""
    hidden = _parameters.resolve_hidden(estimator.hidden_layer_sizes)
    expansion = _parameters.resolve_expansion(estimator.expansion)
    split, prune = rules_of(estimator, learned, in_pieces)
    if split.needs_groups:
        _parameters.check_groups(estimator.feature_groups, n_features)
    widths = [n_features, *hidden, targets.n_columns]
    _parameters.check_size(widths)
    shape, budget = check_expansion(
        widths,
        expansion,
        split,
        prune=prune,
        budget=estimator.budget,
        groups=estimator.feature_groups,
        skip=getattr(estimator, "skip_connection", False),
    )
    recipe = Recipe(
        shape,
        budget,
        split,
        prune,
        estimator.feature_groups,
        get_activation(estimator.activation),
        # Those of process 0, because others may have drawn other seeds.
        world.gather(_seeds_of(estimator), "seeds")[0]
        if learned is None
        else learned.recipe.seeds,
    )
    if learned is not None:
        standardized = learned.moments is not None
        _check_unchanged(estimator, recipe, learned.recipe, standardized)
        return learned.recipe
    level = 1 + _parameters.stack_level()
    warn_expansion(shape, expansion, budget, prune.at_once, stacklevel=level)
    return recipe


def _check_unchanged(
    estimator, recipe: Recipe, learned: Recipe, standardized: bool
) -> None:
    """Check that the parameters still describe the network that was learned."""
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


def check_same(name: str, old, new) -> None:
    """Check that a parameter is what the network was made with."""
    if old != new:
        old, new = (getattr(value, "name", value) for value in (old, new))
        raise ValueError(
            f"{name} must stay {old!r} to continue with the network that was made "
            f"with it, by warm_start or partial_fit, got {new!r}. Fit a clone to "
            f"start anew."
        )


def _plain(groups):
    return None if groups is None else np.asarray(groups, dtype=object).tolist()


def _seeds_of(estimator) -> Seeds:
    if estimator.random_state is None:
        return Seeds.spawn(None)  # without moving NumPy's global generator
    return Seeds.spawn(
        int(check_random_state(estimator.random_state).randint(2**31 - 1))
    )


def settings_of(
    estimator,
    recipe: Recipe,
    targets,
    device: torch.device,
    n_warmup: int,
    n_rows: int | None = None,
) -> Settings:
    """Return how to train.

    Parameters
    ----------
    estimator : estimator
        Its parameters.
    recipe : Recipe
        What shapes the network.
    targets : Targets
        The targets, whose loss is used.
    device : torch.device
        Where to train.
    n_warmup : int
        Epochs of the warm-up.
    n_rows : int, default=None
        Rows to train on, those of all processes. None: they come in pieces, and the
        learning rate is constant.
    """
    batch_size, rate = estimator.batch_size, estimator.learning_rate_init
    if rate == "auto":
        is_constant = n_rows is None or estimator.learning_rate == "constant"
        rate = default_rate(recipe.shape, is_constant)
    decay = warm_up_decay = estimator.weight_decay
    if decay == "auto":
        n_rows = n_rows or ROWS_IN_PIECES
        # The warm-up must not depend on the expansion, because fits can share it.
        warm_up_decay = default_decay(recipe.shape.parent(), n_rows)
        decay = default_decay(recipe.shape, n_rows)
    return Settings(
        loss=LOSSES[targets.loss](getattr(estimator, "label_smoothing", 0.0)),
        max_iter=estimator.max_iter,
        n_warmup=n_warmup,
        batch_size=None if batch_size == "auto" else int(batch_size),
        learning_rate=estimator.learning_rate,
        learning_rate_init=rate,
        weight_decay=decay,
        warm_up_decay=warm_up_decay,
        standardize=estimator.standardize,
        bfloat16=estimator.precision == "bfloat16",
        tf32=estimator.precision == "tf32",
        device=device,
        callbacks=tuple(estimator.skorch_callbacks or ()),
    )


def default_rate(shape: Shape, is_constant: bool = False) -> float:
    """Return the learning rate of ``"auto"``.

    It falls with the number of inputs, because a step of AdamW moves every weight by
    about the learning rate, and so an output by the more the more inputs it has. A
    constant rate is smaller, because nothing else lets the training settle.
    """
    rate = min(0.1, max(0.01, 6.4 / shape.n_inputs))
    return rate / 5 if is_constant else rate


def default_decay(shape: Shape, n_rows: int) -> float:
    """Return the weight decay of ``"auto"`` for a number of rows.

    AdamW keeps weights below about 1 / decay. An output sums as many as there are
    inputs, and its error grows with inputs per row as in linear regression. A network
    that has to pass through a narrow layer overfits less, and needs larger weights.
    """
    width = FREE_WIDTH if shape.skip else min([FREE_WIDTH, *shape.fan_ins()[1:]])
    n_inputs = shape.n_inputs
    decay = n_inputs / 60 * math.sqrt(n_inputs / n_rows) * width / FREE_WIDTH
    # Two digits, because networks of equal decay are updated together.
    return float(f"{min(3.0, decay):.2g}")


def device_for(
    estimator, rows: Sample, recipe: Recipe, world: World, before=None
) -> torch.device:
    """Return the device to train on; `before` is that of an earlier call."""
    if world.size > 1:
        return _parameters.resolve_device(estimator.device, of_process=True)
    return _parameters.device_of_fit(
        estimator.device, rows.view.X, recipe.shape.n_parameters(), before
    )
