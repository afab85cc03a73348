"""The skorch net that hosts the training: module, optimizer, history, callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import PassthroughScoring
from torch import Tensor, nn

from sklearn_fpe._engine._graph import CAPTURES, RecordedSteps
from sklearn_fpe._engine._hooks import StepHooks
from sklearn_fpe._engine._loss import Loss
from sklearn_fpe._engine._recipe import Settings, Targets
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
        return self.loss(outputs, *target[:2])


class Net(NeuralNet):
    """skorch's net over batches that are tensors on the device already.

    It differs from :class:`skorch.NeuralNet` as follows. The "dataset" is an iterable
    of batches. Losses are read from the device once an epoch, unless callbacks want
    each of them. A callback that stops training by KeyboardInterrupt sets ``stop_``;
    Ctrl-C ends the training. Without callbacks, gradients come from
    :func:`backpropagate` instead of autograd, and the optimizer updates all parameters
    as one vector, ``flat_``. With ``records_``, :class:`RecordedSteps` runs the epochs.
    """

    stop_ = False
    autocast = False
    flat_: FlatParameters | None = None
    before_step: StepHooks | None = None
    targets_: Any = None
    records_ = False
    recorded_: RecordedSteps | None = None
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

    def set_rate(self, rate: float) -> None:
        """Set the learning rate.

        On other devices than the CPU it is a tensor, because a recorded step holds the
        value of a number, but reads a tensor where it is.
        """
        for group in self.optimizer_.param_groups:
            device = None if self.flat_ is None else self.flat_.vector.device
            if device is None or (device.type == "cpu" and "cpu" not in CAPTURES):
                group["lr"] = rate
            elif isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                # The type of torch's kernels.
                dtype = torch.float32 if device.type == "cuda" else torch.float64
                group["lr"] = torch.full((), rate, dtype=dtype, device=device)

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters for the optimizer."""
        if self.flat_ is None:
            yield from super().get_all_learnable_params()
        else:
            yield "vector", self.flat_.vector

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple:
        """Return the batches to train and to validate on, unchanged."""
        return X, y

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches, unchanged."""
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
        if self.before_step is not None:
            self.before_step()
            # The gradients of pruned weights were for the hooks only.
            mask_gradients(self.module_)
        if self.callbacks_:
            self.notify(
                "on_grad_computed",
                named_parameters=list(self.get_all_learnable_params()),
                batch=self._seen(batch),
                training=True,
            )
        self.optimizer_.step()
        return {"loss": loss.detach(), "y_pred": outputs.detach()}

    def _outputs(self, x: Tensor) -> Tensor:
        # Hooks compare pruned weights by the gradients that they have as zeros.
        for layer in self.module_.maps:
            layer.masks_gradient = self.before_step is None
        try:
            if not self.autocast:
                return self.module_(x)
            # autocast would keep converted weights until the outermost autocast context
            # ends, here the end of training: the net would train on stale weights.
            with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
                return self.module_(x).float()
        finally:
            for layer in self.module_.maps:
                layer.masks_gradient = True

    def validation_step(self, batch: tuple, **fit_params: Any) -> dict[str, Tensor]:
        """Compute outputs and loss of a batch that is held out."""
        self._set_training(False)
        x, target = batch
        with torch.no_grad():
            outputs = self.module_(x)
            return {"loss": self.criterion_(outputs, target), "y_pred": outputs}

    def run_single_epoch(
        self,
        iterator: Any,
        training: bool,
        prefix: str,
        step_fn: Callable[[tuple], dict[str, Tensor]],
        **fit_params: Any,
    ) -> None:
        """Run one epoch, and record its mean loss over all processes."""
        if iterator is None:
            return
        self._set_training(training)
        if training and self.records_ and self.flat_ is not None:
            if self.recorded_ is None:
                self.recorded_ = RecordedSteps(self)
            losses, sizes = self.recorded_.run(iterator)
        else:
            losses, sizes = self._run_batches(iterator, training, prefix, step_fn)
        values = losses.cpu().double()
        weights = torch.tensor(sizes, dtype=torch.float64, device="cpu")
        total = self.world.total(float(values @ weights), "training losses")
        self.history.record(f"{prefix}_loss", total / float(weights.sum()))

    def _run_batches(
        self,
        iterator: Iterable[tuple],
        training: bool,
        prefix: str,
        step_fn: Callable[[tuple], dict[str, Tensor]],
    ) -> tuple[Tensor, list[int]]:
        """Run an epoch batch by batch; return losses and sizes of the batches."""
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
        sizes = list(getattr(iterator, "sizes", sizes))
        return torch.stack(losses), sizes

    def begin_phase(self) -> None:
        """Let the callbacks begin a training, with a fresh history."""
        self.recorded_ = None
        self.initialize_callbacks()
        self.initialize_history()
        self.notify("on_train_begin", X=None, y=None)

    def _seen(self, batch: tuple) -> tuple[Tensor, Any]:
        """Return a batch as callbacks see it: input, and the user's targets."""
        x, (targets, *_) = batch
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
        self.module_, self.recorded_ = module, None
        self.initialize_optimizer()


def make_net(module: MLP, settings: Settings, targets: Targets) -> Net:
    """Make a net that trains `module` in place."""
    net = Net(
        module=module,
        criterion=Criterion(settings.loss),
        optimizer=VectorAdamW,
        optimizer__weight_decay=settings.weight_decay,
        optimizer__fused=True,
        lr=settings.learning_rate_init,
        train_split=None,
        callbacks=copy.deepcopy(list(settings.callbacks)) or None,
        use_caching=True,  # because batches cannot be indexed by a scorer
        device=settings.device,
        verbose=0,
    )
    net.autocast, net.targets_ = settings.bfloat16, targets
    return net.initialize()
