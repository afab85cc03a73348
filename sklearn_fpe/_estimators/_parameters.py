"""Checks of parameters before any training."""

import inspect
import math
import os
import pickle
import sys
import warnings
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils.validation import check_memory
from skorch.callbacks import Callback, InputShapeSetter, LRScheduler

AUTO_WORK = 2**28
"""Rows times parameters of the expanded network from which "auto" means a GPU.

A CPU thread does 5e10 operations a second, and an epoch takes about 6 for each of them.
So 50 epochs of 2**28 take 1.6 s, about as long as it takes to set up CUDA. This is
arithmetic, not a measurement.
"""

LOADED_ROWS = 2**16
"""Rows that a model is taken to predict, where it was loaded from a file."""

PASSED_THROUGH = {"sklearn", "joblib"} | sys.stdlib_module_names - {"__main__"}
"""Packages between the user's line and this one."""


def resolve_device(device, work=math.inf, of_process=False):
    """Turn "auto", a name or a torch.device into a device that is there.

    `work` is rows times parameters, by which ``"auto"`` chooses between a GPU and the
    CPU. The GPU is that of this process if `of_process` and torchrun started it. A CUDA
    device gets its number, because the current device may change.
    """
    if isinstance(device, str) and device == "auto":
        if work < AUTO_WORK or not torch.cuda.is_available():
            return torch.device("cpu")
        local_rank = os.environ.get("LOCAL_RANK", "")
        if of_process and local_rank.isdigit():
            return torch.device("cuda", int(local_rank) % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    try:
        resolved = torch.device(device)
        # Double precision is needed where the standardisation is folded.
        there = torch.zeros(1, dtype=torch.float64, device=resolved)
        there.cpu()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        names = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(
            f"device must be 'auto' or a device that is there ({', '.join(names)}), "
            f"got {device!r}."
        ) from error
    return there.device if resolved.index is None else resolved


def device_of_fit(device, X, n_parameters, learned=None):
    """Return the device to train on.

    ``"auto"`` is the GPU that holds X; else it depends on the number of parameters of
    the expanded network. `learned` is the device of a network that is trained piece by
    piece, which stays there if the parameter allows it.
    """
    is_auto = isinstance(device, str) and device == "auto"
    if learned is not None:
        allowed = (learned, torch.device(learned.type))
        if is_auto or torch.device(device) in allowed:
            return learned
    if is_auto and isinstance(X, torch.Tensor) and X.is_cuda:
        return X.device
    return resolve_device(device, X.shape[0] * n_parameters)


def usable_device(device):
    """Return `device` if it is there, else "cpu", with a warning.

    The result becomes the parameter `device` of an estimator that was loaded on another
    machine, so that it trains and clones without a further warning.
    """
    try:
        resolve_device(device, work=0)
    except ValueError as error:
        warnings.warn(
            f"{error} The model that was loaded is set to device='cpu'.",
            UserWarning,
            stacklevel=stack_level(),
        )
        return "cpu"
    return device


def check_size(widths):
    """Check that the dense parent network can be trained in this machine's memory.

    `widths` are columns of X, hidden units and outputs. Nothing is allocated.
    """
    n_parameters = sum((a + 1) * b for a, b in pairwise(map(int, widths)))
    # float32 weights, gradients and AdamW's two running means.
    needed, there = 16 * n_parameters, _memory()
    if needed > there:
        n_features, *hidden, n_outputs = widths
        raise ValueError(
            f"hidden_layer_sizes must give a network that can be trained in the "
            f"{there / 2**30:,.0f} GiB of this machine's memory, got "
            f"{tuple(hidden)}: with {n_features} columns of X and {n_outputs} outputs "
            f"that is {n_parameters:,} parameters, which need {needed / 2**30:,.0f} "
            f"GiB."
        )


def _memory():
    """Return the bytes of memory of this machine, or 2**47 if they are unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2**47


def resolve_warmup(warmup, max_iter):
    """Turn `warmup`, epochs or a fraction of `max_iter`, into epochs."""
    return int(warmup) if isinstance(warmup, Integral) else round(warmup * max_iter)


def check_schedule(n_warmup, max_iter):
    """Check that the warm-up fits into the epochs of a fit."""
    if n_warmup > max_iter:
        raise ValueError(
            f"max_iter must be at least the warm-up: max_iter={max_iter} epochs are "
            f"shorter than warmup={n_warmup}."
        )


def resolve_hidden(hidden_layer_sizes):
    """Turn `hidden_layer_sizes` into a tuple of positive ints."""
    sizes = _positive_integers(hidden_layer_sizes)
    if sizes is None:
        raise ValueError(
            f"hidden_layer_sizes must be positive integers, got {hidden_layer_sizes!r}."
        )
    return tuple(sizes)


def resolve_expansion(expansion):
    """Check `expansion`, an int or one int per hidden layer."""
    entries = _positive_integers(expansion)
    if not entries:
        raise ValueError(
            f"expansion must be an integer of at least 1, or one such integer per "
            f"hidden layer, got {expansion!r}."
        )
    return entries[0] if np.ndim(expansion) == 0 else entries


def _positive_integers(value):
    """Return a scalar or a sequence as a list of ints; None if one is not positive."""
    entries = np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    for entry in entries:
        if not isinstance(entry, Integral) or isinstance(entry, bool) or entry < 1:
            return None
    return [int(entry) for entry in entries]


def check_cache(estimator):
    """Check that a cached warm-up may replace one; return the joblib.Memory."""
    if not isinstance(estimator.random_state, Integral):
        raise ValueError(
            f"memory needs an integer random_state, so that a cached warm-up is the "
            f"one that would be run, got {estimator.random_state!r}."
        )
    if estimator.skorch_callbacks:
        raise ValueError(
            "skorch_callbacks must be None with memory: a warm-up from the cache would "
            "not call them."
        )
    try:
        pickle.dumps(estimator.activation)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"memory needs an activation that can be pickled, made of functions of a "
            f"module, got {estimator.activation!r}."
        ) from error
    return as_memory(estimator.memory)


def as_memory(memory):
    """Make a joblib.Memory of a folder that can be written; a Memory stays one."""
    if not isinstance(memory, (str, os.PathLike)):
        return check_memory(memory)
    folder = os.fspath(memory)
    try:
        made = check_memory(folder)
        if not os.access(made.store_backend.location, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        raise ValueError(
            f"memory must be a folder that can be written, got {folder!r}: {error}"
        ) from error
    return made


def plain(value):
    """Return a parameter in Python's own types, so that equal ones hash alike.

    joblib hashes 0, 0.0 and ``np.int64(0)`` differently. A cache key must not.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(plain(entry) for entry in value)
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Real) and not isinstance(value, Integral):
        value = float(value)
        return int(value) if value.is_integer() else value
    return str(value) if isinstance(value, str) else value


def check_groups(feature_groups, n_features):
    """Check the group labels that ``split="groups"`` needs."""
    if feature_groups is None:
        raise ValueError(
            'split="groups" needs feature_groups, one label per column of X, got None.'
        )
    try:
        shape = np.shape(feature_groups)
    except ValueError:
        shape = "that is ragged"
    if shape != (n_features,):
        raise ValueError(
            f"feature_groups must have one label per column of X, shape "
            f"({n_features},), got shape {shape}."
        )


def check_skorch_callbacks(callbacks, validates, prune):
    """Check that the parameter holds skorch callbacks that can work.

    `validates` tells whether rows are held out, and `prune` is the prune rule.
    """
    for entry in callbacks or ():
        callback = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, Callback):
            raise ValueError(
                f"skorch_callbacks must hold skorch.callbacks.Callback instances or "
                f"classes, or pairs of a name and one of these, got {entry!r}."
            )
        if issubclass(kind, LRScheduler):
            raise ValueError(
                f"skorch_callbacks must hold no {kind.__name__}, because the parameter "
                f"learning_rate sets the rate of every epoch: use "
                f"learning_rate='cosine' or 'constant'."
            )
        if issubclass(kind, InputShapeSetter):
            raise ValueError(
                f"skorch_callbacks must hold no {kind.__name__}, because the parameter "
                f"hidden_layer_sizes and the data set the shape of the network."
            )
        if getattr(callback, "load_best", False) and not prune.at_once:
            raise ValueError(
                f"{kind.__name__}(load_best=True) in skorch_callbacks could bring back "
                f"weights from before prune={prune.name!r} was done: set "
                f"load_best=False. early_stopping=True keeps the best pruned weights."
            )
        if not validates:
            _check_needs_no_held_out_rows(callback, kind)


def _check_needs_no_held_out_rows(callback, kind):
    """Check that a skorch callback, or a class of them, watches training only."""
    watched = getattr(callback, "monitor", None)
    if isinstance(callback, type):
        default = inspect.signature(kind).parameters.get("monitor")
        watched = None if default is None else default.default
    needs = isinstance(watched, str) and watched.startswith("valid_")
    if getattr(callback, "on_train", None) is False:
        watched, needs = "on_train=False", True
    if needs:
        raise ValueError(
            f"{kind.__name__} in skorch_callbacks watches {watched!r}, which needs "
            f"held-out rows: set early_stopping=True (with n_iter_no_change=np.inf to "
            f"leave the stopping to the callback)."
        )


def check_takes_weights(scorer, scoring):
    """Check that a scorer can weigh rows, because the held-out rows have weights."""
    function = getattr(scorer, "_score_func", scorer)
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and "sample_weight" not in parameters:
        raise ValueError(
            f"scoring={scoring!r} takes no sample_weight, but the held-out rows have "
            f"weights: choose a score that takes them."
        )


def stack_level():
    """Return the stacklevel at which a warning points at the user's line.

    It is that of a ``warnings.warn`` in the function that calls this. In a worker
    process, which has no such line, the warning points at the method of the estimator.
    """
    frame, level, own = sys._getframe(1), 1, 1
    while frame is not None:
        # A module that is run by ``python -m`` is named "__main__".
        spec = frame.f_globals.get("__spec__")
        name = frame.f_globals.get("__name__", "") if spec is None else spec.name
        package = name.partition(".")[0]
        if package == "sklearn_fpe":
            own = level
        elif package not in PASSED_THROUGH:
            return level
        frame, level = frame.f_back, level + 1
    return own
