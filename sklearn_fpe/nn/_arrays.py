"""Modules as arrays: what a pickle and a model file hold of them.

A tensor's own pickle holds addresses and a device. With arrays instead, equal modules
have equal bytes, and tensors come back on the CPU. Of a masked weight only the kept
values and the mask's bits are held, because the rest is zero.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_fpe.nn._state import unpack_mask


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values as an array in host memory."""
    return tensor.detach().cpu().numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy an array, which may be read-only or not contiguous, into a tensor.

    torch allocates the memory, because its alignment decides which kernels compute.
    """
    return torch.tensor(np.ascontiguousarray(array), device="cpu")


class ArrayModule(nn.Module):
    """Module whose pickle holds arrays and depends on its values alone.

    A deep copy copies tensors as they are, on their device.
    """

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers by name; None ones are left out.

        With a buffer ``mask``, ``weight`` holds the kept values in row-major order, and
        ``mask`` its bits, padded with zeros to whole bytes.
        """
        tensors = {**self._parameters, **self._buffers}
        arrays = {k: to_numpy(t) for k, t in tensors.items() if t is not None}
        if "mask" in arrays:
            mask = arrays["mask"]
            arrays["weight"] = arrays["weight"][mask]
            arrays["mask"] = np.packbits(mask.ravel())
        return arrays

    def __deepcopy__(self, memo: dict) -> ArrayModule:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        mask = self._buffers.get("mask")
        state["arrays"] = stored_arrays(self)
        state["mask_shape"] = None if mask is None else tuple(mask.shape)
        state["_parameters"] = {
            name: None if p is None else p.requires_grad
            for name, p in self._parameters.items()
        }
        state["_buffers"] = dict.fromkeys(self._buffers)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = state.copy()
        arrays, shape = dict(state.pop("arrays")), state.pop("mask_shape")
        if shape is not None:
            arrays["mask"] = unpack_mask(arrays["mask"], "mask", shape)
            arrays["weight"] = scatter_kept(arrays["weight"], arrays["mask"])
        state["_parameters"] = {
            name: None
            if requires_grad is None
            else nn.Parameter(to_tensor(arrays[name]), requires_grad=requires_grad)
            for name, requires_grad in state["_parameters"].items()
        }
        state["_buffers"] = {
            name: to_tensor(wide(arrays[name])) if name in arrays else None
            for name in state["_buffers"]
        }
        super().__setstate__(state)


def scatter_kept(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an array of the mask's shape: values where it is True, else zeros."""
    array = np.zeros(mask.shape, dtype=values.dtype)
    array[mask] = values
    return array


def wide(array: np.ndarray) -> np.ndarray:
    """Return indices, stored in few bytes, as the int64 that torch wants."""
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def stored_arrays(module: ArrayModule) -> dict[str, np.ndarray]:
    """Return the arrays of a module, indices in as few bytes as they need."""
    arrays = module.to_arrays()
    for name, array in arrays.items():
        if array.dtype == np.int64 and array.size and array.min() >= 0:
            arrays[name] = array.astype(np.min_scalar_type(array.max()))
    return arrays
