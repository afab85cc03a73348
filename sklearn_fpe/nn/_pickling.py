"""How modules are pickled: as arrays, without what is pruned."""

import copy

import numpy as np
import torch
from torch import nn


class PickledAsArrays:
    """Mixin of modules whose pickle depends on their values alone.

    A tensor's own pickle holds addresses and a device. Arrays do not: equal modules
    have equal bytes, and tensors come back on the CPU. Of a masked weight the kept
    values and the mask's bits are held, not the zeros, and indices in as few bytes as
    they need. A copy is a copy as it is.
    """

    def __deepcopy__(self, memo):
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self):
        state = self.__dict__.copy()
        arrays = {name: _array(tensor) for name, tensor in self._parameters.items()}
        buffers = {
            name: _compact(_array(tensor)) for name, tensor in self._buffers.items()
        }
        mask = buffers.get("mask")
        if mask is not None:
            arrays["weight"] = arrays["weight"][mask]
            buffers["mask"] = np.packbits(mask.ravel())
            state["_mask_shape"] = mask.shape
        state["_frozen"] = [
            name
            for name, tensor in self._parameters.items()
            if tensor is not None and not tensor.requires_grad
        ]
        state["_parameters"], state["_buffers"] = arrays, buffers
        return state

    def __setstate__(self, state):
        state = state.copy()
        arrays, buffers = state["_parameters"].copy(), state["_buffers"].copy()
        if "_mask_shape" in state:
            shape = state.pop("_mask_shape")
            bits = np.unpackbits(buffers["mask"], count=int(np.prod(shape)))
            buffers["mask"] = mask = bits.reshape(shape).astype(bool)
            weight = np.zeros(shape, dtype=arrays["weight"].dtype)
            weight[mask] = arrays["weight"]
            arrays["weight"] = weight
        frozen = state.pop("_frozen")
        state["_parameters"] = {
            name: None
            if array is None
            else nn.Parameter(_tensor(array), requires_grad=name not in frozen)
            for name, array in arrays.items()
        }
        state["_buffers"] = {
            name: None if array is None else _tensor(_wide(array))
            for name, array in buffers.items()
        }
        super().__setstate__(state)


def _array(tensor):
    return None if tensor is None else tensor.detach().cpu().numpy()


def _compact(array):
    """Return indices, which torch wants as int64, in as few bytes as they need."""
    if array is None or array.dtype != np.int64 or not array.size or array.min() < 0:
        return array
    return array.astype(np.min_scalar_type(array.max()))


def _wide(array):
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _tensor(array):
    # A copy, as the array may be a read-only view of a file.
    return torch.from_numpy(np.array(array, order="C"))
