"""The training as scikit-learn's callbacks see it: a tree of tasks."""

import functools

from sklearn_fpe._engine._hooks import Hook


class Progress(Hook):
    """Tells scikit-learn's callbacks of the fit, its phases and their epochs.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext
        The task of the fit.
    estimator : BaseFPE
        The estimator that is fitted.
    sample : Sample
        The training rows.
    sample_weight : array-like or None
        Weights that were passed to ``fit``.
    attributes : callable
        Maps a Learned to the fitted attributes, a dict.
    """

    def __init__(self, context, estimator, sample, sample_weight, attributes):
        view = sample.view

        def metadata():
            if sample_weight is None:
                return None
            return {"sample_weight": view.select(sample_weight)}

        self._arguments = {
            "estimator": estimator,
            "X": functools.cache(lambda: view.select(view.X)),
            "y": sample.y,
            "metadata": metadata,
        }
        self._attributes = attributes
        self._contexts = []
        self._begin(context)

    def of_member(self):
        """Return the hook of one network: its phases are tasks of the same fit."""
        member = object.__new__(Progress)
        member.__dict__ = {**vars(self), "_contexts": self._contexts[:1]}
        return member

    def on_phase_begin(self, trainer):
        """Begin the task of a phase."""
        n_epochs = len(trainer.epochs)
        self._begin(self._contexts[-1].subcontext(trainer.phase, max_subtasks=n_epochs))

    def on_epoch_begin(self, trainer):
        """Begin the task of an epoch."""
        self._begin(self._contexts[-1].subcontext("epoch", max_subtasks=0))

    def on_epoch_end(self, trainer):
        """End the task of an epoch; return whether a callback asks to stop."""
        return self._end(trainer.learned)

    def on_phase_end(self, trainer):
        """End the task of a phase."""
        self._end(trainer.learned)

    def end(self, learned):
        """End the task of the fit, which has learned this."""
        self._end(lambda: learned)

    def _begin(self, context):
        self._contexts.append(context)
        context.call_on_fit_task_begin(**self._arguments)

    def _end(self, learned):
        return self._contexts.pop().call_on_fit_task_end(
            **self._arguments,
            reconstruction_attributes=lambda: self._attributes(learned()),
        )
