"""What the library is measured against: a bare loop, and the naive masked net."""

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from sklearn_fpe.nn import MLP, partition


class BareLoop:
    """The dense parent, trained by a loop with nothing around it: the floor."""

    def __init__(self, hidden, max_iter, batch_size, lr, seed=0, device="cpu"):
        self.hidden, self.max_iter, self.batch_size = hidden, max_iter, batch_size
        self.lr, self.seed, self.device = lr, seed, device

    def fit(self, X, y):
        """Standardise, train."""
        X = torch.from_numpy((X - X.mean(0)) / X.std(0)).to(self.device)
        y = torch.from_numpy(y).to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        n_classes = int(y.max()) + 1
        net = MLP.dense([X.shape[1], self.hidden, n_classes], generator=generator)
        first, second = (nn.Linear(*reversed(p.weight.shape)) for p in net.layers)
        net = nn.Sequential(first, nn.ReLU(), second).to(self.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, fused=True)
        for _ in range(self.max_iter):
            order = torch.randperm(len(X), generator=generator).to(self.device)
            for batch in order.split(self.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(net(X[batch]), y[batch]).backward()
                optimizer.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.net = net
        return self

    def predict(self, X):
        """Predict class numbers."""
        with torch.inference_mode():
            return self.net(torch.from_numpy(X).to(self.device)).argmax(1).cpu().numpy()


class _Masked(nn.Module):
    """An expanded network as weight times mask, of the width of its children."""

    def __init__(self, n_inputs, hidden, n_outputs, expansion):
        super().__init__()
        children = partition(np.empty((hidden, n_inputs)), expansion, "random", rng=0)
        mask = np.concatenate([children == a for a in range(expansion)])
        self.first = nn.Linear(n_inputs, hidden * expansion)
        self.second = nn.Linear(hidden * expansion, n_outputs)
        self.register_buffer("mask", torch.from_numpy(mask).float())
        share = max(0.0, 1 - (expansion - 1) / expansion)
        kept = torch.rand(n_outputs, hidden * expansion) < share
        self.register_buffer("mask2", kept.float())

    def forward(self, X):
        hidden = F.linear(X, self.first.weight * self.mask, self.first.bias)
        weight = self.second.weight * self.mask2
        return F.linear(torch.relu(hidden), weight, self.second.bias)


def naive_masked(
    n_inputs, hidden, n_outputs, expansion, max_iter, batch_size, lr, device="cpu"
):
    """Make what one would write first: a masked net in skorch as it comes."""
    return NeuralNetClassifier(
        _Masked,
        module__n_inputs=n_inputs,
        module__hidden=hidden,
        module__n_outputs=n_outputs,
        module__expansion=expansion,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=lr,
        max_epochs=max_iter,
        batch_size=batch_size,
        train_split=None,
        device=device,
        verbose=0,
    )
