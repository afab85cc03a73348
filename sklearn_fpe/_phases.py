"""The two phases of a fit, epoch by epoch, and what callbacks are told of them."""

import copy
import warnings

import torch
from sklearn.utils.validation import check_memory

from sklearn_fpe import _training, _validation


class Phases:
    """The epochs of one fit, and what is told of them."""

    def __init__(self, estimator, net, rows, held, context, data):
        self.estimator = estimator
        self.net = net
        self.rows = rows
        self.held = held
        self.context = context
        self.data = data
        self.batch_size = _validation.resolve_batch_size(
            estimator.batch_size, len(rows)
        )
        self.n_epochs = 0
        self.net.notify("on_train_begin", X=None, y=None)

    def warm_up(self, n_epochs, train):
        """Train the dense parent; take it from the cache if there is one."""
        estimator = self.estimator
        if estimator.memory is None:
            self._run("warm-up", 0, n_epochs)
            return
        view, y, weights = train
        key = {
            "data": (view.X, view.index, y, weights),
            "widths": (
                estimator._sizes.hidden,
                estimator._targets.n_columns,
                estimator._targets.loss,
            ),
            "n_epochs": n_epochs,
            **{
                name: getattr(estimator, name)
                for name in [
                    "activation",
                    "learning_rate",
                    "learning_rate_init",
                    "max_iter",
                    "standardize",
                    "weight_decay",
                    "precision",
                    "random_state",
                ]
            },
            "batch_size": self.batch_size,
            "device": str(self.rows.device),
        }

        def compute():
            before = len(estimator.loss_curve_)
            self._run("warm-up", 0, n_epochs)
            state = self.net.module_.state_dict()
            state = {name: value.cpu().numpy() for name, value in state.items()}
            return state, estimator.loss_curve_[before:]

        cached = check_memory(estimator.memory).cache(_warm_up, ignore=["compute"])
        state, losses = cached(key, compute)
        if not estimator.loss_curve_:
            estimator.loss_curve_ += losses
            estimator.n_iter_ += len(losses)
        state = {name: torch.from_numpy(value) for name, value in state.items()}
        self.net.module_.load_state_dict(state)

    def fine_tune(self, first, n_epochs):
        """Train what was expanded; keep the best weights if rows are held out."""
        stopping = None
        if self.held is not None:
            stopping = _training.EarlyStopping(
                self.net.module_, self.estimator.n_iter_no_change, self.estimator.tol
            )
        done = len(self.estimator.loss_curve_)
        try:
            self._run("fine-tune", first, n_epochs, stopping)
        except KeyboardInterrupt:
            warnings.warn(
                f"Interrupted after {len(self.estimator.loss_curve_) - done} of "
                f"{n_epochs} fine-tuning epochs: the model is kept as it is.",
                UserWarning,
                stacklevel=6,
            )
        if stopping is not None:
            stopping.restore()
            self.estimator.best_validation_score_ = stopping.best_score
        self.net.notify("on_train_end", X=None, y=None)

    def _run(self, task, first, n_epochs, stopping=None):
        estimator, net = self.estimator, self.net
        X, y = self.data
        phase = self.context.subcontext(task, max_subtasks=n_epochs)
        phase.call_on_fit_task_begin(estimator=estimator, X=X, y=y)
        net.stop_ = False
        for epoch in range(first, first + n_epochs):
            context = phase.subcontext("epoch")
            context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)
            loss = _training.run_epoch(
                net,
                self.rows,
                batch_size=self.batch_size,
                seed=(estimator._seeds["shuffle"], estimator.n_iter_),
                lr=_training.learning_rate(
                    estimator.learning_rate,
                    estimator.learning_rate_init,
                    epoch,
                    estimator.max_iter,
                ),
            )
            estimator.loss_curve_.append(loss)
            estimator.n_iter_ += 1
            stop = net.stop_
            message = f"{task}, epoch {epoch + 1}/{estimator.max_iter}: loss {loss:.6f}"
            if stopping is not None:
                score = self._validation_score()
                estimator.validation_scores_.append(score)
                message += f", validation score {score:.6f}"
                stop |= stopping.update(score)
            if estimator.verbose:
                print(message)
            stop |= context.call_on_fit_task_end(
                estimator=estimator, X=X, y=y, reconstruction_attributes=self._snapshot
            )
            if stop:
                break
        phase.call_on_fit_task_end(
            estimator=estimator, X=X, y=y, reconstruction_attributes=self._snapshot
        )

    def _snapshot(self):
        """Return the network as if training had ended now."""
        network = copy.deepcopy(self.net.module_)
        network.fold_input(*self.estimator._scaler.tensors(self.rows.device))
        return {"module_": network.eval()}

    def _validation_score(self):
        network = self.net.module_.eval()
        rows, y, weights = self.held
        outputs = []
        with torch.inference_mode():
            for x, _ in rows.batches(4096):
                outputs.append(network(x, gathered=rows.gathered).cpu())
        outputs = torch.cat(outputs).numpy()
        return float(self.estimator._targets.score(y, outputs, weights))


def _warm_up(key, compute):
    """Run the warm-up that `key` describes; joblib caches what comes back."""
    return compute()
