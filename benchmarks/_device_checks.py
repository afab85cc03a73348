"""What must hold on a device: its results are those of the CPU, and nothing waits."""

import copy
import pickle
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from sklearn_fpe import FPEClassifier, FPERegressor
from sklearn_fpe._engine import _graph
from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._step import FlatParameters, backpropagate
from sklearn_fpe.nn import MLP, expand

ROUNDING = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2}
"""Largest relative difference between devices, by precision."""

RULES = [
    ("contiguous", "structured"),
    ("shared", "structured"),
    ("shared", "magnitude"),
    ("random", "magnitude"),
    ("learned", "gradual"),
    ("contiguous", "rewired"),
]


def make_data(n_rows, n_columns, n_classes, seed=0):
    """Draw clusters with noise, float32 rows and their class numbers."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_rows)
    n_first = min(n_rows, n_classes)
    y[:n_first] = np.arange(n_first)
    X = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    centres = 0.5 * rng.standard_normal((n_classes, n_columns), dtype=np.float32)
    return X + centres[y], y


@contextmanager
def recording_from(n_steps):
    """Record steps in phases of at least so many; inf: never."""
    before = _graph.MIN_RECORDED_STEPS
    _graph.MIN_RECORDED_STEPS = n_steps
    try:
        yield
    finally:
        _graph.MIN_RECORDED_STEPS = before


def synchronize(device):
    """Wait until the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def correctness(device):
    """Compare fits, predictions and gradients with those of the CPU."""
    X, y = make_data(2000, 96, 12)
    cases = [(FPEClassifier, y, {"split": s, "prune": p}) for s, p in RULES]
    cases += [
        (FPEClassifier, y, {"hidden_layer_sizes": (24, 16)}),
        (FPEClassifier, y, {"skip_connection": True}),
        (FPEClassifier, y, {"activation": "gelu"}),
        (FPEClassifier, y % 2, {}),
        (FPEClassifier, np.stack([y > 5, y % 2 == 0], axis=1).astype(int), {}),
        (FPERegressor, X[:, :3] + 0.1, {}),
        (FPEClassifier, y, {"early_stopping": True}),
        (FPEClassifier, y, {"precision": "bfloat16"}),
        (FPEClassifier, y, {"precision": "tf32"}),
    ]
    rows = [_compare(device, X, *case) for case in cases]
    return rows + _compare_gradients(device)


def _compare(device, X, kind, y, settings):
    """Fit on the CPU and on the device, launched and recorded."""
    common = {"max_iter": 12, "batch_size": 100, "random_state": 0, "expansion": 2}
    settings = {**common, **settings}
    tolerance = ROUNDING[settings.get("precision", "float32")]
    plain = kind(**settings, device="cpu").fit(X, y)
    with recording_from(np.inf):
        launched = kind(**settings, device=device).fit(X, y)
    with recording_from(20):
        recorded = kind(**settings, device=device).fit(X, y)
    twin = pickle.loads(pickle.dumps(copy.copy(launched).set_params(device="cpu")))
    wide = X.astype(np.float64)
    row = {
        "check": f"{kind.__name__} {settings}",
        "first_loss": _relative(launched.loss_curve_[0], plain.loss_curve_[0]),
        "same_model_float32": _relative(_outputs(launched, X), _outputs(twin, X)),
        "same_model_float64": _relative(_outputs(launched, wide), _outputs(twin, wide)),
        "score_cpu": plain.score(X, y),
        "score_device": launched.score(X, y),
        "recorded_is_launched": recorded.loss_curve_ == launched.loss_curve_,
        "recorded_difference": _relative(
            np.array(recorded.loss_curve_), np.array(launched.loss_curve_)
        ),
    }
    row["passed"] = bool(
        row["first_loss"] <= 10 * tolerance
        and row["same_model_float32"] <= ROUNDING["float32"] * 10
        and row["same_model_float64"] <= 1e-10
        and abs(row["score_cpu"] - row["score_device"]) <= 0.05
        and row["recorded_difference"] <= 0.05
    )
    return row


def _outputs(model, X):
    function = getattr(model, "predict_proba", None) or model.predict
    return np.asarray(function(X), dtype=np.float64)


def _relative(found, expected):
    scale = max(1e-12, float(np.abs(expected).max()))
    return float(np.abs(np.asarray(found) - expected).max() / scale)


def _compare_gradients(device):
    """Compare the gradients of a step with those of autograd in float64."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for name in LOSSES:
        for split, prune in RULES[:4]:
            dense = MLP.dense([96, 32, 12], generator=generator)
            network, _ = expand(dense, 4, split, prune=prune, rng=0)
            x = torch.randn(300, 96, generator=generator)
            targets = torch.rand(300, 12, generator=generator)
            if name == "softmax":
                targets = targets.argmax(1)
            target = targets, torch.rand(300, generator=generator)
            loss, exact = LOSSES[name](), copy.deepcopy(network).double()
            wide = [t.double() if t.is_floating_point() else t for t in target]
            loss(exact(x.double()), *wide).backward()
            twin = copy.deepcopy(network).to(device)
            flat = FlatParameters(twin)
            there = [t.to(device) for t in target]
            backpropagate(
                twin, x.to(device), lambda o, t=there, f=loss: f.differentiate(o, *t)
            )
            flat.mask_gradients()
            pairs = zip(twin.parameters(), exact.parameters(), strict=True)
            error = max(_relative(p.grad.cpu(), q.grad.numpy()) for p, q in pairs)
            rows.append(
                {"check": f"gradient of {name}, {split}, {prune}", "difference": error}
                | {"passed": error <= 1e-4}
            )
    return rows


def waits(device, make):
    """Count how often the host waits: in an epoch, a step, and for more rows.

    Parameters
    ----------
    device : str
        Device.
    make : callable
        Maps settings to an estimator.

    Returns
    -------
    rows : list of dict
        Empty on other devices than CUDA, whose debug mode counts.
    """
    if torch.device(device).type != "cuda":
        return []
    X, y = make_data(12_800, 128, 40)

    def count(n_rows=6400, **settings):
        return _count_waits(lambda: make(**settings).fit(X[:n_rows], y[:n_rows]))

    settings = {"prune": "structured", "batch_size": 128, "max_iter": 8}
    base = count(**settings)
    model = make(**settings).fit(X, y)
    return [
        {"what": "a fit of 8 epochs", "waits": base},
        {
            "what": "per epoch",
            "waits": (count(**{**settings, "max_iter": 18}) - base) / 10,
        },
        {
            "what": "per step",
            "waits": (count(**{**settings, "batch_size": 64}) - base) / (8 * 50),
        },
        {
            "what": "for twice the rows",
            "waits": count(n_rows=12_800, **settings) - base,
        },
        {"what": "predict", "waits": _count_waits(lambda: model.predict(X))},
    ]


def _count_waits(function):
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def kernels(device, make):
    """Count the kernels (on the CPU: the operations) of a step by the profiler.

    Two fits that differ in their epochs are compared, each launched step by step.
    """
    on_cuda = torch.device(device).type == "cuda"
    kind = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    X, y = make_data(3200, 128, 40)

    def count(n_epochs, settings):
        model = make(max_iter=n_epochs, batch_size=100, **settings)
        with recording_from(np.inf), profile(activities=[kind]) as profiled:
            model.fit(X, y)
            synchronize(device)
        wanted = torch.autograd.DeviceType.CUDA if on_cuda else None
        return sum(
            event.device_type == wanted if on_cuda else event.cpu_parent is None
            for event in profiled.events()
        )

    rows = []
    for split, prune in RULES:
        settings = {"split": split, "prune": prune, "expansion": 4}
        few, many = count(2, settings), count(6, settings)
        rows.append({**settings, "kernels_per_step": (many - few) / (4 * 32)})
    return rows
