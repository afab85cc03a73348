"""The earlier steps of a pipeline: fitted once for candidates that share them."""

from __future__ import annotations

import pickle

import joblib
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import process_routing


def final_step(estimator):
    """Return the last step of a pipeline, or the estimator itself."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _digest(value):
    """Return a hashable key that is equal for equal values."""
    try:
        return joblib.hash(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # such as a lambda, which clones share
    if isinstance(value, BaseEstimator):
        return type(value)  # because its parameters are values of their own
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else
    return value


class EarlierSteps:
    """The steps of a pipeline before its last one, fitted on training rows.

    `fit_params` are the arguments of the pipeline's ``fit``. The attribute `X` holds
    the transformed training rows.
    """

    def __init__(self, pipeline: Pipeline, X, y, fit_params: dict):
        self._steps, self.X = pipeline.steps[:-1], X
        if not self._steps:
            return
        earlier = Pipeline(self._steps, memory=pipeline.memory)
        if get_config()["enable_metadata_routing"]:
            routing = earlier.get_metadata_routing()
            taken = routing.consumes("fit_transform", fit_params)
        else:
            names = dict(self._steps)
            taken = [name for name in fit_params if name.split("__", 1)[0] in names]
        params = {name: fit_params[name] for name in taken}
        self.X = earlier.fit_transform(X, y, **params)
        self._steps = earlier.steps

    def put_into(self, pipeline: Pipeline) -> None:
        """Give a pipeline these fitted steps."""
        pipeline.steps = [*self._steps, pipeline.steps[-1]]

    @staticmethod
    def key(pipeline: Pipeline) -> tuple:
        """Return a key that is equal for pipelines with equal earlier steps."""
        found = []
        for name, step in pipeline.steps[:-1]:
            params = step.get_params() if hasattr(step, "get_params") else {}
            digests = [(key, _digest(params[key])) for key in sorted(params)]
            found.append((name, type(step), tuple(digests)))
        return "steps", tuple(found)

    @staticmethod
    def of_last(pipeline: Pipeline, fit_params: dict) -> dict:
        """Return the arguments of the last step's ``fit``."""
        name = pipeline.steps[-1][0]
        if get_config()["enable_metadata_routing"]:
            return process_routing(pipeline, "fit", **fit_params)[name].fit
        found = {}
        for key, value in fit_params.items():
            step, separator, argument = key.partition("__")
            if not separator:
                raise ValueError(
                    f"Pipeline.fit takes arguments of its steps as <step>__<name>, "
                    f"such as {name}__{key}, got {key!r}."
                )
            if step == name:
                found[argument] = value
        return found
