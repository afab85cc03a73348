"""The mapping between fitted estimators and what a file holds, JSON and arrays.

A file holds the state of ``Learned.to_state``, arrays under their path in it. Whatever
follows from something else is left out, so that it cannot contradict it. The objects
check their own states; what is left for here is what only a file can get wrong.
"""

import math
import re

import numpy as np

from sklearn_fpe._engine._recipe import Learned
from sklearn_fpe._engine._rules import RULES, rule_from_state, rule_to_state
from sklearn_fpe._estimators._classifier import FPEClassifier
from sklearn_fpe._estimators._fitted import make_fitted, make_unfitted
from sklearn_fpe._estimators._regressor import FPERegressor
from sklearn_fpe._estimators._targets import targets_from_state
from sklearn_fpe._estimators._transformer import FPETransformer
from sklearn_fpe._io._file import BYTES_PER_BYTE, COPIES
from sklearn_fpe._io._values import cannot_save, decode, encode
from sklearn_fpe.nn._state import ModelFileError, choice, listing, record, require

CLASSES = {
    kind.__name__: kind for kind in (FPEClassifier, FPERegressor, FPETransformer)
}
"""The estimators that a file can name."""

NOT_SAVED = ("memory", "skorch_callbacks")
"""Parameters that come back as None.

A cache holds pickles: a file must not say where one lies.
"""

VALUES = ("groups", "classes", "class_weight")
"""The fields of what was learned that are encoded as parameters are."""

MAX_SPREAD = 4 * 10**6
"""Positions of weights up to which all masks are stored as bits.

The spare memory of loading suffices for them, however few are kept.
"""

MIN_DENSITY = (COPIES["U8"] - BYTES_PER_BYTE) / 8 / (BYTES_PER_BYTE - COPIES["F32"]) / 4
"""Share of kept weights from which the bits of a larger mask are stored.

From it on, loading a bit and its share of 4 bytes of a weight takes no spare memory.
Below it a mask is stored as bytes.
"""


def describe(estimator):
    """Return what JSON can hold of a fitted estimator, and its arrays by name."""
    parameters = estimator.get_params(deep=False)
    if parameters["skorch_callbacks"]:
        raise cannot_save("skorch_callbacks", "callbacks are code")
    for name in NOT_SAVED:
        del parameters[name]
    parameters = {name: _encode(name, value) for name, value in parameters.items()}
    state, arrays = estimator.learned_.to_state(), {}
    members = (state, *state.get("others", ()))
    for recipe in (member["recipe"] for member in members):
        for name in ("split", "prune"):
            # What a rule of the user's own did is in the network.
            if not isinstance(recipe[name], str | dict):
                recipe[name] = parameters[name]
        for name in ("n_inputs", "n_outputs"):
            del recipe["shape"][name]
    _spread_masks([member["network"] for member in members])
    names = getattr(estimator, "feature_names_in_", None)
    model = {
        "class": type(estimator).__name__,
        "parameters": parameters,
        "feature_names": None if names is None else [str(name) for name in names],
        "learned": _take_arrays(state, "", arrays),
    }
    return model, arrays


def _spread_masks(networks):
    """Turn masks from bits into bytes, in place, where loading bits would take much."""
    layers = [layer for network in networks for layer in network["layers"]]
    layers += [network["skip"] or {} for network in networks]
    layers = [layer for layer in layers if "mask" in layer]
    sizes = [math.prod(layer["shape"]) for layer in layers]
    for layer, size in zip(layers, sizes, strict=True):
        if sum(sizes) > MAX_SPREAD and len(layer["weight"]) < MIN_DENSITY * size:
            bits = np.unpackbits(layer["mask"], count=size)
            layer["mask"] = bits.reshape(layer["shape"]).view(np.bool_)


def _encode(name, value):
    if name in RULES:
        value = rule_to_state(name, value)
        if isinstance(value, dict):
            return {key: encode(entry, name) for key, entry in value.items()}
    return encode(str(value) if name == "device" else value, name)


def _take_arrays(state, path, arrays):
    """Return JSON of the state without arrays, which are put into `arrays` by path."""
    field = path.rpartition(".")[2]
    if field in (*RULES, *VALUES):
        return _encode(field, state)
    if isinstance(state, np.ndarray):
        is_index = state.dtype.kind in "iu" and field != "mask"
        arrays[path[1:]] = state.astype(np.int32) if is_index else state
        return None
    if isinstance(state, list):
        pairs = dict(enumerate(state))
        return list(_take_arrays(pairs, path, arrays).values()) or None
    if not isinstance(state, dict):
        return state
    rest = {k: _take_arrays(v, f"{path}.{k}", arrays) for k, v in state.items()}
    return {k: v for k, v in rest.items() if v is not None or state[k] is None}


def put_arrays(tree, arrays):
    """Put arrays into JSON at their paths, where only the last object may be new."""
    for path, values in sorted(arrays.items()):
        *outer, last = path.split(".")
        place = tree
        for depth, key in enumerate(outer, 1):
            if isinstance(place, list):
                fits = re.fullmatch("0|[1-9][0-9]{0,5}", key) and int(key) < len(place)
                place = place[int(key)] if fits else None
            elif isinstance(place, dict):
                place = place.setdefault(key, {} if depth == len(outer) else None)
        fits = isinstance(place, dict) and last not in place
        require(fits, f"The array {path} is of no use")
        # R² of a single row is not finite.
        may_be_nan = last.endswith(("score", "scores", "validation_losses"))
        fits = may_be_nan or values.dtype.kind != "f" or np.isfinite(values).all()
        require(fits, f"The array {path} must hold finite numbers")
        place[last] = values


def rebuild(model, memory, version):
    """Check everything that a file says, then make a fitted estimator of it.

    `model` is the JSON with the arrays at their paths, `memory` what making the
    estimator may take, `version` that of sklearn_fpe that saved it.
    """
    fields = ("class", "parameters", "feature_names", "learned")
    kind, parameters, names, state = record(model, "model", fields)
    estimator = unfitted(kind, parameters, "parameters", memory)
    others = state.get("others") if isinstance(state, dict) else None
    for member in (state, *(others if isinstance(others, list) else ())):
        _decode_learned(member, memory)
    learned = Learned.from_state(state, targets_from_state, "learned")
    shape, n = learned.recipe.shape, len(learned.members)
    fits = n == getattr(estimator, "n_estimators", 1)
    require(fits, "There must be as many networks as n_estimators", n)
    is_numeric = isinstance(estimator, FPERegressor)
    fits = kind == "FPETransformer" or learned.targets.y_numeric == is_numeric
    require(fits, f"The targets must be those of a {kind}")
    kinds = {str(weight.dtype) for weight in learned.predictor.parameters()}
    require(kinds == {"torch.float32"}, "All weights must be float32", *kinds)
    if names is not None:
        listing(names, "feature_names", shape.n_inputs, shape.n_inputs)
        texts = {name for name in names if isinstance(name, str)}
        fits = len(texts) == len(names)
        require(fits, "feature_names must be texts, none of them twice")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    return make_fitted(estimator, learned, version)


def unfitted(kind, given, name, memory):
    """Make an estimator of the class and the parameters that a file names."""
    kind = CLASSES[choice(kind, "model.class", CLASSES)]
    known = kind().get_params(deep=False).keys() - set(NOT_SAVED)
    # One that is missing is younger than the file: it has its default.
    fits = isinstance(given, dict) and given.keys() <= known
    require(fits, f"The {name} must be among those of {kind.__name__}", given)
    parameters = {}
    for key, value in given.items():
        if key == "prune" and isinstance(value, dict):
            parameters[key] = rule_from_state(key, value, f"{name}.{key}")
        else:
            parameters[key] = decode(value, f"{name}.{key}", memory)
    device = parameters.get("device", "auto")
    fits = isinstance(device, str)
    fits = fits and re.fullmatch("auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?", device)
    require(fits, 'The device must be "auto", "cpu", "cuda", "mps" or "xpu"', device)
    try:
        return make_unfitted(kind, parameters)
    except (ValueError, TypeError) as error:
        raise ModelFileError(error) from error


def _decode_learned(state, memory):
    """Put values in place of the JSON of labels, weights and groups."""
    parts = ("recipe", "targets", "network")
    parts = [state.get(part) if isinstance(state, dict) else None for part in parts]
    recipe, targets, network = (p if isinstance(p, dict) else {} for p in parts)
    for part in (recipe, targets):
        part |= {k: decode(part[k], f"The {k}", memory) for k in VALUES if k in part}
    # A list of nothing but arrays leaves no trace in JSON.
    parents = network.setdefault("parents", {})
    if isinstance(parents, dict):
        network["parents"] = [parents.get(str(level)) for level in range(len(parents))]
