"""Train several small networks of one hidden layer as one.

Weights are stacked along a first axis and padded to the same number of units; a step
is one batched product. Adam moves every weight on its own, so each network learns what
it would learn by :func:`_loop.train`, up to rounding.
"""

import torch
from torch.nn import functional as F

from benchmarks.experiments._loop import batches, expanded, generator, scheduled
from sklearn_fpe.nn import MLP
from sklearn_fpe.nn._layers import DenseLinear, MaskedLinear


def train_stack(networks, tasks, seeds, epochs, n_epochs, *, lr, batch_size, constant):
    """Train networks with one output on tasks of equal size; return new networks."""
    stack = _Stack(networks)
    optimizer = torch.optim.AdamW(stack.values, lr=lr, weight_decay=0.0, fused=True)
    X = torch.stack([task.train[0] for task in tasks])
    y = torch.stack([task.train[1] for task in tasks]).float()
    which = torch.arange(len(networks))[:, None]
    for epoch in epochs:
        rate = scheduled(lr, epoch, n_epochs, constant)
        for group in optimizer.param_groups:
            group["lr"] = rate
        order = [batches(X.shape[1], batch_size, seed, epoch) for seed in seeds]
        for rows in torch.stack(order, dim=1):
            optimizer.zero_grad()
            outputs = stack.forward(X[which, rows])
            losses = F.binary_cross_entropy_with_logits(
                outputs, y[which, rows], reduction="sum"
            )
            (losses / batch_size).backward()
            stack.mask_gradients()
            optimizer.step()
    return stack.networks()


def fit_stack(tasks, n_hidden, ways, seeds, *, epochs, warmup, **settings):
    """Do for many nets what :func:`_loop.fit_fpe` does for one.

    `ways` are pairs of an expansion and a split, one for every task and seed.
    """
    n_warmup = round(warmup * epochs)
    networks = [
        MLP.dense([task.n_inputs, n_hidden, 1], generator=generator(seed))
        for task, seed in zip(tasks, seeds, strict=True)
    ]
    warm = range(n_warmup), epochs
    networks = train_stack(networks, tasks, seeds, *warm, **settings)
    each = zip(networks, tasks, ways, seeds, strict=True)
    networks = [expanded(net, task, *way, seed) for net, task, way, seed in each]
    rest = range(n_warmup, epochs), epochs
    return train_stack(networks, tasks, seeds, *rest, **settings)


class _Stack:
    """Weights of networks of one hidden layer and one output, padded by zeros."""

    def __init__(self, networks):
        self.kept = [[layer.kept() for layer in net.layers] for net in networks]
        n_units = max(net.layers[0].out_features for net in networks)

        def padded(of_net):
            # Of every net's (n_units, ...), rows of zeros are added.
            return torch.stack([F.pad(v, (0, 0, 0, n_units - len(v))) for v in of_net])

        first, last = zip(*(net.layers for net in networks), strict=True)
        self.w1 = padded([layer.dense_weight() for layer in first])
        self.b1 = padded([layer.unit_bias()[:, None] for layer in first]).squeeze(2)
        self.w2 = padded([layer.dense_weight().T for layer in last])
        self.b2 = torch.stack([layer.unit_bias() for layer in last])
        self.mask1 = padded([kept.float() for kept, _ in self.kept])
        self.mask2 = padded([kept.T.float() for _, kept in self.kept])
        self.values = [self.w1, self.b1, self.w2, self.b2]
        for value in self.values:
            value.requires_grad_()

    def forward(self, x):
        """Map x (n_networks, n_rows, n_inputs) to logits (n_networks, n_rows)."""
        hidden = torch.baddbmm(self.b1[:, None], x, self.w1.mT).relu()
        return torch.baddbmm(self.b2[:, None], hidden, self.w2)[..., 0]

    def mask_gradients(self):
        """Keep pruned weights at zero, and so the biases of units that pad."""
        self.w1.grad.mul_(self.mask1)
        self.w2.grad.mul_(self.mask2)

    def networks(self):
        """Take the networks apart again."""
        found = []
        for i, (kept1, kept2) in enumerate(self.kept):
            n = len(kept1)
            w1, b1 = self.w1[i, :n].detach(), self.b1[i, :n].detach()
            w2, b2 = self.w2[i, :n].detach().T, self.b2[i].detach()
            layers = [_layer(w1, b1, kept1), _layer(w2, b2, kept2)]
            found.append(MLP(layers).eval())
        return found


def _layer(weight, bias, kept):
    if not kept.all():
        return MaskedLinear(weight.clone(), bias.clone(), kept)
    layer = torch.nn.utils.skip_init(DenseLinear, *reversed(weight.shape))
    layer.weight = torch.nn.Parameter(weight.clone())
    layer.bias = torch.nn.Parameter(bias.clone())
    return layer
