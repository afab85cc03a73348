"""Fits of several processes on parts of the same rows; also the script they run.

    python tests/distributed_cases.py SUITE RANK N_PROCESSES FOLDER

writes what the fits of a suite gave to FOLDER/RANK.pkl.
"""

import datetime
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from scipy import sparse
from sklearn.datasets import load_digits

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe._engine import _views, _world
from sklearn_fpe._engine._net import Net
from sklearn_fpe._engine._pruning import Gradual
from sklearn_fpe._engine._rewiring import Rewired
from sklearn_fpe.nn._activation import ACTIVATIONS
from sklearn_fpe.nn._prune import PRUNES
from sklearn_fpe.nn._split import SPLITS

TIMEOUT, SHORT_TIMEOUT = 60, 3
"""Seconds after which a process that gets no answer gives up."""

N_ROWS, N_COLUMNS = 128, 9
QUICK = {
    "hidden_layer_sizes": (5,),
    "expansion": 2,
    "max_iter": 8,
    "warmup": 2,
    "learning_rate_init": 1e-2,
    "batch_size": 10**6,
    "random_state": 0,
    "device": "cpu",
}
FEW_STEPS = {
    "gradual": Gradual(interval=2),
    # Some steps apart, because weights that were born a step ago are equal in size but
    # for rounding, so that rounding would decide which of them die next.
    "rewired": Rewired(n_moves=2),
}
"""Rules that prune within the few steps of these fits."""

CLASS_WEIGHTS = {"ball": 0.5, "cone": 2.0, "cube": 1.0}


def rows():
    """Rows whose columns have different scales; one is constant."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(N_ROWS, N_COLUMNS)) * np.logspace(-3, 3, N_COLUMNS) + 4
    X[:, 5] = 2.5
    return X, np.tanh((X - 4) / np.logspace(-3, 3, N_COLUMNS))


def target(kind, exact=False):
    """Targets of a kind that depend on the rows.

    Real targets that are `exact` have two values in equal numbers. The sum of the
    standardised targets is then 0 without rounding. This matters where a network
    starts from zero: the first gradient of its output bias is this sum, of which AdamW
    makes a whole step, even where it is nothing but rounding.
    """
    rng = np.random.default_rng(3)
    _, hidden = rows()
    values = hidden @ rng.normal(size=(N_COLUMNS, 3)) + 0.1 * rng.normal(size=(1, 3))
    if kind == "multiclass":
        return np.array(list(CLASS_WEIGHTS))[values.argmax(axis=1)]
    if kind == "binary":
        return values[:, 0] > values[:, 0].mean()
    if kind == "multilabel":
        return (values > 0).astype(int)
    if exact:
        values = np.sign(values - np.median(values, axis=0))
    return 100 * values[:, 0] + 7 if kind == "real" else values[:, :2] * [1e-3, 1e6]


def weights():
    """Sample weights, one of which is 0."""
    weights = np.random.default_rng(5).uniform(0.2, 3, N_ROWS)
    weights[8] = 0
    return weights


KINDS = {
    "multiclass": FPEClassifier,
    "binary": FPEClassifier,
    "multilabel": FPEClassifier,
    "real": FPERegressor,
    "several reals": FPERegressor,
}


def cut(array, rank, n_processes):
    """Return the part of one process: uneven parts; the last one is the smallest."""
    if array is None or n_processes == 1:
        return array
    borders = (np.linspace(0, 1, n_processes + 1) ** 0.6 * N_ROWS).astype(int)
    return array[borders[rank] : borders[rank + 1]]


def laws():
    """Return the fits that must equal that of one process: name -> settings."""
    cases = {}
    kinds = list(KINDS)
    for split, split_rule in SPLITS.items():
        for prune, rule in PRUNES.items():
            if rule.needs_shared and split_rule.shared is False:
                continue
            if split_rule.overlapping and rule.at_once:
                continue
            for skip in (False, True) if rule.allows_skip else (False,):
                kind = kinds[len(cases) % len(kinds)]
                name = f"{kind}, {split}, {prune}" + ", skip" * skip
                of_split = {"feature_groups": np.arange(N_COLUMNS) // 3}
                cases[name] = {
                    "y": kind,
                    "split": split,
                    "prune": FEW_STEPS.get(prune, prune),
                    "skip_connection": skip,
                    "exact": skip,
                    **(of_split if split == "groups" else {}),
                }
    for kind in KINDS:
        cases[f"{kind}, weighted rows"] = {"y": kind, "weighted": True}
    for kind in ("multiclass", "binary", "multilabel"):
        cases[f"{kind}, balanced"] = {"y": kind, "class_weight": "balanced"}
        cases[f"{kind}, balanced, weighted"] = {
            **{"y": kind, "class_weight": "balanced", "weighted": True},
            "label_smoothing": 0.1,
        }
    cases["class weights"] = {"y": "multiclass", "class_weight": CLASS_WEIGHTS}
    cases["label weights"] = {"y": "multilabel", "class_weight": [{0: 2.0}, {1: 3}, {}]}
    for activation in ACTIVATIONS:
        cases[f"activation {activation}"] = {"y": "binary", "activation": activation}
    cases["two layers"] = {"y": "multiclass", "hidden_layer_sizes": (5, 4)}
    cases["linear"] = {"y": "multiclass", "hidden_layer_sizes": (), "budget": 20}
    cases["not standardised"] = {"y": "real", "standardize": False, "tame": True}
    cases["transformer"] = {"y": "multiclass", "kind": FPETransformer}
    cases["sparse"] = {"y": "multiclass", "sparse": True}
    cases["tensors"] = {"y": "multiclass", "tensor": True}
    return cases


def fit_law(case, rank=0, n_processes=1):
    """Fit the part of a process; return what was learned."""
    case = dict(case)
    y = target(case["y"], case.pop("exact", False))
    kind = case.pop("kind", KINDS[case.pop("y")])
    X, hidden = rows()
    X = hidden if case.pop("tame", False) else X
    X = cut(X, rank, n_processes)
    X = sparse.csr_matrix(X) if case.pop("sparse", False) else X
    X = torch.from_numpy(X) if case.pop("tensor", False) else X
    sample_weight = weights() if case.pop("weighted", False) else None
    parts = [cut(array, rank, n_processes) for array in (y, sample_weight)]
    model = kind(**QUICK | case, distributed=n_processes > 1)
    return outcome(model.fit(X, parts[0], sample_weight=parts[1]))


def outcome(model):
    """Return what a model has learned: arrays, and a digest of all of it."""
    learned = model.learned_
    return {
        "digest": digest(learned.to_state()),
        "pickle": hashlib.sha1(pickle.dumps(model)).hexdigest(),
        "coefs": [coef.toarray() for coef in model.coefs_],
        "intercepts": model.intercepts_,
        "skip": None if learned.network.skip is None else model.skip_coef_.toarray(),
        "losses": np.array(model.loss_curve_),
        "n_nonzero": model.n_nonzero_,
        "budget": model.budget_,
    }


def digest(state):
    """Return a digest of nested dicts and lists of arrays and plain values."""
    sha = hashlib.sha1()

    def add(value):
        if isinstance(value, dict):
            for name in sorted(value, key=str):
                sha.update(str(name).encode())
                add(value[name])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
            sha.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


# --------------------------------------------------------------------------------------
# Other fits, of small batches
# --------------------------------------------------------------------------------------


def digits(rank, n_processes, by_class=False):
    """Return a third of the digits to train on, cut in parts, and others to score."""
    X, y = load_digits(return_X_y=True)
    X_train, y_train = X[::2], y[::2]
    if by_class:  # the parts of most processes lack classes
        order = np.argsort(y_train, kind="stable")
        X_train, y_train = X_train[order], y_train[order]
    n = len(y_train)
    part = slice(rank * n // n_processes, (rank + 1) * n // n_processes)
    return (X_train[part], y_train[part]), (X[1::2], y[1::2])


SMALL = {"hidden_layer_sizes": (6,), "max_iter": 8, "device": "cpu"}


def small_batches(rank, n_processes):
    train, test = digits(rank, n_processes)
    found = {}
    for seed in range(3):
        model = FPEClassifier(
            **SMALL, batch_size=64, random_state=seed, distributed=n_processes > 1
        ).fit(*train)
        found[seed] = outcome(model) | {"score": model.score(*test)}
    return found


def missing_classes(rank, n_processes):
    train, test = digits(rank, n_processes, by_class=True)
    model = FPEClassifier(
        **SMALL, class_weight="balanced", random_state=0, distributed=True
    ).fit(*train)
    found = outcome(model) | {"classes": model.classes_, "seen": np.unique(train[1])}
    return found | {"score": model.score(*test)}


def few_rows(rank, n_processes):
    """Fit with three rows in one process, and fewer than there are steps."""
    X, y = load_digits(return_X_y=True)
    part = slice(0, 3) if rank == 1 else slice(3 + 300 * rank, 303 + 300 * rank)
    steps = []
    train_step = Net.train_step
    settings = {**SMALL, "batch_size": 32, "random_state": 0}

    def counted(self, batch, **kwargs):
        steps.append(1)
        return train_step(self, batch, **kwargs)

    with (
        mock.patch.object(Net, "train_step", counted),
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce,
    ):
        model = FPEClassifier(**settings, distributed=True).fit(X[part], y[part])
    lengths = {call.args[0].numel() for call in reduce.call_args_list}
    found = outcome(model) | {"n_steps": len(steps), "n_reduced": reduce.call_count}
    return found | {"score": model.score(X, y), "n_lengths": len(lengths)}


def early_stopping(rank, n_processes):
    """Fit with early stopping by several scores, and refit."""
    train, test = digits(rank, n_processes)
    parts = {"X_val": test[0][rank::n_processes], "y_val": test[1][rank::n_processes]}
    found = {}
    for name, settings, held in (
        ("own rows", {}, {}),
        ("accuracy", {}, parts),
        ("loss", {"scoring": "loss"}, parts),
        ("scorer", {"scoring": "neg_log_loss"}, parts),
        ("refit", {"refit": True, "scoring": "loss"}, {}),
        ("r2", {}, parts),
    ):
        kind = FPERegressor if name == "r2" else FPEClassifier
        # A rate at which processes would disagree on when to stop.
        stopping = {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 12}
        model = kind(
            **SMALL | stopping | settings,
            learning_rate="constant",
            learning_rate_init=0.1,
            random_state=1,
            prune="magnitude",
            distributed=True,
        ).fit(*train, **held)
        found[name] = outcome(model) | {
            "n_iter": model.n_iter_,
            "best": model.best_validation_score_,
            "scores": model.validation_scores_,
            "validation_losses": model.validation_loss_curve_,
            "score": model.score(*test),
        }
    return found


def partial_fit(rank, n_processes):
    """Call partial_fit on pieces of two classes, then go on from a copy by fit."""
    X, y = load_digits(return_X_y=True)
    settings = SMALL | {"random_state": 0, "warmup": 2, "prune": "magnitude"}
    model = FPEClassifier(**settings, distributed=True)
    for epoch in range(10):
        part = slice(200 * (epoch % 5) + 70 * rank, 200 * (epoch % 5) + 200)
        classes = np.arange(10) if epoch == 0 else None
        model.partial_fit(X[part], y[part], classes=classes)
    found = {"calls": outcome(model) | {"score": model.score(X, y)}}
    model = pickle.loads(pickle.dumps(model))
    model.set_params(warm_start=True, max_iter=4).fit(
        X[rank::n_processes], y[rank::n_processes]
    )
    return found | {"warm start": outcome(model) | {"score": model.score(X, y)}}


def memory_map(rank, n_processes, folder):
    """Fit a streamed memory map and the same rows in memory."""
    X, y = load_digits(return_X_y=True)
    X, all_y, y = X.astype(np.float32), y, y[rank::n_processes]
    path = Path(folder, f"{rank}.npy")
    np.save(path, X[rank::n_processes])
    found = {}
    with mock.patch.object(_views, "STREAM_ABOVE", 0):
        for name, rows_ in (
            ("map", np.load(path, mmap_mode="r")),
            ("array", X[rank::n_processes]),
        ):
            for batch_size in (10**6, 50):
                model = FPEClassifier(
                    **SMALL, batch_size=batch_size, random_state=0, distributed=True
                ).fit(rows_, y)
                found[name, batch_size] = outcome(model) | {
                    "score": model.score(X, all_y)
                }
    return found


def own_seeds(rank, n_processes):
    """Fit without a seed: all processes use that of one."""
    train, _ = digits(rank, n_processes)
    settings = SMALL | {"max_iter": 2, "random_state": None}
    first = outcome(FPEClassifier(**settings, distributed=True).fit(*train))
    second = outcome(FPEClassifier(**settings, distributed=True).fit(*train))
    return {"first": first, "second": second}


def autograd(rank, n_processes):
    """Fit in bfloat16, whose gradients come from autograd."""
    train, test = digits(rank, n_processes)
    settings = SMALL | {"precision": "bfloat16", "random_state": 0, "max_iter": 3}
    model = FPEClassifier(**settings, distributed=True).fit(*train)
    return outcome(model) | {"score": model.score(*test)}


# --------------------------------------------------------------------------------------
# Failures
# --------------------------------------------------------------------------------------


def error_of(function):
    """Return type, message and seconds of the error that a function raises."""
    start = time.monotonic()
    try:
        function()
    except BaseException as error:
        return type(error), str(error), time.monotonic() - start
    return None, "", time.monotonic() - start


def failures(rank, n_processes):
    """Let one process fail in several ways; the others must end, and all may go on."""
    (X, y), _ = digits(rank, n_processes)
    settings = SMALL | {"max_iter": 4, "random_state": 0, "expansion": 4}
    last = rank == n_processes - 1
    model = FPEClassifier(**settings, distributed=True).fit(X, y)
    before = outcome(model)["digest"]
    bad = X.copy()
    bad[2, 3] = np.nan
    found = {"failed": last}

    def fit(X, y, **changed):
        model.set_params(**settings | changed).fit(X, y)

    def at_step():
        steps = []
        train_step = Net.train_step

        def fails(self, batch, **kwargs):
            steps.append(1)
            if last and len(steps) == 5:
                raise OSError("the disk is gone")
            return train_step(self, batch, **kwargs)

        with mock.patch.object(Net, "train_step", fails):
            fit(X, y)

    found["data"] = error_of(lambda: fit(bad if last else X, y))
    found["columns"] = error_of(lambda: fit(X[:, :60] if last else X, y))
    found["parameter"] = error_of(lambda: fit(X, y, expansion=3 if last else 4))
    found["labels"] = error_of(lambda: fit(X, y.astype(str) if last else y))
    found["step"] = error_of(at_step)
    held = {"X_val": X[:9], "y_val": y[:9]} if last else {}
    stopping = FPEClassifier(**settings, early_stopping=True, distributed=True)
    found["argument"] = error_of(lambda: stopping.fit(X, y, **held))
    found["interrupt"] = error_of(lambda: interrupted(model, X, y, last))
    found["model is as it was"] = outcome(model)["digest"] == before
    fit(X, y)
    found["again"] = outcome(model)["digest"] == before
    # Ctrl-C after the last exchange may leave the connections of one process closed.
    if last:
        _world.current().close()
    fit(X, y)
    found["after a failure of one"] = outcome(model)["digest"] == before
    return found


def interrupted(model, X, y, last):
    """Fit, with Ctrl-C in the last process."""

    def begin(*args, **kwargs):
        raise KeyboardInterrupt

    with mock.patch.object(Net, "begin_phase", begin) if last else nullcontext():
        model.fit(X, y)


def killed(rank, n_processes):
    """Kill the last process in a step; the others then call fit again."""
    (X, y), _ = digits(rank, n_processes)
    steps = []
    train_step = Net.train_step

    def dies(self, batch, **kwargs):
        steps.append(1)
        if rank == n_processes - 1 and len(steps) == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, batch, **kwargs)

    settings = SMALL | {"random_state": 0, "batch_size": 32}
    model = FPEClassifier(**settings, distributed=True)
    with mock.patch.object(Net, "train_step", dies):
        in_step = error_of(lambda: model.fit(X, y))
    wait = datetime.timedelta(seconds=SHORT_TIMEOUT)
    with mock.patch.object(_world, "_timeout", return_value=wait):
        again = error_of(lambda: model.fit(X, y))
    return {"in a step": in_step, "again": again, "is fitted": hasattr(model, "coefs_")}


def run_laws(rank, n_processes):
    return {name: fit_law(case, rank, n_processes) for name, case in laws().items()}


SUITES = {
    "two": [
        *(run_laws, small_batches, missing_classes, few_rows, early_stopping),
        *(partial_fit, memory_map, own_seeds, autograd, failures),
    ],
    "three": [few_rows, failures, killed],
}


def run_processes(suite, n_processes, folder):
    """Run a suite in processes; return what each one gave, None of one that died."""
    script = [sys.executable, __file__, suite]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    processes = [
        subprocess.Popen(
            [*script, str(rank), str(n_processes), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n_processes)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = []
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        path = Path(folder, f"{rank}.pkl")
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"process {rank}: {output}")
        found.append(pickle.loads(path.read_bytes()) if path.exists() else None)
    return found


def main():
    suite, rank, n_processes, folder = sys.argv[1:]
    rank, n_processes = int(rank), int(n_processes)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="expansion is")
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "rendezvous").resolve().as_uri(),
        rank=rank,
        world_size=n_processes,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    found, seconds = {}, {}
    for case in SUITES[suite]:
        arguments = (folder,) if case is memory_map else ()
        start = time.monotonic()
        found[case.__name__] = case(rank, n_processes, *arguments)
        seconds[case.__name__] = round(time.monotonic() - start, 1)
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found | {"seconds": seconds}))


if __name__ == "__main__":
    main()
