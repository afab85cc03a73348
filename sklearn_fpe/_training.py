"""Training: the skorch net, the learning rate, the epochs of a phase."""

import math
from contextlib import contextmanager

import torch
from skorch import NeuralNet
from torch.nn import functional as F

from sklearn_fpe._optimizer import VectorAdamW
from sklearn_fpe.nn._gradients import backpropagate, flatten_parameters


class WeightedLoss(torch.nn.Module):
    """Mean over rows of weight times loss.

    Parameters
    ----------
    kind : {"softmax", "sigmoid", "squared"}
        - ``"softmax"``: cross-entropy of class numbers;
        - ``"sigmoid"``: binary cross-entropy, summed over columns;
        - ``"squared"``: half the squared error, averaged over columns.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, outputs, target):
        """Compute the loss of outputs for (targets, weights)."""
        targets, weights = target
        if self.kind == "softmax":
            losses = F.cross_entropy(outputs, targets, reduction="none")
        elif self.kind == "sigmoid":
            losses = F.binary_cross_entropy_with_logits(
                outputs, targets, reduction="none"
            ).sum(dim=1)
        else:
            losses = 0.5 * (outputs - targets).square().mean(dim=1)
        return torch.dot(losses, weights) / len(weights)

    def differentiate(self, outputs, target):
        """Compute the loss and its gradient with respect to the outputs.

        The outputs may be overwritten.
        """
        targets, weights = target
        shares = weights / len(weights)
        of_row = shares.unsqueeze(1)
        if self.kind == "softmax":
            classes = targets.unsqueeze(1)
            log_p = _log_softmax(outputs)
            losses = log_p.gather(1, classes).squeeze(1).neg_()
            gradient = log_p.exp_().mul_(of_row).scatter_add_(1, classes, -of_row)
        elif self.kind == "sigmoid":
            losses = F.binary_cross_entropy_with_logits(
                outputs, targets, reduction="none"
            ).sum(dim=1)
            gradient = outputs.sigmoid_().sub_(targets).mul_(of_row)
        else:
            gradient = outputs.sub_(targets)
            losses = 0.5 * gradient.square().mean(dim=1)
            gradient.mul_(of_row / outputs.shape[1])
        return torch.dot(losses, shares), gradient


def _log_softmax(outputs):
    """Take the logarithm of the softmax of every row.

    torch works through short rows entry by entry, through columns by vectors.
    """
    if outputs.shape[1] < 32:
        return torch.log_softmax(outputs.mT.contiguous(), dim=0).mT
    return torch.log_softmax(outputs, dim=1)


class Net(NeuralNet):
    """skorch's loop over batches that are tensors on the device already.

    Different from :class:`skorch.NeuralNet`: the "dataset" is the iterable of batches;
    losses are read from the device once an epoch unless callbacks want each of them;
    a callback that stops training (skorch's way is to raise KeyboardInterrupt) sets
    ``stop_``; Ctrl-C is not swallowed. Without callbacks, gradients come from
    :func:`backpropagate` instead of autograd, and the optimizer sees all parameters as
    one vector, ``vector_``, of which the entries are kept where ``kept_`` is 1.
    """

    stop_ = False
    gathered = False
    autocast = False
    vector_ = None
    kept_ = None

    @property
    def _default_callbacks(self):
        return []

    def initialize_optimizer(self):
        """Make the optimizer, of one vector where nobody looks at the parameters."""
        plain = all(
            p.requires_grad and p.dtype == torch.float32
            for p in self.module_.parameters()
        )
        by_autograd = self.callbacks or self.autocast or not plain
        self.vector_, self.kept_ = (
            (None, None) if by_autograd else flatten_parameters(self.module_)
        )
        return super().initialize_optimizer()

    def get_all_learnable_params(self):
        """Yield names and parameters for the optimizer."""
        if self.vector_ is None:
            yield from super().get_all_learnable_params()
        else:
            yield "vector", self.vector_

    def get_split_datasets(self, X, y=None, **fit_params):
        """Take the batches as they are."""
        return X, None

    def get_iterator(self, dataset, training=False):
        """Take the batches as they are."""
        return dataset

    def notify(self, method_name, **cb_kwargs):
        """Notify the callbacks; one that stops training is not an interrupt."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                self.stop_ = True

    def train_step(self, batch, **fit_params):
        """Do one step of the optimizer."""
        x, target = batch
        if self.vector_ is not None:
            loss = backpropagate(
                self.module_,
                x,
                lambda outputs: self.criterion_.differentiate(outputs, target),
                gathered=self.gathered,
            )
            if self.kept_ is not None:
                self.vector_.grad.mul_(self.kept_)
            self.optimizer_.update()
            return {"loss": loss}
        self.optimizer_.zero_grad()
        if self.autocast:
            with torch.autocast(x.device.type, torch.bfloat16):
                outputs = self.module_(x, gathered=self.gathered).float()
        else:
            outputs = self.module_(x, gathered=self.gathered)
        loss = self.criterion_(outputs, target)
        loss.backward()
        if self.callbacks_:
            self.notify(
                "on_grad_computed",
                named_parameters=list(self.get_all_learnable_params()),
                batch=batch,
                training=True,
            )
        self.optimizer_.step()
        return {"loss": loss.detach(), "y_pred": outputs}

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Run one epoch and record its mean loss."""
        if iterator is None:
            return
        self._set_training(training)
        if self.callbacks_:
            super().run_single_epoch(iterator, training, prefix, step_fn)
            batches = self.history[-1, "batches"]
            losses = [batch[f"{prefix}_loss"] for batch in batches]
            sizes = [batch[f"{prefix}_batch_size"] for batch in batches]
            losses = torch.tensor(losses, dtype=torch.float64)
        else:
            losses, sizes = [], []
            for batch in iterator:
                losses.append(step_fn(batch)["loss"])
                sizes.append(len(batch[0]))
            losses = torch.stack(losses).cpu().double()
        sizes = torch.tensor(sizes, dtype=torch.float64)
        self.history.record(f"{prefix}_loss", float(losses @ sizes / sizes.sum()))

    def swap(self, module):
        """Train another module from here on, with a fresh optimizer."""
        self.module_ = module
        self.initialize_optimizer()


def make_net(module, loss, *, lr, weight_decay, device, callbacks=None, bfloat16=False):
    """Make a net that trains `module` in place."""
    net = Net(
        module=module,
        criterion=WeightedLoss(loss),
        optimizer=VectorAdamW,
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=lr,
        train_split=None,
        callbacks=callbacks,
        device=device,
        verbose=0,
    )
    net.autocast = bfloat16
    return net.initialize()


def learning_rate(schedule, initial, epoch, n_epochs):
    """Return the learning rate of an epoch.

    ``"constant"``, or ``"cosine"``: half a cosine from `initial` down to zero over
    `n_epochs`, taken at the middle of the epoch (Loshchilov and Hutter, 2017).
    """
    if schedule == "constant" or n_epochs < 1:
        return initial
    return initial * 0.5 * (1 + math.cos(math.pi * (epoch + 0.5) / n_epochs))


def run_epoch(net, rows, *, batch_size, seed, lr):
    """Run one epoch over the rows and return its mean loss."""
    for group in net.optimizer_.param_groups:
        group["lr"] = lr
    net.gathered = rows.gathered
    net.fit_loop(rows.batches(batch_size, seed), epochs=1)
    return net.history[-1, "train_loss"]


@contextmanager
def training(device, batch_size):
    """Train alike in whatever mode of torch the caller is; explain a lack of memory."""
    with (
        readable_memory_errors(device, batch_size),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def readable_memory_errors(device, batch_size):
    """Say what to change when the device's memory does not suffice."""
    try:
        yield
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        on_host = "DefaultCPUAllocator" in str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or on_host):
            raise
        raise MemoryError(
            f"device={str(device)!r} ran out of memory. Lower batch_size (it is "
            f"{batch_size!r}), run fewer fits on one device at a time (n_jobs of a "
            f'search, 1 for a GPU), or use another device, such as device="cpu".'
        ) from error


class EarlyStopping:
    """Watch a validation score, remember the best weights, say when to stop.

    Parameters
    ----------
    module : torch.nn.Module
        What is trained.
    patience : int
        Epochs in a row without improvement after which to stop.
    tol : float
        Least gain over the best score so far that counts as improvement.
    """

    def __init__(self, module, patience, tol):
        self.module = module
        self.patience = patience
        self.tol = tol
        self.best_score = -math.inf
        self.best_state = None
        self.n_no_change = 0

    def update(self, score):
        """Take in a score; return whether to stop."""
        improved = score >= self.best_score + self.tol
        self.n_no_change = 0 if improved else self.n_no_change + 1
        if score > self.best_score:
            self.best_score = score
            state = self.module.state_dict()
            self.best_state = {name: value.clone() for name, value in state.items()}
        return self.n_no_change > self.patience

    def restore(self):
        """Give the module its best weights back."""
        if self.best_state is not None:
            self.module.load_state_dict(self.best_state)
