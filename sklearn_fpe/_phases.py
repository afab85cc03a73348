"""A network on its way through warm-up, split and fine-tuning, epoch by epoch."""

import copy
import math
import warnings

import joblib
import numpy as np
import torch
from sklearn.utils.validation import check_memory

from sklearn_fpe import _training, _validation
from sklearn_fpe._data import Moments, Scaler, make_rows
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import MLP
from sklearn_fpe.nn._expand import expand_to

WARM_UP_PARAMETERS = (
    *("activation", "learning_rate", "learning_rate_init", "max_iter", "standardize"),
    *("weight_decay", "precision", "random_state"),
)
"""The parameters, beside data, sizes, batches and device, that a warm-up depends on."""


class Phases:
    """A network in training, on standardised input, and the record of it.

    The estimator's parameters are read, its attributes are left alone: what was learned
    is handed over by :meth:`attributes`. So training that fails changes no estimator.

    Parameters
    ----------
    estimator : BaseFPE
        Whose parameters, sizes, targets and seeds are used. If it is fitted, training
        goes on where it stands.
    device : torch.device
        Where to train.
    """

    def __init__(self, estimator, device):
        self.estimator = estimator
        self.device = device
        self._made_with = _net_parameters(estimator, device)
        learned = vars(estimator)
        n_features = estimator._sizes.n_inputs
        self.phase = learned.get("phase_", "warm-up")
        self.n_iter = learned.get("n_iter_", 0)
        self.loss_curve = list(learned.get("loss_curve_", []))
        self.validation_scores = list(learned.get("validation_scores_", []))
        self.best_validation_score = learned.get("best_validation_score_", -math.inf)
        self.targets = copy.deepcopy(estimator._targets)
        self.moments = learned.get("_moments", Moments(n_features))
        self.scaler = learned.get("_scaler", Scaler.identity(n_features))
        network = self._resumed() if "module_" in learned else self._initial()
        self.net = self._make_net(network.to(device))
        if callable(estimator.split) and self.phase == "warm-up":
            self._expanded()  # what does not fit is to fail before training

    def _initial(self):
        sizes = self.estimator._sizes
        generator = torch.Generator().manual_seed(self.estimator._seeds["init"])
        widths = [sizes.n_inputs, *sizes.hidden, sizes.n_outputs]
        return MLP.dense(widths, self.estimator.activation, generator)

    def _resumed(self):
        network = copy.deepcopy(self.estimator.module_)
        network.unfold_input(*self.scaler.tensors(network.layers[0].weight.device))
        return network

    def _make_net(self, network):
        estimator = self.estimator
        return _training.make_net(
            network,
            self.targets.loss,
            lr=estimator.learning_rate_init,
            weight_decay=estimator.weight_decay,
            device=self.device,
            callbacks=copy.deepcopy(estimator.skorch_callbacks),
            bfloat16=estimator.precision == "bfloat16",
        )

    # ----------------------------------------------------------------------------------
    # What an estimator asks for
    # ----------------------------------------------------------------------------------

    def learn_scale(self, view, y, weights):
        """Take rows into the statistics; the network stays the function it is.

        Where a column was constant so far, it stays that function of all rows seen.
        """
        self._learn_input_scale(view, weights)
        before = Scaler(*self.targets.output_affine()[::-1])
        self.targets.learn_scale(y, weights)
        after = Scaler(*self.targets.output_affine()[::-1])
        if self.loss_curve:
            self.net.module_.change_output_scale(
                *before.tensors(self.device), *after.tensors(self.device)
            )
        else:
            # A constant is met from the start: its mean is added to the output.
            constant = torch.from_numpy(self.targets.constant()).to(self.device)
            with torch.no_grad():
                self.net.module_.layers[-1].weight[constant] = 0.0

    def _learn_input_scale(self, view, weights):
        if not self.estimator.standardize:
            return
        moments = copy.deepcopy(self.moments).update(view, weights)
        scaler = moments.scaler()
        if self.loss_curve:
            known = Scaler(
                self.scaler.mean,
                np.where(self.moments.constant(), scaler.scale, self.scaler.scale),
            )
            self.net.module_.change_input_scale(
                *known.tensors(self.device), *scaler.tensors(self.device)
            )
        self.moments, self.scaler = moments, scaler

    def made_for(self, estimator, device):
        """Tell whether the net that trains is what the parameters ask for."""
        return self._made_with == _net_parameters(estimator, device)

    def fit(self, train, held, n_warmup, task):
        """Run all epochs of a fit; train and held are (view, targets, weights)."""
        rows = self._rows(*train)
        held = None if held is None else (self._rows(*held), *held[1:])
        n_warmup = max(0, n_warmup - len(self.loss_curve))
        self.n_iter = 0
        self.net.notify("on_train_begin", X=None, y=None)
        if self.phase == "warm-up":
            self._warm_up(rows, n_warmup, train, task)
            self.split()
        else:
            n_warmup = 0
        self._fine_tune(rows, held, n_warmup, task)
        self.net.notify("on_train_end", X=None, y=None)

    def partial_fit(self, view, y, weights):
        """Run one epoch, at a constant learning rate."""
        rows = self._rows(view, y, weights)
        rows.gather(self.net.module_)
        self.net.notify("on_train_begin", X=None, y=None)
        loss = self._epoch(rows, self.estimator.learning_rate_init)
        self._print(f"{self.phase}, epoch {self.n_iter}: loss {loss:.6f}")
        self.net.notify("on_train_end", X=None, y=None)

    def split(self):
        """Expand the network and prune it to the budget."""
        if self.moments.weight:
            # Constant columns have had no say: zeros are the first to be pruned.
            constant = torch.from_numpy(self.moments.constant()).to(self.device)
            with torch.no_grad():
                self.net.module_.layers[0].weight[:, constant] = 0.0
        self.net.swap(self._expanded())
        self.phase = "fine-tune"

    def _expanded(self):
        estimator = self.estimator
        return expand_to(
            self.net.module_,
            estimator._sizes,
            estimator.budget_,
            estimator.split,
            prune=estimator.prune,
            groups=estimator.feature_groups,
            rng=np.random.default_rng(estimator._seeds["split"]),
        )

    def attributes(self):
        """Return the fitted attributes, as if training had ended now."""
        network = copy.deepcopy(self.net.module_).eval()
        network.fold_input(*self.scaler.tensors(self.device))
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            raise self._diverged("The weights became infinite.")
        sizes = self.estimator._sizes
        is_split = self.phase == "fine-tune"
        attributes = {
            "module_": network,
            "phase_": self.phase,
            "expansion_": sizes.expansion if is_split else (1,) * len(sizes.hidden),
            "n_iter_": self.n_iter,
            "loss_curve_": list(self.loss_curve),
            "best_loss_": min(self.loss_curve, default=math.inf),
            "n_layers_": len(network.layers) + 1,
            "n_outputs_": sizes.n_outputs,
            # A copy: what comes of further rows must not change what was kept.
            "_targets": copy.deepcopy(self.targets),
            "_scaler": self.scaler,
        }
        if self.moments.weight:
            attributes["_moments"] = self.moments
        if self.estimator.early_stopping:
            attributes["validation_scores_"] = list(self.validation_scores)
            attributes["best_validation_score_"] = self.best_validation_score
        return attributes

    # ----------------------------------------------------------------------------------
    # Epochs
    # ----------------------------------------------------------------------------------

    def _rows(self, view, y, weights):
        targets = self.targets.encode(y)
        # Weights of mean 1: the learning rate does not depend on their scale.
        weights = weights / weights.mean()
        return make_rows(view, targets, weights, self.scaler, self.device)

    def _warm_up(self, rows, n_epochs, train, task):
        """Train the dense parent; take it from the cache if there is one."""
        task = task.subtask("warm-up", n_epochs)
        if self.estimator.memory is None or self.loss_curve:
            self._epochs(rows, 0, n_epochs, task)
        else:
            self._cached_warm_up(rows, n_epochs, train, task)
        task.end(self.attributes)

    def _cached_warm_up(self, rows, n_epochs, train, task):
        def compute():
            if self._epochs(rows, 0, n_epochs, task):
                raise _StoppedError
            state = self.net.module_.state_dict()
            state = {name: value.cpu().numpy() for name, value in state.items()}
            return state, self.loss_curve

        key = self._warm_up_key(rows, n_epochs, train)
        cached = check_memory(self.estimator.memory).cache(_warm_up, ignore=["compute"])
        try:
            state, losses = cached(key, compute)
        except _StoppedError:
            return
        if self.n_iter < n_epochs:
            self._print(f"warm-up: {n_epochs} epochs taken from memory")
        self.n_iter, self.loss_curve = n_epochs, list(losses)
        state = {name: torch.from_numpy(value) for name, value in state.items()}
        self.net.module_.load_state_dict(state)

    def _warm_up_key(self, rows, n_epochs, train):
        """Return all that the warm-up's result depends on."""
        view, y, weights = train
        X = view.X.cpu().numpy() if isinstance(view.X, torch.Tensor) else view.X
        estimator = self.estimator
        return {
            # Digested here: SHA-1 takes less than half the time of Memory's MD5.
            "data": joblib.hash((X, view.index, y, weights), hash_name="sha1"),
            "loss": self.targets.loss,
            "widths": (estimator._sizes.hidden, estimator._sizes.n_outputs),
            "n_epochs": n_epochs,
            "batch_size": self._batch_size(rows),
            "device": str(self.device),
            "n_threads": torch.get_num_threads(),
            "versions": (__version__, torch.__version__),
            **{name: getattr(estimator, name) for name in WARM_UP_PARAMETERS},
        }

    def _fine_tune(self, rows, held, first, task):
        """Train what was expanded; keep the best weights if rows are held out."""
        n_epochs = self.estimator.max_iter - first
        task = task.subtask("fine-tune", n_epochs)
        stopping, before = None, self.n_iter
        if held is not None:
            stopping = _training.EarlyStopping(
                self.net.module_, self.estimator.n_iter_no_change, self.estimator.tol
            )
        try:
            rows.gather(self.net.module_)
            if held is not None:
                held[0].gather(self.net.module_)
                if self.best_validation_score > -math.inf:
                    # The best weights so far, scored on the rows held out now.
                    score = self._score(*held)
                    stopping.update(score)
                    self._print(f"warm start: validation score {score:.6f}")
            self._epochs(rows, first, n_epochs, task, held, stopping)
        except KeyboardInterrupt:
            warnings.warn(
                f"Interrupted after {self.n_iter - before} of {n_epochs} fine-tuning "
                f"epochs: the model is kept as it is.",
                UserWarning,
                stacklevel=_validation.stack_level(),
            )
        if stopping is not None:
            stopping.restore()
            self.best_validation_score = stopping.best_score
        task.end(self.attributes)

    def _epochs(self, rows, first, n_epochs, task, held=None, stopping=None):
        """Run epochs of a phase; return whether they were stopped early."""
        estimator = self.estimator
        name = task.context.task_name
        for epoch in range(first, first + n_epochs):
            epoch_task = task.subtask("epoch")
            lr = _training.learning_rate(
                estimator.learning_rate,
                estimator.learning_rate_init,
                epoch,
                estimator.max_iter,
            )
            loss = self._epoch(rows, lr)
            stop = self.net.stop_
            message = f"{name}, epoch {epoch + 1}/{estimator.max_iter}: loss {loss:.6f}"
            if stopping is not None:
                score = self._score(*held)
                self.validation_scores.append(score)
                message += f", validation score {score:.6f}"
                stop |= stopping.update(score)
            self._print(message)
            stop |= epoch_task.end(self.attributes)
            if stop:
                return True
        return False

    def _epoch(self, rows, lr):
        self.net.stop_ = False
        for group in self.net.optimizer_.param_groups:
            group["weight_decay"] = self.estimator.weight_decay
        loss = _training.run_epoch(
            self.net,
            rows,
            batch_size=self._batch_size(rows),
            seed=(self.estimator._seeds["shuffle"], len(self.loss_curve)),
            lr=lr,
        )
        if not math.isfinite(loss):
            raise self._diverged(f"The training loss became {loss}.")
        self.loss_curve.append(loss)
        self.n_iter += 1
        return loss

    def _batch_size(self, rows):
        return _validation.resolve_batch_size(self.estimator.batch_size, len(rows))

    def _score(self, rows, y, weights):
        network = self.net.module_.eval()
        outputs = []
        with torch.inference_mode():
            for x, _ in rows.batches(4096):
                outputs.append(network(x, gathered=rows.gathered).cpu())
        outputs = torch.cat(outputs).numpy()
        if not np.isfinite(outputs).all():
            raise self._diverged("The outputs for validation rows became infinite.")
        return float(self.targets.score(y, outputs, weights))

    def _diverged(self, symptom):
        return FloatingPointError(
            f"{symptom} Lower learning_rate_init (it is "
            f"{self.estimator.learning_rate_init:g}), keep standardize=True, and look "
            f"for extreme values in X or y."
        )

    def _print(self, message):
        if self.estimator.verbose:
            print(message)


def _net_parameters(estimator, device):
    """Return the parameters that the net which trains was made with."""
    return device, estimator.precision, list(estimator.skorch_callbacks or ())


class _StoppedError(Exception):
    """A callback stopped the warm-up: what it came to is not to be cached."""


def _warm_up(key, compute):
    """Run the warm-up that `key` describes; joblib caches what comes back."""
    return compute()
