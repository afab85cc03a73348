"""Check stored networks, and make their layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._arrays import scatter_kept, to_tensor, wide
from sklearn_fpe.nn._blocks import BlockLinear
from sklearn_fpe.nn._layers import DenseLinear, Layer, MaskedLinear
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._state import (
    array,
    choice,
    index,
    listing,
    record,
    require,
    sizes,
    unpack_mask,
)


def network_parts(
    state: Any, shape: Shape, name: str
) -> tuple[list[Layer], list[Tensor], Layer | None, Affine | None]:
    """Check what ``MLP.to_state`` returned against the shape of the expanded network.

    Returns layers, parents, the skip connection and the map of the inputs that is not
    folded into the weights. `name` is that of the network in messages.
    """
    ends = ("input_mean", "input_scale")
    is_scaled = isinstance(state, dict) and any(end in state for end in ends)
    needed = ("layers", "skip", "parents", *(ends if is_scaled else ()))
    entries, skip, parents, *scaling = record(state, name, needed)
    n_hidden, layers, n = len(shape.hidden), [], shape.n_inputs
    listing(entries, f"{name}.layers", n_hidden + 1, n_hidden + 1)
    for level, entry in enumerate(entries):
        layers.append(_layer(entry, n, f"{name}.layers.{level}"))
        n = layers[-1].out_features
    fits = (skip is not None) == shape.skip
    require(fits, f"{name} must have a skip connection if the shape has one")
    if skip is not None:
        skip = _layer(skip, shape.n_inputs, f"{name}.skip", is_skip=True)
    n_outputs = {n, n if skip is None else skip.out_features}
    fits = n_outputs == {shape.n_outputs}
    require(fits, f"{name} must have {shape.n_outputs} outputs", n_outputs)
    listing(parents, f"{name}.parents", n_hidden, n_hidden)
    for level, parent in enumerate(parents):
        part, n_children = f"{name}.parents.{level}", shape.expansion[level]
        index(parent, part, (layers[level].out_features,), shape.hidden[level])
        fits = np.bincount(parent).max() <= n_children
        require(fits, f"{part} must name no parent more than {n_children} times")
    affine = None
    if is_scaled:
        pair = dict(zip(("mean", "scale"), scaling, strict=True))
        affine = Affine.from_state(pair, f"{name}.input")
        fits = len(affine.mean) == shape.n_inputs
        require(fits, f"{name}.input_mean must have {shape.n_inputs} entries")
    return layers, [to_tensor(wide(parent)) for parent in parents], skip, affine


def _layer(state: Any, in_features: int, name: str, is_skip: bool = False) -> Layer:
    """Make a layer of what ``Layer.to_state`` returned, and check it.

    A mask may also be stored as a bool array of the weight's shape. A skip connection
    has neither a bias nor blocks.
    """
    kinds = ("dense", "masked") if is_skip else ("dense", "masked", "block")
    kind = state.get("kind") if isinstance(state, dict) else None
    kind = choice(kind, f"The kind of {name}", kinds)
    is_block = kind == "block"
    needed = ["kind", "shape", "weight", *([] if is_skip else ["bias"])]
    needed += {"dense": [], "masked": ["mask"], "block": ["inputs"]}[kind]
    record(state, name, needed, ("mask", "outputs") if is_block else ())
    shape = stored = sizes(state["shape"], f"The shape of {name}", 2 + is_block)
    fits = is_block or shape[1] == in_features
    require(fits, f"{name} must have {in_features} inputs, it has {shape[1]}")
    kept = bias = None
    if "mask" in state:
        kept = unpack_mask(state["mask"], f"{name}.mask", shape)
        stored = (int(kept.sum()),)
    values = array(state["weight"], f"{name}.weight", np.floating, stored)
    if not is_skip:
        bias = to_tensor(array(state["bias"], f"{name}.bias", np.floating, shape[:-1]))
    if kept is None:
        weight = to_tensor(values)
    else:
        weight = torch.from_numpy(scatter_kept(values, kept))
    # The layers get no mask, because they would multiply by it into another copy.
    layer: Layer
    if is_block:
        assert bias is not None
        inputs, outputs = _connections(state, kept, in_features, name)
        layer = BlockLinear(weight, bias, inputs, in_features, outputs=outputs)
    else:
        layer = dense = DenseLinear(weight, bias)
        if kept is not None:
            layer = MaskedLinear.of(dense)
    if kept is not None:
        layer.mask = torch.from_numpy(kept)
    return layer


def _connections(
    state: dict[str, Any], kept: np.ndarray | None, in_features: int, name: str
) -> tuple[Tensor, Tensor | None]:
    """Check which inputs and outputs the blocks of a state have; return them."""
    shape = n_blocks, block_outputs, block_inputs = tuple(state["shape"])
    if kept is None:
        kept = np.broadcast_to(True, shape)
    inputs, outputs = state["inputs"], state.get("outputs")
    index(inputs, f"{name}.inputs", (n_blocks, block_inputs), in_features)
    read = inputs[kept.any(axis=1)]
    fits = len(np.unique(read)) == len(read)
    require(fits, f"{name}.inputs must name no input twice")
    if outputs is not None:
        index(outputs, f"{name}.outputs", (None,), n_blocks * block_outputs)
        increase = len(outputs) and (np.diff(wide(outputs)) > 0).all()
        require(increase, f"{name}.outputs must increase")
        fits = not np.delete(kept.any(axis=2), outputs).any()
        require(fits, f"{name} must keep nothing of outputs it has not")
        outputs = to_tensor(wide(outputs))
    return to_tensor(wide(inputs)), outputs
