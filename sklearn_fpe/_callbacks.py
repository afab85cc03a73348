"""The tasks of a fit, as scikit-learn's callbacks are told of them."""

import functools


class Task:
    """A task: the fit, a phase of it, an epoch of a phase.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext
        The task's place in the tree of tasks.
    arguments : dict
        What callbacks are told of each task: the estimator, and functions that return
        the rows in training (X, y) and their metadata.
    """

    def __init__(self, context, arguments):
        self.context = context
        self.arguments = arguments
        context.call_on_fit_task_begin(**arguments)

    @classmethod
    def fit(cls, estimator, train, sample_weight, max_subtasks):
        """Begin the fit on ``train``: a view of X, targets and weights of the rows."""
        view, y, _ = train

        def metadata():
            if sample_weight is None:
                return None
            return {"sample_weight": view.select(sample_weight)}

        context = estimator._init_callback_context(max_subtasks=max_subtasks)
        return cls(
            context,
            {
                "estimator": estimator,
                "X": functools.cache(lambda: view.select(view.X)),
                "y": y,
                "metadata": metadata,
            },
        )

    def subtask(self, name, max_subtasks=0):
        """Begin a part of this task."""
        return Task(
            self.context.subcontext(name, max_subtasks=max_subtasks), self.arguments
        )

    def end(self, attributes):
        """End the task; return whether a callback asks to stop.

        ``attributes()`` returns the fitted attributes as they are now.
        """
        return self.context.call_on_fit_task_end(
            **self.arguments, reconstruction_attributes=attributes
        )
