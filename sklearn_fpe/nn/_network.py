"""The layers of a network, and its units and edges."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from itertools import pairwise
from typing import Self, cast

import torch
from torch import Tensor, nn

from sklearn_fpe.nn._activation import Activation, get_activation
from sklearn_fpe.nn._arrays import ArrayModule
from sklearn_fpe.nn._layers import DenseLinear, Layer, MaskedLinear


class Network(ArrayModule):
    """The parts of a multi-layer perceptron; :class:`MLP` computes with them."""

    layers: MutableSequence[Layer]
    activations: MutableSequence[nn.Module]
    input_mean: Tensor | None
    input_scale: Tensor | None
    skip: Layer | None

    def __init__(
        self,
        layers: Sequence[Layer],
        activation: str | Activation = "relu",
        parents: Sequence[Tensor] | None = None,
        skip: Layer | None = None,
    ) -> None:
        super().__init__()
        self.activation = get_activation(activation)
        # torch's class says nothing of the modules that it holds.
        self.layers = cast("MutableSequence[Layer]", nn.ModuleList(layers))
        self.skip = skip
        modules = [self.activation.module() for _ in range(len(layers) - 1)]
        self.activations = cast("MutableSequence[nn.Module]", nn.ModuleList(modules))
        if parents is None:
            widths = [layer.out_features for layer in layers[:-1]]
            parents = [torch.arange(width, device="cpu") for width in widths]
        for level, parent in enumerate(parents):
            self.register_buffer(f"parents_{level}", parent)
        self.register_buffer("input_mean", None)
        self.register_buffer("input_scale", None)

    @property
    def hidden(self) -> list[Layer]:
        """The hidden layers' affine maps."""
        return list(self.layers[:-1])

    @property
    def parents(self) -> list[Tensor]:
        """The parent neuron of every unit, an int tensor per hidden layer."""
        n_hidden = len(self.layers) - 1
        return [getattr(self, f"parents_{level}") for level in range(n_hidden)]

    @property
    def n_nonzero(self) -> int:
        """Kept weights and biases of all layers."""
        return sum(layer.n_nonzero for layer in self.maps)

    @property
    def n_weights(self) -> int:
        """Weights of the layers, pruned ones included."""
        return sum(layer.weight.numel() for layer in self.layers)

    @property
    def n_units(self) -> int:
        """Units of the last hidden layer; the inputs if there is none."""
        return self.layers[-1].in_features

    @property
    def n_outputs(self) -> int:
        """Columns of the outputs."""
        return self.layers[-1].out_features

    @property
    def n_values(self) -> int:
        """Values that a prediction holds at a time for a row: inputs, activations."""
        return sum(layer.in_features for layer in self.layers)

    @property
    def maps(self) -> list[Layer]:
        """All layers, and after them the skip connection if there is one."""
        return [*self.layers, *([] if self.skip is None else [self.skip])]

    @property
    def input_maps(self) -> list[Layer]:
        """The layers that read the inputs."""
        return [self.layers[0], *self.maps[len(self.layers) :]]

    @property
    def output_maps(self) -> list[Layer]:
        """The layers that add to the outputs."""
        return self.maps[len(self.layers) - 1 :]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.layers[0].weight.device

    def alive(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the units that edges join to an input and an output.

        `masks` holds the edges, a bool tensor of the shape of `weight` for every layer
        of :attr:`maps`. Returns a bool tensor of shape (n_units,) for every hidden
        layer.
        """
        # Without loops until nothing changes, because the host would wait in each.
        layers = list(zip(self.layers, masks, strict=False))
        reached, end = [], masks[0].new_ones(layers[0][0].in_features)
        for layer, mask in layers[:-1]:
            outputs = mask.new_ones(layer.out_features)
            end = layer.total_in(mask & layer.between(end, outputs)) > 0
            reached.append(end)
        needed, end = [], masks[0].new_ones(layers[-1][0].out_features)
        for layer, mask in reversed(layers[1:]):
            inputs = mask.new_ones(layer.in_features)
            end = layer.total_out(mask & layer.between(inputs, end)) > 0
            needed.append(end)
        return [r & n for r, n in zip(reached, reversed(needed), strict=True)]

    def edges_between(self, alive: Sequence[Tensor]) -> list[Tensor]:
        """Return the edges that join the units `alive`, a mask for every layer."""
        first = self.layers[0]
        ones = first.weight.new_ones(first.in_features, dtype=torch.bool)
        ends = [ones, *alive, ones.new_ones(self.n_outputs)]
        edges = [
            layer.between(a, b)
            for layer, (a, b) in zip(self.layers, pairwise(ends), strict=True)
        ]
        if self.skip is not None:
            edges.append(ones.new_ones(self.n_outputs, len(ones)))
        return edges

    def without_dead_units(self) -> Self:
        """Return the network without hidden units that have no edge at all."""
        kept = [(layer, layer.kept()) for layer in self.layers]
        into = [layer.total_in(mask) > 0 for layer, mask in kept]
        out = [layer.total_out(mask) > 0 for layer, mask in kept]
        alive = [i | o for i, o in zip(into[:-1], out[1:], strict=True)]
        for units in alive:
            units[0] |= not bool(units.any())  # no layer is left without units
        if all(bool(units.all()) for units in alive):
            return self
        ends = [torch.ones_like(out[0]), *alive, torch.ones_like(into[-1])]
        layers = [
            layer.select_units(a, b)
            for layer, (a, b) in zip(self.layers, pairwise(ends), strict=True)
        ]
        parents = [parent[a] for parent, a in zip(self.parents, alive, strict=True)]
        network = type(self)(layers, self.activation, parents, self.skip)
        network.input_mean, network.input_scale = self.input_mean, self.input_scale
        return network.train(self.training)

    def masked(self, level: int) -> Layer:
        """Return entry `level` of :attr:`maps`, as a layer that can be masked.

        A dense layer is replaced by a masked one that has the same parameters.
        """
        layer = self.maps[level]
        if isinstance(layer, DenseLinear):
            layer = MaskedLinear.of(layer)
            if level == len(self.layers):
                self.skip = layer
            else:
                self.layers[level] = layer
        return layer
