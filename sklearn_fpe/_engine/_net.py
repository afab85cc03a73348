"""The skorch net that hosts the training: module, optimizer, history, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import PassthroughScoring
from torch import Tensor, nn

from sklearn_fpe._engine._loss import Loss
from sklearn_fpe._engine._recipe import Targets
from sklearn_fpe._engine._step import (
    FlatParameters,
    VectorAdamW,
    add_gradients,
    backpropagate,
    has_fast_step,
    mask_gradients,
)
from sklearn_fpe._engine._world import SINGLE, World
from sklearn_fpe.nn import MLP


class Criterion(nn.Module):
    """A loss as the module that skorch expects."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of outputs for (targets, weights)."""
        return self.loss(outputs, *target)


class Net(NeuralNet):
    """skorch's net over batches that are tensors on the device already.

    It differs from :class:`skorch.NeuralNet` in that the "dataset" is an iterable of
    batches; losses are read from the device once an epoch unless callbacks want each
    of them; a callback that stops training (by raising KeyboardInterrupt, as skorch's
    do) sets ``stop_``; Ctrl-C is not swallowed. Without callbacks, gradients come from
    :func:`backpropagate` instead of autograd, and the optimizer updates all parameters
    as one vector, ``flat_``.
    """

    stop_ = False
    autocast = False
    flat_: FlatParameters | None = None
    before_step: Callable[[], None] | None = None
    targets_: Any = None
    world: World = SINGLE

    @property
    def _default_callbacks(self) -> list:
        """Callbacks that record what skorch's own callbacks monitor."""
        if not self.callbacks:
            return []
        return [
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
        ]

    def initialize_optimizer(self) -> Any:
        """Make the optimizer; of one vector where nothing needs the parameters."""
        by_autograd = self.callbacks or self.autocast or not has_fast_step(self.module_)
        self.flat_ = None if by_autograd else FlatParameters(self.module_)
        return super().initialize_optimizer()

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters for the optimizer."""
        if self.flat_ is None:
            yield from super().get_all_learnable_params()
        else:
            yield "vector", self.flat_.vector

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple:
        """Return the batches to train and to validate on as they are."""
        return X, y

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches as they are."""
        return dataset

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Notify the callbacks; one that stops training is not an interrupt."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                self.stop_ = True

    def train_step(self, batch: tuple, **fit_params: Any) -> dict[str, Tensor]:
        """Do one step of the optimizer."""
        x, target = batch
        if self.flat_ is not None:
            loss = backpropagate(
                self.module_,
                x,
                lambda outputs: self.criterion_.loss.differentiate(outputs, *target),
            )
            self.world.add_(self.flat_.gradient)
            if self.before_step is not None:
                self.before_step()
            self.flat_.mask_gradients()
            self.optimizer_.update()
            return {"loss": loss}
        self.optimizer_.zero_grad()
        outputs = self._outputs(x)
        loss = self.criterion_(outputs, target)
        loss.backward()
        if self.world.size > 1:
            add_gradients(self.module_, self.world)
        if self.callbacks_:
            self.notify(
                "on_grad_computed",
                named_parameters=list(self.get_all_learnable_params()),
                batch=self._seen(batch),
                training=True,
            )
        if self.before_step is not None:
            self.before_step()
            # Autograd has not seen masks that were changed just now.
            mask_gradients(self.module_)
        self.optimizer_.step()
        return {"loss": loss.detach(), "y_pred": outputs.detach()}

    def _outputs(self, x: Tensor) -> Tensor:
        if not self.autocast:
            return self.module_(x)
        # autocast would keep converted weights until the outermost autocast context
        # ends, which here is the end of training: the net would train on stale ones.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return self.module_(x).float()

    def validation_step(self, batch: tuple, **fit_params: Any) -> dict[str, Tensor]:
        """Compute outputs and loss of a batch that is held out."""
        self._set_training(False)
        x, target = batch
        with torch.no_grad():
            outputs = self.module_(x)
            return {"loss": self.criterion_(outputs, target), "y_pred": outputs}

    def run_single_epoch(
        self,
        iterator: Iterable[tuple] | None,
        training: bool,
        prefix: str,
        step_fn: Callable[[tuple], dict[str, Tensor]],
        **fit_params: Any,
    ) -> None:
        """Run one epoch and record its mean loss, that of all processes."""
        if iterator is None:
            return
        self._set_training(training)
        losses, sizes = [], []
        for batch in iterator:
            if self.callbacks_:
                seen = self._seen(batch)
                self.notify("on_batch_begin", batch=seen, training=training)
            step = step_fn(batch)
            losses.append(step["loss"])
            sizes.append(len(batch[0]))
            if self.callbacks_:
                self.history.record_batch(f"{prefix}_loss", float(step["loss"]))
                self.history.record_batch(f"{prefix}_batch_size", sizes[-1])
                self.notify("on_batch_end", batch=seen, training=training, **step)
        values = torch.stack(losses).cpu().double()
        # Batches of several processes know how many rows they have together.
        sizes = getattr(iterator, "sizes", sizes)
        weights = torch.as_tensor(sizes, dtype=torch.float64, device="cpu")
        total = self.world.total(float(values @ weights), "training losses")
        self.history.record(f"{prefix}_loss", total / float(weights.sum()))

    def begin_phase(self) -> None:
        """Begin a training of its own for the callbacks, with a history of its own."""
        self.initialize_callbacks()
        self.initialize_history()
        self.notify("on_train_begin", X=None, y=None)

    def _seen(self, batch: tuple) -> tuple[Tensor, Any]:
        """Return a batch as callbacks see it: input, and the user's targets."""
        x, (targets, _) = batch
        if self.targets_ is None:
            return x, targets
        return x, self.targets_.decode(targets.cpu().numpy())

    def _raw_outputs(self, X: Any) -> np.ndarray:
        return np.concatenate([y.cpu().numpy() for y in self.forward_iter(X)])

    @property
    def classes_(self) -> np.ndarray:
        """The class labels, for the scorers of skorch's callbacks."""
        return self.targets_.classes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor"
        if hasattr(self.targets_, "classes"):
            tags.estimator_type = "classifier"
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Predict in the user's terms, for the scorers of skorch's callbacks."""
        return self.targets_.decide(self._raw_outputs(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict probabilities, for the scorers of skorch's callbacks."""
        return self.targets_.probabilities(self._raw_outputs(X))

    def swap(self, module: MLP) -> None:
        """Train another module from here on, with a fresh optimizer."""
        self.module_ = module
        self.initialize_optimizer()


def make_net(
    module: MLP,
    loss: Loss,
    *,
    lr: float,
    weight_decay: float,
    device: torch.device,
    callbacks: Iterable[Any] | None = None,
    targets: Targets | None = None,
    bfloat16: bool = False,
) -> Net:
    """Make a net that trains `module` in place."""
    net = Net(
        module=module,
        criterion=Criterion(loss),
        optimizer=VectorAdamW,
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=lr,
        train_split=None,
        callbacks=callbacks,
        use_caching=True,  # because batches cannot be indexed by a scorer
        device=device,
        verbose=0,
    )
    net.autocast, net.targets_ = bfloat16, targets
    return net.initialize()
