"""Training of every network of the experiments, by the library's own engine.

All methods have the same optimizer, learning rate schedule and batches in the same
order. What a method does besides is a hook, a split or prune rule, or a network of its
own.
"""

import numpy as np
import torch

from sklearn_fpe._engine._loss import LOSSES
from sklearn_fpe._engine._recipe import Learned, Recipe, Seeds, Settings
from sklearn_fpe._engine._trainer import Trainer
from sklearn_fpe._engine._views import Sample, View
from sklearn_fpe._estimators._targets import ClassTargets
from sklearn_fpe.nn import MLP, Affine, Shape, SplitRule, check_expansion, partition
from sklearn_fpe.nn._activation import get_activation
from sklearn_fpe.nn._prune import get_prune
from sklearn_fpe.nn._split import get_split


def fit_fpe(
    task,
    hidden,
    expansion,
    *,
    seed,
    split="shared",
    prune="magnitude",
    skip=False,
    **settings,
):
    """Warm up, expand at equal parameters, fine-tune; expansion=1 is the dense net."""
    rules = {"split": split, "prune": prune, "skip": skip}
    return train(task, make_recipe(task, hidden, expansion, seed, **rules), **settings)


def fit_network(task, network, *, seed, hooks=(), **settings):
    """Train a network that is made already: dense, masked, or with layers of its own.

    `network` has one hidden layer or none.
    """
    hidden = tuple(layer.out_features for layer in network.hidden)
    recipe = make_recipe(task, hidden, 1, seed)
    return train(task, recipe, network, hooks=hooks, **settings)


def train(
    task,
    recipe,
    network=None,
    *,
    lr,
    epochs,
    batch_size,
    weight_decay=0.0,
    constant=False,
    warmup=0.0,
    hooks=(),
):
    """Train by a recipe, or a network as it is; return the trained network.

    Parameters
    ----------
    task : Task
        Training rows.
    recipe : Recipe
        Shape, budget, rules and seeds.
    network : MLP, default=None
        Network to start from, as if it were expanded already; None: a fresh dense
        parent, which is expanded by the recipe after the warm-up.
    lr : float
        Learning rate at the start; it falls by half a cosine, or is `constant`.
    epochs : int
        Epochs, warm-up included.
    batch_size : int
        Rows per step.
    weight_decay : float
        Decoupled weight decay.
    warmup : float
        Share of the epochs before the expansion.
    hooks : sequence of Hook
        What the method does besides training.
    """
    X, y = task.train
    weights = np.ones(len(X))
    targets = ClassTargets()
    y = targets.check(y.numpy(), weights, learn=True, classes=np.arange(task.n_classes))
    settings = Settings(
        loss=LOSSES[targets.loss](),
        max_iter=epochs,
        n_warmup=round(warmup * epochs),
        batch_size=batch_size,
        learning_rate="constant" if constant else "cosine",
        learning_rate_init=lr,
        weight_decay=weight_decay,
        standardize=task.standardize,
        bfloat16=False,
        device=torch.device("cpu"),
    )
    learned = None
    if network is not None:
        identity = Affine.identity(task.n_inputs)
        learned = Learned(recipe, network, identity, None, targets, "fine-tune")
    sample = Sample(View(X), y, weights)
    trainer = Trainer(recipe, settings, targets, learned)
    trainer.learn_scale(sample)
    return trainer.fit(sample, hooks=hooks).network


def make_recipe(
    task, hidden, expansion, seed, *, split="shared", prune="magnitude", skip=False
):
    """Describe a network of the budget of its dense parent, a skip not counted."""
    rule = SHARED_GROUPS if split == "shared groups" else get_split(split)
    groups = task.groups if rule.needs_groups else None
    widths = [task.n_inputs, *hidden, task.n_outputs]
    if hidden:
        shape, budget = check_expansion(
            widths, expansion, rule, prune=prune, groups=groups, skip=skip
        )
    else:  # a linear map
        shape = Shape(task.n_inputs, (), task.n_outputs, ())
        budget = shape.n_parameters()
    activation, seeds = get_activation("relu"), Seeds.spawn(seed)
    return Recipe(shape, budget, rule, get_prune(prune), groups, activation, seeds)


def _shared_groups(weight, n_children, rng, groups):
    """Assign whole groups of inputs to children, the same for all neurons."""
    row = partition(weight[:1], n_children, "groups", groups=groups, rng=rng)
    return np.repeat(row, len(weight), axis=0)


SHARED_GROUPS = SplitRule(
    "shared groups", _shared_groups, shared=True, needs_groups=True
)


def new_network(task, *hidden, seed):
    """Make the dense network that a training with this seed starts from.

    Weights of inputs that are constant in the training rows cannot be trained. They are
    zero, so that pruning removes them first, as the library does.
    """
    generator = torch.Generator().manual_seed(Seeds.spawn(seed).init)
    network = MLP.dense([task.n_inputs, *hidden, task.n_outputs], generator=generator)
    X = task.train[0]
    with torch.no_grad():
        network.layers[0].weight[:, (X[0] == X).all(dim=0)] = 0.0
    return network


@torch.inference_mode()
def accuracy(network, rows):
    """Return the share of rows that are classified right, in %."""
    X, y = rows
    outputs = network(X)
    if outputs.shape[1] == 1:
        right = (outputs[:, 0] > 0) == y
    else:
        right = outputs.argmax(1) == y
    return 100 * float(right.float().mean())


def report(network, task):
    """Return what every experiment records of a trained network."""
    return {
        "validation": accuracy(network, task.validation),
        "test": accuracy(network, task.test),
        "n_nonzero": network.n_nonzero,
    }
