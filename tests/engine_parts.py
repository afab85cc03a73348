"""Parts to build a trainer of, without an estimator."""

import numpy as np
import torch

from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._recipe import Recipe, Seeds, Settings
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe.nn import Affine, check_expansion
from sklearn_fpe.nn._activation import get_activation
from sklearn_fpe.nn._prune import get_prune
from sklearn_fpe.nn._split import get_split


class Classes:
    """Class numbers as targets."""

    rows_to_score = 1

    def __init__(self, n_columns):
        self.n_columns = n_columns
        self.classes = np.arange(n_columns)

    def encode(self, y):
        return torch.from_numpy(y)

    def decode(self, codes):
        return codes

    def decide(self, outputs):
        return outputs.argmax(axis=1)

    def probabilities(self, outputs):
        return np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)

    def learn_scale(self, y, weights, world):
        pass

    def output_affine(self):
        return Affine.identity(self.n_columns)

    def constant(self):
        return np.zeros(self.n_columns, dtype=bool)


def make_recipe(
    widths,
    expansion,
    split,
    prune="magnitude",
    activation="relu",
    seed=0,
    skip=False,
    budget=None,
):
    shape, budget = check_expansion(
        widths, expansion, split, prune=prune, skip=skip, budget=budget
    )
    return Recipe(
        shape,
        budget,
        get_split(split),
        get_prune(prune),
        None,
        get_activation(activation),
        Seeds.spawn(seed),
    )


def make_settings(**settings):
    settings = {
        "loss": LOSSES["softmax"](),
        "max_iter": 6,
        "n_warmup": 2,
        "batch_size": None,
        "learning_rate": "constant",
        "learning_rate_init": 0.05,
        "weight_decay": 0.1,
        "standardize": True,
        "bfloat16": False,
        "device": torch.device("cpu"),
        **settings,
    }
    return Settings(**settings)


def make_sample(n_rows, widths, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(2, 3, size=(n_rows, widths[0])).astype(np.float32)
    y = rng.integers(widths[-1], size=n_rows)
    return Sample(View(X), y, rng.uniform(0.5, 2, n_rows))


def make_trainer(recipe, settings, sample, learned=None):
    trainer = Trainer(recipe, settings, Classes(recipe.shape.n_outputs), learned)
    if learned is None:
        trainer.learn_scale(sample)
    return trainer
