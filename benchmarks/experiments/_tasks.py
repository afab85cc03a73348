"""The tasks that the experiments train on: Boolean, digits, synthetic, embeddings."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits

from sklearn_fpe.datasets import DNF, make_dnf

FROM_FILES = ("glyphs", "text")
"""Tasks whose rows are read from a file of embeddings."""

MOST_ROWS = 6000
"""Training rows that are taken of such a file unless an experiment takes more."""


@dataclass(frozen=True)
class Task:
    """Tensors to train on, to choose the learning rate on, and to report on."""

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    n_classes: int
    formula: DNF | None = None

    @property
    def n_inputs(self):
        return self.train[0].shape[1]

    @property
    def n_outputs(self):
        """One logit for two classes, else one per class."""
        return 1 if self.n_classes == 2 else self.n_classes

    @property
    def standardize(self):
        """Whether training standardises the inputs: not the signs of Boolean ones."""
        return self.formula is None

    @property
    def groups(self):
        return None if self.formula is None else self.formula.feature_groups


def make_task(name, *, seed=0, data=None, **options):
    """Make a task by its name; a Boolean one is a new formula for every seed.

    `data` maps the names of the tasks whose rows are read from a file to its path.
    """
    if name == "boolean":
        return _boolean(seed, **options)
    return _fixed(name, (data or {}).get(name), **options)


def real_tasks(data):
    """Names of the tasks of measured, not drawn, data."""
    return ["digits", *(["glyphs"] if "glyphs" in (data or {}) else [])]


@lru_cache(maxsize=2)
def _boolean(seed, n_train=10000, n_test=5000, **options):
    """Draw a formula and its rows; inputs are -1 and 1."""
    X, y, formula = make_dnf(n_train + 2 * n_test, random_state=seed, **options)
    X = 2 * X - 1
    parts = np.split(np.arange(len(X)), [n_train, n_train + n_test])
    return Task(*(_tensors(X[i], y[i]) for i in parts), 2, formula)


@lru_cache(maxsize=4)
def _fixed(name, path, n_train=None, n_classes=None):
    """Load or draw data that are the same for every seed, standardised by train."""
    if name in FROM_FILES:
        X, y, X_test, y_test = _embeddings(path, n_classes)
        n_train = n_train or MOST_ROWS
    else:
        draw = {"digits": _digits, "synthetic": _synthetic, "blobs": _blobs}[name]
        X, y = draw()
        order = np.random.default_rng(0).permutation(len(X))
        n_test = len(X) // 4
        X_test, y_test = X[order[:n_test]], y[order[:n_test]]
        X, y = X[order[n_test:]], y[order[n_test:]]
    n_train = min(n_train or len(X), len(X) * 5 // 6)
    order = np.random.default_rng(1).permutation(len(X))
    train, validation = order[:n_train], order[n_train : n_train + n_train // 5]
    mean, std = X[train].mean(0), X[train].std(0)
    std[std == 0] = 1
    parts = [(X[train], y[train]), (X[validation], y[validation]), (X_test, y_test)]
    return Task(*(_tensors((a - mean) / std, b) for a, b in parts), int(y.max()) + 1)


def _tensors(X, y):
    return (
        torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64)),
    )


def _embeddings(path, n_classes):
    """Read embeddings from a file with the keys X_train, y_train, X_test, y_test.

    With `n_classes`, a fixed random choice of so many classes.
    """
    with np.load(path) as file:
        arrays = [file[k] for k in ("X_train", "y_train", "X_test", "y_test")]
    X, y, X_test, y_test = arrays
    classes = np.random.default_rng(2).permutation(np.unique(y))[:n_classes]
    label = np.full(int(y.max()) + 1, -1)
    label[classes] = np.arange(len(classes))
    keep, keep_test = label[y] >= 0, label[y_test] >= 0
    return (
        X[keep].astype(np.float32),
        label[y[keep]],
        X_test[keep_test].astype(np.float32),
        label[y_test[keep_test]],
    )


def _digits():
    return load_digits(return_X_y=True)


def _synthetic(n_rows=9600, n_inputs=128, n_classes=50, n_latent=40, per_class=6):
    """Draw embeddings in which classes are combinations of shared latent features.

    A class is a set of latent features. A row shows each of its class's features with
    probability 0.8, every other one with probability 0.05; each is a direction of the
    embedding, to which noise is added.
    """
    rng = np.random.default_rng(3)
    members = np.argsort(rng.random((n_classes, n_latent)), axis=1) < per_class
    y = np.arange(n_rows) % n_classes
    shown = rng.random((n_rows, n_latent)) < np.where(members[y], 0.8, 0.05)
    directions = rng.normal(size=(n_latent, n_inputs)) / np.sqrt(n_inputs)
    X = shown @ directions + 0.05 * rng.normal(size=(n_rows, n_inputs))
    return X, y


def _blobs(n_rows=9600, n_inputs=128, n_classes=50):
    """Draw one Gaussian blob a class: no features that classes share."""
    rng = np.random.default_rng(4)
    centers = rng.normal(size=(n_classes, n_inputs))
    y = np.arange(n_rows) % n_classes
    return centers[y] + 3.0 * rng.normal(size=(n_rows, n_inputs)), y


SCHEDULES = {"digits": {"epochs": 50, "batch_size": 64}}
OTHER_SCHEDULE = {"epochs": 15, "batch_size": 128}
QUICK_EPOCHS = 3


def schedule(name, quick):
    """Return epochs and batch size for a task of real values."""
    settings = SCHEDULES.get(name, OTHER_SCHEDULE)
    return settings | {"epochs": QUICK_EPOCHS} if quick else settings
