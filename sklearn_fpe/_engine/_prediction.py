"""Prediction: a network run over rows in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe._engine._context import readable_memory_errors, threads_for
from sklearn_fpe._engine._device import is_accelerator, prediction_bytes
from sklearn_fpe._engine._views import View, as_tensor, chunks
from sklearn_fpe.nn import MLP, Ensemble


def predict(
    network: MLP | Ensemble,
    view: View,
    dtype: torch.dtype,
    check: Callable[[Any, int], None],
    *,
    hidden: bool = False,
    link: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray | None:
    """Return the outputs of a network for some rows, None if one is not finite.

    Parameters
    ----------
    network : MLP or Ensemble
        The network.
    view : View of shape (n_rows, n_features)
        The rows, in any order of memory.
    dtype : torch.dtype
        float32 or float64, in which to compute.
    check : callable
        Called with every piece of rows that is no tensor, and the number of its first
        row. On another device than the CPU it is called in another thread.
    hidden : bool, default=False
        Return activations (n_rows, n_units) of the last hidden layer, not outputs.
    link : callable, default=None
        On another device than the CPU: maps outputs (n, n_outputs) to a tensor on the
        same device, of which less has to be copied. On the CPU it is not used.
    """
    device, width = network.device, network.n_values
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
    """Read and copy rows ahead, see :func:`predict`.

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
