"""The estimator: its parameters and what it learned, to a file and back."""

import math
import re
import reprlib

import numpy as np
import torch

from sklearn_fpe import _validation
from sklearn_fpe._classifier import FPEClassifier
from sklearn_fpe._data import Scaler
from sklearn_fpe._persistence import _network, _statistics, _targets
from sklearn_fpe._persistence._checks import (
    Arrays,
    ModelFileError,
    choice,
    integer,
    integers,
    listing,
    record,
)
from sklearn_fpe._persistence._values import CannotSaveError, decode, encode
from sklearn_fpe._regressor import FPERegressor
from sklearn_fpe._transformer import FPETransformer
from sklearn_fpe.nn import DenseLinear
from sklearn_fpe.nn._prune import Sizes

CLASSES = {
    kind.__name__: kind for kind in (FPEClassifier, FPERegressor, FPETransformer)
}
"""The estimators that a file can name."""

DEVICES = re.compile(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")
"""The devices that a file can name."""

NOT_SAVED = ("memory", "skorch_callbacks")
"""Parameters that come back as None.

A cache holds pickles: a file must not say where one lies.
"""

SEEDS = ("init", "split", "shuffle", "validation")
"""The random streams."""

FIELDS = (
    *("class", "parameters", "made_with", "feature_names", "targets", "expansion"),
    *("budget", "phase", "n_iter", "seeds", "layers"),
)
"""What a file says of an estimator."""

# --------------------------------------------------------------------------------------
# To a file
# --------------------------------------------------------------------------------------


def describe(estimator):
    """Return what JSON can hold of a fitted estimator, and its arrays by name."""
    layers, arrays = _network.describe(estimator.module_)
    targets, target_arrays = _targets.describe(estimator._targets)
    arrays |= target_arrays
    arrays |= _statistics.describe(estimator._scaler, "scaler")
    moments = getattr(estimator, "_moments", None)
    arrays |= _statistics.describe_moments(moments, "moments")
    for name in ("loss_curve", "validation_scores", "best_validation_score"):
        if hasattr(estimator, f"{name}_"):
            arrays[name] = np.array(getattr(estimator, f"{name}_"), dtype=np.float64)
    names = getattr(estimator, "feature_names_in_", None)
    model = {
        "class": type(estimator).__name__,
        "parameters": _describe_parameters(estimator.get_params(deep=False)),
        "made_with": _describe_parameters(_made_with(estimator)),
        "feature_names": None if names is None else [str(name) for name in names],
        "targets": targets,
        "expansion": list(estimator._sizes.expansion),
        "budget": estimator.budget_,
        "phase": estimator.phase_,
        "n_iter": estimator.n_iter_,
        "seeds": estimator._seeds,
        "layers": layers,
    }
    return model, arrays


def _made_with(estimator):
    """Return the parameters that the network was made with.

    What a function did is in the network; the split's name is that of the parameter.
    """
    made_with = dict(estimator._made_with)
    if callable(made_with["split"]):
        made_with["split"] = estimator.split
    return made_with


def _describe_parameters(parameters):
    described = {}
    for name, value in parameters.items():
        try:
            if name not in NOT_SAVED:
                described[name] = _describe_parameter(name, value)
            elif name == "skorch_callbacks" and value:
                raise CannotSaveError(f"callbacks are code, got {reprlib.repr(value)}")
        except CannotSaveError as error:
            raise ValueError(
                f"The parameter {name} cannot be saved: {error}. Give it another value "
                f"by set_params, which leaves alone what was learned, or use joblib."
            ) from error
    return described


def _describe_parameter(name, value):
    if name == "split" and callable(value):
        raise CannotSaveError(f"a function is code, got {reprlib.repr(value)}")
    if name == "device":
        value = str(value)
        if not DEVICES.fullmatch(value):
            raise CannotSaveError(
                f'only "auto", "cpu", "cuda", "mps" and "xpu" can, got {value!r}'
            )
    return encode(value)


# --------------------------------------------------------------------------------------
# From a file
# --------------------------------------------------------------------------------------


def rebuild(model, arrays):
    """Make an estimator, without its state, and the state for ``__setstate__``.

    Everything that a file says is checked here or further down, and the estimator is
    put together last.
    """
    fields = dict(zip(FIELDS, record(model, FIELDS, "The model"), strict=True))
    arrays = Arrays(arrays)
    kind = CLASSES[choice(fields["class"], CLASSES, "The class")]
    estimator = _estimator(kind, fields["parameters"], "The parameters")
    made = _estimator(kind, fields["made_with"], "made_with")
    scaler = Scaler(*_statistics.rebuild(arrays, "scaler"))
    n_features = len(scaler.mean)
    targets = _targets.rebuild(fields["targets"], arrays, made)
    sizes = _sizes(made, fields["expansion"], n_features, targets.n_columns)
    budget = integer(fields["budget"], "budget", 1)
    phase = choice(fields["phase"], ("warm-up", "fine-tune"), "The phase")
    network = _network.rebuild(fields["layers"], arrays, made.activation, sizes)
    _network.check_range(network, scaler, targets)
    _check_phase(network, phase, sizes, budget)
    dense = (1,) * len(sizes.hidden)
    state = {
        **vars(estimator),
        "module_": network,
        "n_features_in_": n_features,
        "budget_": budget,
        "phase_": phase,
        "expansion_": sizes.expansion if phase == "fine-tune" else dense,
        "n_layers_": len(network.layers) + 1,
        "n_outputs_": sizes.n_outputs,
        "_made_with": {name: getattr(made, name) for name in fields["made_with"]},
        "_sizes": sizes,
        "_targets": targets,
        "_scaler": scaler,
        "_seeds": _seeds(fields["seeds"]),
        **_moments(arrays, n_features),
        **_history(fields["n_iter"], arrays),
        **_feature_names(fields["feature_names"], n_features),
    }
    arrays.close()
    return estimator, state


def _estimator(kind, parameters, name):
    """Make an estimator of the parameters that a file names."""
    known = set(kind().get_params(deep=False)) - set(NOT_SAVED)
    # One that is missing is younger than the file: it has its default.
    if not isinstance(parameters, dict) or not parameters.keys() <= known:
        raise ModelFileError(
            f"{name} must be among those of {kind.__name__}, got "
            f"{reprlib.repr(parameters)}."
        )
    decoded = {
        key: decode(value, f"The parameter {key}") for key, value in parameters.items()
    }
    estimator = kind(**decoded)
    try:
        estimator._validate_params()
        _validation.resolve_hidden(estimator.hidden_layer_sizes)
        _validation.resolve_expansion(estimator.expansion)
    except (ValueError, TypeError) as error:
        raise ModelFileError(str(error)) from error
    if not isinstance(estimator.device, str) or not DEVICES.fullmatch(estimator.device):
        raise ModelFileError(
            f"The parameter device must be a device, got "
            f"{reprlib.repr(estimator.device)}."
        )
    return estimator


def _sizes(made, expansion, n_features, n_outputs):
    hidden = _validation.resolve_hidden(made.hidden_layer_sizes)
    expansion = integers(expansion, "expansion", 1, 2**31, length=len(hidden))
    sizes = Sizes(n_features, hidden, n_outputs, expansion)
    if any(a > n for a, n in zip(expansion, sizes.fan_ins(), strict=False)):
        raise ModelFileError(
            f"expansion must be at most the inputs of a layer, got "
            f"{reprlib.repr(expansion)}."
        )
    return sizes


def _check_phase(network, phase, sizes, budget):
    """Check that what is not split yet is dense, and that the rest obeys the budget."""
    if phase == "fine-tune":
        integer(network.n_nonzero, "The number of parameters", 1, budget)
        return
    for layer, parents, n in zip(
        network.layers, network.parents, sizes.hidden, strict=False
    ):
        in_order = torch.equal(parents, torch.arange(len(parents)))
        if len(parents) != n or not in_order or type(layer) is not DenseLinear:
            raise ModelFileError("In the warm-up all layers must be dense.")


def _seeds(described):
    seeds = record(described, SEEDS, "The seeds")
    return {
        name: integer(seed, f"The seed {name}", 0, 2**32 - 1)
        for name, seed in zip(SEEDS, seeds, strict=True)
    }


def _moments(arrays, n_features):
    moments = _statistics.rebuild_moments(arrays, "moments", n_features)
    return {} if moments is None else {"_moments": moments}


def _history(n_iter, arrays):
    losses = arrays.real("loss_curve", np.float64, (None,)).tolist()
    history = {
        "n_iter_": integer(n_iter, "n_iter", 0, len(losses)),
        "loss_curve_": losses,
        "best_loss_": min(losses, default=math.inf),
    }
    # Scores may be undefined: R² of a single row is.
    if "validation_scores" in arrays:
        scores = arrays.take("validation_scores", np.float64, (None,))
        history["validation_scores_"] = scores.tolist()
    if "best_validation_score" in arrays:
        best = arrays.take("best_validation_score", np.float64, ())
        history["best_validation_score_"] = float(best)
    return history


def _feature_names(names, n_features):
    if names is None:
        return {}
    listing(names, "feature_names", n_features, n_features)
    if not all(isinstance(name, str) for name in names):
        raise ModelFileError("feature_names must be texts.")
    return {"feature_names_in_": np.array(names, dtype=object)}
