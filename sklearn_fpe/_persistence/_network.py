"""The network: what its layers are in JSON, what they hold in arrays.

Masked layers keep the bits of the mask and the values at kept positions. Everything
that follows from something else (a layer's inputs from the outputs of the layer before)
is not kept, so that it cannot contradict it.
"""

import copy

import numpy as np
import torch

from sklearn_fpe._persistence._checks import (
    ModelFileError,
    choice,
    integers,
    listing,
    record,
)
from sklearn_fpe.nn import MLP, BlockLinear, DenseLinear, MaskedLinear

KINDS = {"dense": DenseLinear, "masked": MaskedLinear, "block": BlockLinear}
"""The layers, by their names in a file."""

FAR = 1e2
"""Standard deviations from the mean at which outputs must still be numbers."""


# --------------------------------------------------------------------------------------
# To a file
# --------------------------------------------------------------------------------------


def describe(network):
    """Return what JSON can hold of a network's layers, and its arrays by name."""
    names = {kind: name for name, kind in KINDS.items()}
    layers, arrays = [], {}
    for level, layer in enumerate(network.layers):
        weight = _numpy(layer.weight)
        layers.append({"kind": names[type(layer)], "shape": list(weight.shape)})
        found = {"weight": weight, "bias": _numpy(layer.bias)}
        mask = getattr(layer, "mask", None)
        if mask is not None:
            found["weight"] = weight[_numpy(mask)]
            found["mask"] = np.packbits(_numpy(mask))
        for name in ("inputs", "outputs"):
            if getattr(layer, name, None) is not None:
                found[name] = _numpy(getattr(layer, name)).astype(np.int32)
        arrays |= {f"layers.{level}.{name}": array for name, array in found.items()}
    for level, parents in enumerate(network.parents):
        arrays[f"parents.{level}"] = _numpy(parents).astype(np.int32)
    if network.center is not None:
        arrays["center"] = _numpy(network.center)
    return layers, arrays


def _numpy(tensor):
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


# --------------------------------------------------------------------------------------
# From a file
# --------------------------------------------------------------------------------------


def rebuild(described, arrays, activation, sizes):
    """Build the network that a file describes.

    Parameters
    ----------
    described : object
        What stood in JSON.
    arrays : Arrays
        The arrays; those of the network are taken.
    activation : str
        Name of the activation function.
    sizes : Sizes
        The widths that the network must have.

    Returns
    -------
    network : MLP
        A sound network on the CPU, in evaluation mode.
    """
    n_layers = len(sizes.hidden) + 1
    listing(described, "The layers", n_layers, n_layers)
    layers, n_inputs = [], sizes.n_inputs
    for level, entry in enumerate(described):
        layers.append(_layer(entry, arrays, f"layers.{level}", n_inputs))
        n_inputs = layers[-1].out_features
    if n_inputs != sizes.n_outputs:
        raise ModelFileError(
            f"The last layer must have {sizes.n_outputs} outputs, one per column of "
            f"the targets, it has {n_inputs}."
        )
    parents = [
        _parents(arrays, f"parents.{level}", layer.out_features, h, a)
        for level, (layer, h, a) in enumerate(
            zip(layers[:-1], sizes.hidden, sizes.expansion, strict=True)
        )
    ]
    network = MLP(layers, activation, parents)
    if "center" in arrays:
        center = arrays.real("center", np.float32, (sizes.n_inputs,))
        network.center = torch.from_numpy(center)
    return network.eval()


def check_range(network, scaler, targets):
    """Check that outputs are numbers, :data:`FAR` standard deviations off the mean.

    Bounds of the values of all layers follow from sums of absolute values. Then no
    input near the training data overflows single precision, in any layer or in the
    units of the targets.
    """
    mean, scale = scaler.tensors("cpu")
    if network.center is not None:
        mean = mean - network.center
    bounds = copy.deepcopy(network).double()
    with torch.no_grad():
        for parameter in bounds.parameters():
            parameter.abs_()
        x = (mean.abs() + FAR * scale)[None]
        for layer in bounds.hidden:
            x = _within_range(layer(x))
            if network.activation in ("logistic", "tanh"):
                x = x.clamp(max=1.0)
        x = _within_range(bounds.layers[-1](x))
        scale, shift = (torch.from_numpy(a).abs() for a in targets.output_affine())
        _within_range(x * scale + shift)


def _within_range(bound):
    # Not a number is not within, either.
    if not (bound <= torch.finfo(torch.float32).max).all():
        raise ModelFileError(
            "The weights are too large: near the mean of the training data the outputs "
            "leave the range of single precision."
        )
    return bound


def _layer(entry, arrays, name, n_inputs):
    kind, shape = record(entry, ["kind", "shape"], f"The entry of {name}")
    choice(kind, KINDS, f"The kind of {name}")
    shape = integers(
        shape, f"The shape of {name}", 1, 2**31, length=3 if kind == "block" else 2
    )
    if kind == "block":
        return _block(arrays, name, shape, n_inputs)
    if shape[1] != n_inputs:
        raise ModelFileError(f"{name} must have {n_inputs} inputs, it has {shape[1]}.")
    bias = _bias(arrays, name, shape[:1])
    if kind == "masked":
        mask = arrays.bits(f"{name}.mask", shape)
        weight = _kept(arrays, name, mask)
        return MaskedLinear(weight, bias, torch.from_numpy(mask))
    weight = arrays.real(f"{name}.weight", np.float32, shape)
    layer = torch.nn.utils.skip_init(DenseLinear, *reversed(shape))
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight))
    layer.bias = torch.nn.Parameter(bias)
    return layer


def _block(arrays, name, shape, n_inputs):
    n_blocks, block_outputs, block_inputs = shape
    bias = _bias(arrays, name, (n_blocks, block_outputs))
    inputs = arrays.index(f"{name}.inputs", (n_blocks, block_inputs), n_inputs)
    if f"{name}.mask" in arrays:
        mask = arrays.bits(f"{name}.mask", shape)
        weight = _kept(arrays, name, mask)
    else:
        mask = None
        weight = torch.from_numpy(arrays.real(f"{name}.weight", np.float32, shape))
    kept = np.broadcast_to(True, shape) if mask is None else mask
    read = inputs[kept.any(axis=1)]
    if len(np.unique(read)) != len(read):
        raise ModelFileError(f"{name}.inputs must name no input twice.")
    outputs = None
    if f"{name}.outputs" in arrays:
        n_units = n_blocks * block_outputs
        outputs = arrays.index(f"{name}.outputs", (None,), n_units)
        pruned = np.ones(n_units, dtype=bool)
        pruned[outputs] = False
        pruned = pruned.reshape(n_blocks, block_outputs)
        if not len(outputs) or (np.diff(outputs) <= 0).any():
            raise ModelFileError(f"{name}.outputs must increase.")
        if (kept.any(axis=2) & pruned).any():
            raise ModelFileError(f"{name} must keep nothing of outputs it has not.")
    return BlockLinear(
        weight,
        bias,
        torch.from_numpy(inputs),
        in_features=n_inputs,
        mask=None if mask is None else torch.from_numpy(mask),
        outputs=None if outputs is None else torch.from_numpy(outputs),
    )


def _bias(arrays, name, shape):
    return torch.from_numpy(arrays.real(f"{name}.bias", np.float32, shape))


def _kept(arrays, name, mask):
    """Return the weight of a mask and the values at its kept positions."""
    values = arrays.real(f"{name}.weight", np.float32, (int(mask.sum()),))
    weight = np.zeros(mask.shape, dtype=np.float32)
    weight[mask] = values
    return torch.from_numpy(weight)


def _parents(arrays, name, n_units, n_parents, n_children):
    parents = arrays.index(name, (n_units,), n_parents)
    _, counts = np.unique(parents, return_counts=True)
    if counts.max() > n_children:
        raise ModelFileError(
            f"{name} must name no parent more than {n_children} times, as often as it "
            f"was split."
        )
    return torch.from_numpy(parents)
