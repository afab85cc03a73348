"""One bare training loop for every network of the experiments.

Everything that is compared goes through :func:`train`: the same optimiser, the same
learning rate schedule, the same batches in the same order.
"""

import math
import warnings

import numpy as np
import torch
from torch.nn import functional as F

from sklearn_fpe.nn import MLP, expand, partition


class Hook:
    """What a method does besides training; the default is nothing."""

    def before_step(self, network, optimizer, step, n_steps):
        """Called when the gradients are there, before the optimiser uses them."""


def train(
    network, task, epochs, n_epochs, *, lr, seed, batch_size, constant=False, hook=None
):
    """Train in place for `epochs`, a range within the `n_epochs` of the schedule.

    AdamW without weight decay; the learning rate is half a cosine from `lr` down to
    zero over `n_epochs`, or constant.
    """
    hook = hook or Hook()
    X, y = task.train
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, weight_decay=0.0, fused=True
    )
    network.train()
    n_batches = len(X) // batch_size
    for epoch in epochs:
        for group in optimizer.param_groups:
            group["lr"] = scheduled(lr, epoch, n_epochs, constant)
        for step, rows in enumerate(batches(len(X), batch_size, seed, epoch)):
            optimizer.zero_grad()
            loss(network(X[rows]), y[rows]).backward()
            step += epoch * n_batches
            hook.before_step(network, optimizer, step, n_epochs * n_batches)
            optimizer.step()
    return network.eval()


def scheduled(lr, epoch, n_epochs, constant):
    """Return the learning rate of an epoch."""
    return (
        lr
        if constant
        else lr * 0.5 * (1 + math.cos(math.pi * (epoch + 0.5) / n_epochs))
    )


def batches(n_rows, batch_size, seed, epoch):
    """Return the rows of every batch of an epoch, (n_batches, batch_size).

    They depend on the seed and the epoch alone, whatever is trained.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n_rows)
    n_batches = n_rows // batch_size
    return torch.from_numpy(order[: n_batches * batch_size]).view(n_batches, batch_size)


def loss(outputs, y):
    """Cross-entropy; of a sigmoid where there is one output."""
    if outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.float())
    return F.cross_entropy(outputs, y)


@torch.inference_mode()
def accuracy(network, rows):
    """Share of rows classified right, in %."""
    X, y = rows
    outputs = network(X)
    right = (
        (outputs[:, 0] > 0) == y if outputs.shape[1] == 1 else outputs.argmax(1) == y
    )
    return 100 * float(right.float().mean())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def fit_fpe(
    task, hidden, expansion, *, seed, epochs, warmup, split="shared", **settings
):
    """Warm up, expand at equal parameters, fine-tune; expansion=1 is the dense net.

    The dense net has the same schedule, the fresh optimiser at the split included.
    """
    widths = [task.n_inputs, *hidden, task.n_outputs]
    network = MLP.dense(widths, generator=generator(seed))
    n_warmup = round(warmup * epochs)
    settings["seed"] = seed
    train(network, task, range(n_warmup), epochs, **settings)
    network = expanded(network, task, expansion, split, seed)
    return train(network, task, range(n_warmup, epochs), epochs, **settings)


def expanded(network, task, expansion, split, seed):
    """Expand by a split of the library, or by one deal of groups for all neurons."""
    if np.max(expansion) == 1:
        return network

    def shared_groups(weight, n_children, rng):
        row = partition(weight[:1], n_children, "groups", groups=task.groups, rng=rng)
        return np.repeat(row, len(weight), axis=0)

    groups = task.groups if split == "groups" else None
    split = shared_groups if split == "shared groups" else split
    with warnings.catch_warnings():
        # Large expansions for many classes are part of what is measured.
        warnings.filterwarnings("ignore", "The outgoing weights", UserWarning)
        return expand(network, expansion, split, groups=groups, rng=seed)[0]


def report(network, task):
    """What every experiment records of a trained network."""
    return {
        "validation": accuracy(network, task.validation),
        "test": accuracy(network, task.test),
        "n_nonzero": network.n_nonzero,
    }
