"""The mapping between fitted estimators and what a file holds, JSON and arrays.

A file holds the state of ``Learned.to_state``, arrays under their path in it. Whatever
follows from something else is left out, so that it cannot contradict it.
"""

import re
import reprlib
from itertools import pairwise

import numpy as np

from sklearn_fpe._engine._recipe import RULES, rule_from_state, rule_to_state
from sklearn_fpe._estimators._classifier import FPEClassifier
from sklearn_fpe._estimators._fitted import make_fitted, make_unfitted
from sklearn_fpe._estimators._regressor import FPERegressor
from sklearn_fpe._estimators._transformer import FPETransformer
from sklearn_fpe._io._checks import (
    ModelFileError,
    choice,
    integer,
    integers,
    listing,
    record,
    require,
)
from sklearn_fpe._io._values import CannotSaveError, decode, encode
from sklearn_fpe.nn._arrays import unpack_mask

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

MAX_SPREAD = 4 * 10**6
"""Positions of weights up to which all masks are stored as bits.

The spare memory of loading suffices for them, however few are kept.
"""

MIN_DENSITY = 0.18
"""Share of kept weights from which the bits of a larger mask are stored.

Below it the bytes are, because loading takes 5 bytes a position and the file must have
enough bytes to allow it.
"""

MAX_NETWORKS = 10_000
"""Most networks of an ensemble."""

# --------------------------------------------------------------------------------------
# To a file
# --------------------------------------------------------------------------------------


def describe(estimator):
    """Return what JSON can hold of a fitted estimator, and its arrays by name."""
    parameters = {}
    for name, value in estimator.get_params(deep=False).items():
        if name not in NOT_SAVED:
            parameters[name] = _encode(name, value)
        elif name == "skorch_callbacks" and value:
            raise _cannot_save(name, f"callbacks are code, got {reprlib.repr(value)}")
    state = estimator.learned_.to_state()
    others, arrays = state.pop("others", []), {}
    learned = _describe_learned(state, parameters, "", arrays)
    if others:
        learned["others"] = [
            _describe_learned(other, parameters, f"others.{i}.", arrays)
            for i, other in enumerate(others)
        ]
    names = getattr(estimator, "feature_names_in_", None)
    model = {
        "class": type(estimator).__name__,
        "parameters": parameters,
        "feature_names": None if names is None else [str(name) for name in names],
        "learned": learned,
    }
    return model, arrays


def _describe_learned(learned, parameters, start, arrays):
    """Return what JSON can hold of what one network has learned.

    Its arrays are put into `arrays`, by names with this start.
    """
    recipe, targets = learned["recipe"], learned["targets"]
    for name in ("split", "prune"):
        # What a rule of the user's own did is in the network.
        if not isinstance(recipe[name], str | dict):
            recipe[name] = parameters[name]
    for name in ("n_inputs", "n_outputs"):
        del recipe["shape"][name]
    encoded = {name: _encode(name, recipe.pop(name)) for name in (*RULES, "groups")}
    labels = {
        name: _encode(name, targets.pop(name))
        for name in ("classes", "class_weight")
        if name in targets
    }
    _choose_masks(learned["network"])
    learned = _take_arrays(learned, start.removesuffix("."), arrays)
    learned["recipe"] |= encoded
    learned["targets"] |= labels
    return learned


def _encode(name, value):
    try:
        if name in RULES:
            value = rule_to_state(name, value)
            if isinstance(value, dict):
                return {key: encode(entry) for key, entry in value.items()}
        if name == "device":
            value = str(value)
            if not DEVICES.fullmatch(value):
                raise CannotSaveError(
                    f'only "auto", "cpu", "cuda", "mps" and "xpu" can, got {value!r}'
                )
        return encode(value)
    except CannotSaveError as error:
        raise _cannot_save(name, error) from error


def _cannot_save(name, error):
    if name == "classes":
        return ValueError(f"The class labels cannot be saved: {error}.")
    return ValueError(
        f"The parameter {name} cannot be saved: {error}. Give it another value by "
        f"set_params, which leaves alone what was learned, or use joblib."
    )


def _choose_masks(network):
    """Store large masks of few ones as bytes, not as bits; see MIN_DENSITY."""
    layers = [*network["layers"], *filter(None, [network["skip"]])]
    layers = [layer for layer in layers if "mask" in layer]
    sizes = [int(np.prod(layer["shape"])) for layer in layers]
    for layer, size in zip(layers, sizes, strict=True):
        if sum(sizes) > MAX_SPREAD and len(layer["weight"]) < MIN_DENSITY * size:
            layer["mask"] = unpack_mask(layer["mask"], tuple(layer["shape"]))


def _take_arrays(state, name, arrays):
    """Return the state without its arrays, which are put into `arrays` by path."""
    if isinstance(state, np.ndarray):
        if state.dtype.kind in "iu" and not name.endswith(".mask"):
            state = state.astype(np.int32)
        arrays[name] = state
        return None
    if isinstance(state, list):
        pairs = {str(i): value for i, value in enumerate(state)}
        return list(_take_arrays(pairs, name, arrays).values()) or None
    if not isinstance(state, dict):
        return state
    path = f"{name}." if name else ""
    rest = {k: _take_arrays(v, f"{path}{k}", arrays) for k, v in state.items()}
    return {k: v for k, v in rest.items() if v is not None or state[k] is None}


# --------------------------------------------------------------------------------------
# From a file
# --------------------------------------------------------------------------------------


def rebuild(model, arrays, memory, version):
    """Check everything that a file says, then make a fitted estimator of it.

    Parameters
    ----------
    model : object
        What stood in JSON.
    arrays : Arrays
        The arrays of the file.
    memory : Memory
        What making the estimator may take.
    version : str
        The version of sklearn_fpe that saved it.
    """
    fields = ("class", "parameters", "feature_names", "learned")
    kind, parameters, names, learned = record(model, fields, "The model")
    kind = CLASSES[choice(kind, CLASSES, "The class")]
    estimator = unfitted(kind, parameters, memory)
    others = []
    if isinstance(learned, dict) and "others" in learned:
        learned = dict(learned)
        others = listing(learned.pop("others"), "The other networks", 1, MAX_NETWORKS)
    state = _learned(learned, arrays, memory, kind)
    n_inputs = state["recipe"]["shape"]["n_inputs"]
    if others:
        state["others"] = [
            _learned(other, arrays.within(f"others.{i}."), memory, kind)
            for i, other in enumerate(others)
        ]
        for other in state["others"]:
            same = other["recipe"]["shape"] == state["recipe"]["shape"]
            same &= other["phase"] == state["phase"]
            require(same, "All networks must have the same shape and phase.")
    n_networks = getattr(estimator, "n_estimators", 1)
    require(
        n_networks == 1 + len(others),
        f"There must be as many networks as n_estimators says, {n_networks}, got "
        f"{1 + len(others)}.",
    )
    if names is not None:
        listing(names, "feature_names", n_inputs, n_inputs)
        fits = all(isinstance(n, str) for n in names) and len({*names}) == n_inputs
        require(fits, "feature_names must be texts, none of them twice.")
        names = np.array(names, dtype=object)
    arrays.close()
    return make_fitted(estimator, state, names, version)


def _learned(learned, arrays, memory, kind):
    """Check what one network has learned; return its state."""
    parts = ("recipe", "network", "affine", "moments", "targets", "phase", "history")
    recipe, network, affine, moments, targets, phase, history = record(
        learned, parts, "What was learned"
    )
    affine = _affine(affine, arrays, "affine")
    n_inputs = len(affine["mean"])
    targets, n_outputs = _targets(targets, arrays, memory, kind)
    recipe = _recipe(recipe, memory, n_inputs, n_outputs)
    shape = recipe["shape"]
    state = {
        "recipe": recipe,
        "network": _network(network, arrays, shape),
        "affine": affine,
        "moments": _moments(moments, arrays, "moments", n_inputs),
        "targets": targets,
        "phase": choice(phase, ("warm-up", "fine-tune"), "The phase"),
        "history": _history(history, arrays),
    }
    _check_phase(state)
    return state


def unfitted(kind, parameters, memory):
    """Make an estimator of the parameters that a file names."""
    known = set(kind().get_params(deep=False)) - set(NOT_SAVED)
    # One that is missing is younger than the file: it has its default.
    require(
        isinstance(parameters, dict) and parameters.keys() <= known,
        f"The parameters must be among those of {kind.__name__}, got "
        f"{reprlib.repr(parameters)}.",
    )
    decoded = {}
    for name, value in parameters.items():
        if name in RULES and isinstance(value, dict):
            value = rule_from_state(name, _rule(name, value))
        else:
            value = decode(value, f"The parameter {name}", memory)
        decoded[name] = value
    device = decoded.get("device", "auto")
    require(
        isinstance(device, str) and DEVICES.fullmatch(device),
        f"The parameter device must be a device, got {reprlib.repr(device)}.",
    )
    try:
        return make_unfitted(kind, decoded)
    except (ValueError, TypeError) as error:
        raise ModelFileError(error) from error


def _rule(field, value):
    """Check a registered rule: a name, or a dict of a name and numbers."""
    if not isinstance(value, dict):
        return choice(value, RULES[field], f"The {field}")
    name = choice(value.get("rule"), RULES[field], f"The {field}")
    known = vars(RULES[field][name]) if field == "prune" else {}
    record(value, ("rule", *known), f"The {field} {name}")
    for key, default in known.items():
        least = 1 if type(default) is int else 0
        kinds = (int,) if type(default) is int else (int, float)
        require(
            type(value[key]) in kinds and least <= value[key] < 2**53,
            f"{field} {key} must be a number of at least {least}, got "
            f"{reprlib.repr(value[key])}.",
        )
    return value


def _recipe(described, memory, n_inputs, n_outputs):
    fields = ("shape", "budget", *RULES, "groups", "seeds")
    shape, budget, *rules, groups, seeds = record(described, fields, "The recipe")
    hidden, expansion, skip = record(
        shape, ("hidden", "expansion", "skip"), "The shape"
    )
    hidden = integers(hidden, "hidden", 1)
    expansion = integers(expansion, "expansion", 1, length=len(hidden))
    units = [h * a for h, a in zip(hidden, expansion, strict=True)]
    fits = all(a <= n for a, n in zip(expansion, [n_inputs, *units], strict=False))
    require(fits, "expansion must be at most the inputs of a layer.")
    fits = type(skip) is bool and skip <= bool(hidden)
    require(fits, "skip must be a bool, false without hidden layers.")
    for name, seed in zip(SEEDS, record(seeds, SEEDS, "The seeds"), strict=True):
        integer(seed, f"The seed {name}", 0, 2**32 - 1)
    return {
        "shape": {
            **{"n_inputs": n_inputs, "hidden": hidden, "n_outputs": n_outputs},
            **{"expansion": expansion, "skip": skip},
        },
        "budget": integer(budget, "budget", 1),
        **{name: _rule(name, rule) for name, rule in zip(RULES, rules, strict=True)},
        "groups": decode(groups, "groups", memory),
        "seeds": seeds,
    }


def _affine(described, arrays, name):
    record(described, (), name)
    return _mean_and_scale(arrays, f"{name}.")


def _mean_and_scale(arrays, name):
    scale = arrays.positive(f"{name}scale", (None,))
    mean = arrays.real(f"{name}mean", np.float64, scale.shape)
    with np.errstate(over="ignore"):
        fits = len(mean) and np.isfinite(mean / scale).all()
    require(
        fits,
        f"The array '{name}mean' must hold numbers that are finite in units of "
        f"'{name}scale', one or more.",
    )
    return {"mean": mean, "scale": scale}


def _moments(described, arrays, name, n_columns):
    if described is None:
        return None
    record(described, (), name)
    state = {
        part: arrays.real(f"{name}.{part}", np.float64, (n_columns,))
        for part in ("shift", "mean", "m2")
    }
    fits = (state["m2"] >= 0).all()
    require(fits, f"The array '{name}.m2' must not hold negative numbers.")
    weight = arrays.positive(f"{name}.weight", ())
    return {
        **state,
        "weight": weight,
        "unit": arrays.positive(f"{name}.unit", (n_columns,)),
    }


def _targets(described, arrays, memory, kind):
    """Return the state of the targets, and the columns of the network's output."""
    real = kind is FPERegressor
    if kind is FPETransformer:
        real = isinstance(described, dict) and "one_dimensional" in described
    if real:
        fields = ("one_dimensional", "affine", "moments")
        flag, affine, moments = record(described, fields, "The targets")
        affine = _affine(affine, arrays, "targets.affine")
        n = len(affine["mean"])
        fits = type(flag) is bool and flag <= (n == 1)
        require(fits, "one_dimensional must be a bool, false for several columns.")
        moments = _moments(moments, arrays, "targets.moments", n)
        return {"one_dimensional": flag, "affine": affine, "moments": moments}, n
    fields = ("kind", "classes", "class_weight")
    kind, classes, weight = record(described, fields, "The targets")
    choice(kind, ("binary", "multiclass", "multilabel"), "The kind")
    classes = decode(classes, "The classes", memory)
    _check_classes(classes, kind)
    weight = decode(weight, "class_weight", memory)
    is_name = isinstance(weight, str) and weight == "balanced"
    require(
        weight is None or is_name or isinstance(weight, dict | list),
        f"class_weight must be a dict, a list, 'balanced' or None, got "
        f"{reprlib.repr(weight)}.",
    )
    n = 1 if kind == "binary" else len(classes)
    return {"kind": kind, "classes": classes, "class_weight": weight}, n


def _check_classes(classes, problem):
    try:
        # A label that is equal to its neighbour or below it has no place of its own.
        increasing = all(bool(a < b) for a, b in pairwise(classes))
    except TypeError:
        increasing = False
    if not isinstance(classes, np.ndarray):
        increasing, classes = False, np.empty(0)
    n = len(classes)
    fits = {
        "binary": n == 2,
        "multiclass": n > 2,
        # The labels of an indicator matrix are its columns.
        "multilabel": n > 0 and classes.tolist() == list(range(n)),
    }
    require(
        increasing and fits[problem],
        f"The classes of a {problem} problem must be as many labels as it has, in "
        f"increasing order, got {n}: {reprlib.repr(classes.tolist())}.",
    )


def _network(described, arrays, shape):
    layers, skip = record(described, ("layers", "skip"), "The network")
    hidden, n_inputs, n_outputs = shape["hidden"], shape["n_inputs"], shape["n_outputs"]
    listing(layers, "The layers", len(hidden) + 1, len(hidden) + 1)
    state, n = {"layers": [], "skip": None, "parents": []}, n_inputs
    for level, entry in enumerate(layers):
        layer, n = _layer(entry, arrays, f"network.layers.{level}", n)
        state["layers"].append(layer)
        if level < len(hidden):
            state["parents"].append(_parents(arrays, level, n, shape))
    fits = (skip is not None) == shape["skip"]
    require(fits, "There must be a skip connection if the shape has one.")
    ends = [n]
    if skip is not None:
        state["skip"], n = _layer(skip, arrays, "network.skip", n_inputs)
        ends.append(n)
    require(
        set(ends) == {n_outputs},
        f"The last layer and the skip connection must have {n_outputs} outputs, one "
        f"per column of the targets, got {ends}.",
    )
    if "network.input_mean" in arrays or "network.input_scale" in arrays:
        affine = _mean_and_scale(arrays, "network.input_")
        fits = len(affine["mean"]) == n_inputs
        require(fits, f"network.input_mean must have {n_inputs} entries.")
        state |= {f"input_{name}": array for name, array in affine.items()}
    return state


def _layer(entry, arrays, name, n_inputs):
    """Return the state of a layer, and its outputs."""
    kind, shape = record(entry, ("kind", "shape"), f"The entry of {name}")
    is_skip = name == "network.skip"
    kinds = ("dense", "masked", *([] if is_skip else ["block"]))
    is_block = choice(kind, kinds, f"The kind of {name}") == "block"
    shape = integers(shape, f"The shape of {name}", 1, length=2 + is_block)
    fits = is_block or shape[1] == n_inputs
    require(fits, f"{name} must have {n_inputs} inputs, it has {shape[1]}.")
    state = {"kind": kind, "shape": shape}
    size = shape
    if kind == "masked" or (is_block and f"{name}.mask" in arrays):
        state["mask"] = arrays.mask(f"{name}.mask", shape)
        size = (int(state["mask"].sum()),)
    state["weight"] = arrays.real(f"{name}.weight", np.float32, size)
    if not is_skip:
        state["bias"] = arrays.real(f"{name}.bias", np.float32, shape[:-1])
    if is_block:
        return state, _check_block(state, arrays, name, n_inputs)
    return state, shape[0]


def _check_block(state, arrays, name, n_inputs):
    """Add the inputs and outputs of blocks to the state; return their number."""
    n_blocks, block_outputs, block_inputs = shape = state["shape"]
    inputs = arrays.index(f"{name}.inputs", (n_blocks, block_inputs), n_inputs)
    kept = state.get("mask", np.broadcast_to(True, shape))
    read = inputs[kept.any(axis=1)]
    fits = len(np.unique(read)) == len(read)
    require(fits, f"{name}.inputs must name no input twice.")
    state["inputs"] = inputs
    if f"{name}.outputs" not in arrays:
        return n_blocks * block_outputs
    outputs = arrays.index(f"{name}.outputs", (None,), n_blocks * block_outputs)
    fits = len(outputs) and (np.diff(outputs) > 0).all()
    require(fits, f"{name}.outputs must increase.")
    fits = not np.delete(kept.any(axis=2), outputs).any()
    require(fits, f"{name} must keep nothing of outputs it has not.")
    state["outputs"] = outputs
    return len(outputs)


def _parents(arrays, level, n_units, shape):
    name, n_children = f"network.parents.{level}", shape["expansion"][level]
    parents = arrays.index(name, (n_units,), shape["hidden"][level])
    fits = np.bincount(parents).max() <= n_children
    require(fits, f"{name} must name no parent more than {n_children} times.")
    return parents


def _check_phase(state):
    """Check that what is not split yet is dense, and that the rest obeys the budget."""
    network, recipe = state["network"], state["recipe"]
    maps = [*network["layers"], *filter(None, [network["skip"]])]
    if state["phase"] == "fine-tune":
        # Biases of outputs that were pruned do not count.
        none = np.empty(0)
        biases = [m.get("outputs", m.get("bias", none)).size for m in maps]
        n = sum(biases) + sum(m["weight"].size for m in maps)
        integer(n, "The number of parameters", 1, recipe["budget"])
        return
    in_order = [np.arange(n) for n in recipe["shape"]["hidden"]]
    fits = all(map(np.array_equal, network["parents"], in_order))
    fits = fits and all(layer["kind"] == "dense" for layer in maps)
    require(fits, "In the warm-up all layers must be dense.")


def _history(described, arrays):
    fields = ("best_iter", "n_iter", "refitted")
    best, n_iter, refitted = record(described, fields, "The history")
    require(type(refitted) is bool, "refitted must be a bool.")
    losses = arrays.real("history.losses", np.float64, (None,))
    # Scores may be undefined: R² of a single row is.
    shapes = {"validation_losses": (None,), "validation_scores": (None,)}
    shapes["best_score"] = ()
    return {
        "losses": losses,
        **{k: arrays.take(f"history.{k}", np.float64, s) for k, s in shapes.items()},
        "n_iter": integer(n_iter, "n_iter", 0, len(losses)),
        "best_iter": None if best is None else integer(best, "best_iter", 0),
        "refitted": refitted,
    }
