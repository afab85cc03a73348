"""Predictions: a network run over rows in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_fpe._engine._context import readable_memory_errors, threads_for
from sklearn_fpe._engine._device import is_accelerator, prediction_bytes
from sklearn_fpe._engine._recipe import Learned
from sklearn_fpe._engine._views import View, as_tensor, chunks
from sklearn_fpe._estimators import _inputs
from sklearn_fpe._estimators._targets import Link
from sklearn_fpe.nn import MLP, Ensemble


class Predicting(BaseEstimator):
    """Predictions of an estimator.

    All that is learned is one object, ``_learned``. It is set at once, so that a thread
    that predicts meanwhile sees either the earlier model or the new one.
    """

    _learned: Learned
    n_features_in_: int
    feature_names_in_: np.ndarray

    def _is_fitted(self) -> bool:
        return "_learned" in vars(self)

    def __sklearn_is_fitted__(self):
        return self._is_fitted()

    def _linked_predict(self, X, link: Link):
        """Return the predictions that a link makes of raw outputs."""
        return self._run_network(X, link=link)[1]

    def _run_network(self, X, hidden: bool = False, link: Link | None = None):
        """Run the network over X in pieces.

        Returns
        -------
        targets : ClassTargets or RealTargets
            The targets of the network that was run.
        outputs : ndarray of shape (n_samples, ...)
            Raw outputs (n_samples, n_outputs), the predictions that `link` makes of
            them, or activations (n_samples, n_units) of the last hidden layer. Computed
            in float64 if X is of higher precision than float32 or float32 overflows.
        """
        # A copy, because another thread may replace what was learned meanwhile.
        state = object.__new__(type(self))
        state.__dict__ = dict(vars(self))
        if not state._is_fitted():
            check_is_fitted(self)  # slow: called only where it raises
        X = _inputs.check_X(state, X, reset=False, values=False)
        learned, view = state._learned, View(X)
        order = view.file_order()
        if order is not None:
            view = View(X, order)
        targets, network = learned.targets, learned.predictor
        device, to_copy = network.device, None
        check = partial(_inputs.check_values, state, view)
        if is_accelerator(device):
            check = _in_this_configuration(check)
            to_copy = link and partial(link.on_device, targets)
        dtype = _inputs.predict_dtype(X)
        outputs = run_in_pieces(network, device, view, dtype, check, hidden, to_copy)
        if outputs is None:
            dtype = torch.float64
            outputs = run_in_pieces(
                network, device, view, dtype, check, hidden, to_copy
            )
        if outputs is None:
            raise ValueError(
                "Input X contains a value too large for float64: the outputs of the "
                "network overflow."
            )
        if order is not None:
            outputs = outputs[np.argsort(order)]
        if link is not None:
            finish = link.on_host if to_copy is None else link.finish
            outputs = outputs if finish is None else finish(targets, outputs)
        return targets, outputs

    def _hidden(self, X) -> np.ndarray:
        _, activations = self._run_network(X, hidden=True)
        with np.errstate(over="ignore"):
            narrow = activations.astype(np.float32, copy=False)
        if narrow is not activations and not np.isfinite(narrow).all():
            raise ValueError(
                "Input X contains a value too large: float32 cannot hold the "
                "activations of the hidden layer."
            )
        return narrow


def run_in_pieces(
    network: MLP | Ensemble,
    device: torch.device,
    view: View,
    dtype: torch.dtype,
    check: Callable[[Any, int], None],
    hidden: bool,
    link: Callable[[Tensor], Tensor] | None,
) -> np.ndarray | None:
    """Return the outputs of a network for some rows, None if one is not finite.

    Parameters
    ----------
    network : MLP or Ensemble
        The network.
    device : torch.device
        Where it is.
    view : View of shape (n_rows, n_features)
        The rows, in any order of memory.
    dtype : torch.dtype
        float32 or float64, in which to compute.
    check : callable
        Called with every piece of rows that is no tensor, and the number of its first
        row. On another device than the CPU it is called in another thread.
    hidden : bool
        Return activations (n_rows, n_units) of the last hidden layer, not outputs.
    link : callable or None
        On another device than the CPU: maps outputs (n, n_outputs) to a tensor on the
        same device, of which less has to be copied. On the CPU it is not used.
    """
    width = network.n_values
    n_bytes = prediction_bytes(device)
    pieces = list(chunks(len(view), width, n_bytes, dtype.itemsize))
    n_flops = 2 * network.n_weights * min(len(view), n_bytes // (4 * width))
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
        threads_for(n_flops, device),
        readable_memory_errors(device, "Predict fewer rows at a time"),
    ):
        if is_accelerator(device):
            function = network.transform if hidden else network
            return _on_accelerator(function, view, pieces, dtype, check, device, link)
        n_columns = network.n_units if hidden else network.n_outputs
        outputs = torch.empty(len(view), n_columns, dtype=dtype, device="cpu")
        for rows in pieces:
            part = view.read(rows)
            if not isinstance(part, Tensor):
                check(part, rows.start)
            x = as_tensor(part, dtype).to(device)
            if hidden:
                outputs[rows] = network.transform(x)
            else:
                network(x, out=outputs[rows])
    array = outputs.numpy()
    return array if _all_finite(array) else None


def _on_accelerator(
    function: Callable[[Tensor], Tensor],
    view: View,
    pieces: list[slice],
    dtype: torch.dtype,
    check: Callable[[Any, int], None],
    device: torch.device,
    link: Callable[[Tensor], Tensor] | None,
) -> np.ndarray | None:
    """Read and copy rows ahead, see :func:`run_in_pieces`.

    The host waits for the results of every piece and, at the end, for whether the
    outputs were finite.
    """
    starts = iter([rows.start for rows in pieces])

    def check_next(part: Any) -> None:
        start = next(starts)
        if not isinstance(part, Tensor):
            check(part, start)

    results, finite = None, []
    parts = view.pieces(pieces, device, check_next)
    for rows, part in zip(pieces, parts, strict=True):
        outputs = function(part.to(dtype))
        result = outputs if link is None else link(outputs)
        finite.append(outputs.isfinite().all())
        if results is None:
            shape = (len(view), *result.shape[1:])
            results = torch.empty(shape, dtype=result.dtype, device="cpu")
        results[rows] = result
    assert results is not None
    return results.numpy() if bool(torch.stack(finite).all()) else None


def _all_finite(array: np.ndarray) -> bool:
    """Tell whether all numbers are finite; the sum is, if it does not overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(array.sum()) or bool(np.isfinite(array).all())


def _in_this_configuration(function):
    """Return a function that runs with scikit-learn's configuration of this thread."""
    config = get_config()

    def run(*args):
        with config_context(**config):
            function(*args)

    return run
