"""Files of format version 1, turned into what a file of version 2 would say."""

import numpy as np

from sklearn_fpe._estimators._parameters import resolve_hidden
from sklearn_fpe._io._checks import ModelFileError, choice, record
from sklearn_fpe._io._model import CLASSES, unfitted

FIELDS = (
    *("class", "parameters", "made_with", "feature_names", "targets", "expansion"),
    *("budget", "phase", "n_iter", "seeds", "layers"),
)
"""What a file says of an estimator."""

NAMES = {
    "layers.": "network.layers.",
    "parents.": "network.parents.",
    "scaler.": "affine.",
    "targets.mean": "targets.affine.mean",
    "targets.scale": "targets.affine.scale",
    "loss_curve": "history.losses",
    "validation_scores": "history.validation_scores",
    "best_validation_score": "history.best_score",
}
"""Starts of the names of arrays, and what took their place."""


def upgrade(model, arrays, memory):
    """Return JSON and arrays as in a file of version 2; what they say is not checked.

    Parameters
    ----------
    model : object
        What stood in JSON.
    arrays : dict of ndarrays
        The arrays by name.
    memory : Memory
        What loading may take.
    """
    fields = dict(zip(FIELDS, record(model, FIELDS, "The model"), strict=True))
    kind = CLASSES[choice(fields["class"], CLASSES, "The class")]
    made_with = fields["made_with"]
    made = unfitted(kind, made_with, memory)
    arrays = {_new_name(name): array for name, array in arrays.items()}
    targets = fields["targets"]
    if not isinstance(targets, dict):
        raise ModelFileError("The targets must be an object.")
    if "one_dimensional" in targets:
        moments = _moments(arrays, "targets.moments")
        targets = {**targets, "affine": {}, "moments": moments}
    else:
        targets = {**targets, "class_weight": made_with.get("class_weight")}
        targets["classes"] = {"array": targets.get("classes")}
    best_iter = _best_iter(arrays, fields["n_iter"])
    empty = {f"history.validation_{name}": np.empty(0) for name in ("losses", "scores")}
    learned = {
        "recipe": {
            "shape": {
                "hidden": list(resolve_hidden(made.hidden_layer_sizes)),
                "expansion": fields["expansion"],
                "skip": False,
            },
            "budget": fields["budget"],
            **{name: getattr(made, name) for name in ("split", "prune", "activation")},
            "groups": made_with.get("feature_groups"),
            "seeds": fields["seeds"],
        },
        "network": {"layers": fields["layers"], "skip": None},
        "affine": {},
        "moments": _moments(arrays, "moments"),
        "targets": targets,
        "phase": fields["phase"],
        "history": {
            **{"best_iter": best_iter, "n_iter": fields["n_iter"]},
            "refitted": False,
        },
    }
    center = arrays.pop("center", None)
    if center is not None:
        arrays["network.input_mean"] = center.astype(np.float64)
        arrays["network.input_scale"] = np.ones(center.shape)
    arrays = {**empty, "history.best_score": np.array(-np.inf), **arrays}
    kept = ("class", "parameters", "feature_names")
    return {**{name: fields[name] for name in kept}, "learned": learned}, arrays


def _new_name(name):
    for old, new in NAMES.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _moments(arrays, name):
    """Take the old mean as the first row seen; return what JSON says of moments."""
    if f"{name}.mean" not in arrays:
        return None
    mean = arrays.pop(f"{name}.mean")
    arrays[f"{name}.shift"], arrays[f"{name}.mean"] = mean, np.zeros_like(mean)
    arrays[f"{name}.unit"] = np.ones_like(mean)
    return {}


def _best_iter(arrays, n_iter):
    """Return the epoch of the best score, if there are any scores."""
    scores = arrays.get("history.validation_scores")
    if scores is None or not scores.size or type(n_iter) is not int:
        return None
    return max(0, n_iter - scores.size + 1 + int(scores.argmax()))
