"""Files of format version 1, turned into what a file of version 2 would say."""

import numpy as np

from sklearn_fpe._estimators._parameters import resolve_hidden
from sklearn_fpe._io._model import unfitted
from sklearn_fpe.nn._state import array, record


def upgrade(model, memory):
    """Return a model, with the arrays at their paths, as a file of version 2 has it.

    Only what must be known for that is checked; `memory` is what loading may take.
    """
    needed = (
        *("class", "parameters", "made_with", "feature_names", "targets", "expansion"),
        *("budget", "phase", "n_iter", "seeds", "layers", "scaler", "loss_curve"),
    )
    optional = ("parents", "moments", "center", "validation_scores")
    record(model, "model", needed, (*optional, "best_validation_score"))
    made_with, n_iter = model["made_with"], model["n_iter"]
    made = unfitted(model["class"], made_with, "model.made_with", memory)
    parents = model.get("parents", {})
    network = {"layers": model["layers"], "skip": None, "parents": parents}
    if "center" in model:
        center = array(model["center"], "center", np.floating, (None,))
        network["input_mean"] = center.astype(np.float64)
        network["input_scale"] = np.ones(center.shape)
    best_iter, scores = None, model.get("validation_scores", np.empty(0))
    array(scores, "validation_scores", np.float64, (None,))
    if scores.size and type(n_iter) is int:
        best_iter = max(0, n_iter - scores.size + 1 + int(scores.argmax()))
    learned = {
        "recipe": {
            "shape": {
                "hidden": list(resolve_hidden(made.hidden_layer_sizes)),
                "expansion": model["expansion"],
                "skip": False,
            },
            "budget": model["budget"],
            **{name: getattr(made, name) for name in ("split", "prune", "activation")},
            "groups": made_with.get("feature_groups"),
            "seeds": model["seeds"],
        },
        "network": network,
        "affine": model["scaler"],
        "moments": _moments(model.get("moments"), "moments"),
        "targets": _targets(model["targets"], made_with.get("class_weight")),
        "phase": model["phase"],
        "history": {
            "losses": model["loss_curve"],
            "validation_losses": np.empty(0),
            "validation_scores": scores,
            "best_score": model.get("best_validation_score", np.array(-np.inf)),
            "best_iter": best_iter,
            "n_iter": n_iter,
            "refitted": False,
        },
    }
    kept = {name: model[name] for name in ("class", "parameters", "feature_names")}
    return {**kept, "learned": learned}


def _targets(targets, class_weight):
    if isinstance(targets, dict) and "one_dimensional" in targets:
        needed = ("one_dimensional", "mean", "scale")
        flag, mean, scale, moments = record(targets, "targets", needed, ("moments",))
        return {
            "one_dimensional": flag,
            "affine": {"mean": mean, "scale": scale},
            "moments": _moments(moments, "targets.moments"),
        }
    kind, classes = record(targets, "targets", ("kind", "classes"))
    return {"kind": kind, "classes": {"array": classes}, "class_weight": class_weight}


def _moments(moments, name):
    """Return moments as version 2 has them: the old mean was the first row seen."""
    if moments is None:
        return None
    weight, mean, m2 = record(moments, name, ("weight", "mean", "m2"))
    zeros = np.zeros_like(array(mean, f"{name}.mean", np.float64, (None,)))
    return {"weight": weight, "shift": mean, "unit": zeros + 1, "mean": zeros, "m2": m2}
