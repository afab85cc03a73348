"""The rows that are held out, and how they end a training."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split

from sklearn_fpe._engine._device import is_accelerator
from sklearn_fpe._engine._hooks import EarlyStopping
from sklearn_fpe._engine._views import Sample
from sklearn_fpe._estimators import _parameters, _together


def hold_out(estimator, train: Sample, held: Sample | None, targets, seeds, world):
    """Return the rows to train on and those to validate on."""
    if held is None and world.size > 1:
        parts = _together.split_off(
            len(train),
            estimator.validation_fraction,
            targets.strata(train.y),
            (seeds.validation, world.rank),
        )
        train, held = (train.take(part) for part in parts)
    elif held is None:
        try:
            parts = train_test_split(
                np.arange(len(train)),
                test_size=estimator.validation_fraction,
                random_state=seeds.validation,
                stratify=targets.strata(train.y),
            )
        except ValueError as error:
            raise ValueError(
                f"validation_fraction={estimator.validation_fraction} of {len(train)} "
                f"rows cannot be held out for early_stopping: {error}"
            ) from error
        train, held = (train.take(np.sort(part)) for part in parts)
    n_held = world.total(len(held), "numbers of held-out rows")
    if n_held < targets.rows_to_score:
        raise ValueError(
            f"early_stopping needs at least {targets.rows_to_score} rows to "
            f"validate on, got {n_held:g}: raise validation_fraction or give "
            f"X_val and y_val."
        )
    return train, held


def stopping_hook(estimator, targets, held: Sample, device, make_model):
    """Return the hook that stops early, by the score or loss of the held-out rows."""
    there = is_accelerator(device)
    # Of the outputs on another device only what is needed is copied.
    reduce = _nothing_of if there else None
    scoring = estimator.scoring
    if scoring is None:
        scoring = targets.default_scoring
    if scoring == "loss":
        score = None
    elif estimator.scoring is None:
        reduce = targets.codes if there else None

        def score(trainer, outputs):
            decode = trainer.targets.decode if there else trainer.targets.decide
            return targets.score(held.y, decode(outputs), held.weights, trainer.world)

    else:
        score = _scorer(estimator, held, make_model)
    return EarlyStopping(score, estimator.n_iter_no_change, estimator.tol, reduce)


def _nothing_of(outputs):
    """Return no row of outputs, because a score does not need them."""
    return outputs[:0]


def _scorer(estimator, held: Sample, make_model):
    """Return a function that scores the model so far by `scoring`."""
    scorer = check_scoring(estimator, scoring=estimator.scoring)
    X = held.view.select(held.view.X)
    keywords = {}
    if (held.weights != held.weights[0]).any():
        _parameters.check_takes_weights(scorer, estimator.scoring)
        keywords["sample_weight"] = held.weights

    def score(trainer, outputs):
        model = make_model(trainer.learned())
        # Rows of a frame are an array by now.
        vars(model).pop("feature_names_in_", None)
        value = scorer(model, X, held.y, **keywords)
        try:
            value = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"scoring={estimator.scoring!r} must return a number, got {value!r}."
            ) from error
        if np.isnan(value):
            raise ValueError(
                f"scoring={estimator.scoring!r} gave NaN for the {len(held)} held-out "
                f"rows: raise validation_fraction, or choose a score that is "
                f"defined for them."
            )
        return trainer.world.mean(value, held.weights.sum(), "scores")

    return score
