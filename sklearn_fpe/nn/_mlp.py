"""The network: a dense parent, or the network it was expanded to."""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_fpe.nn._activation import Activation, get_activation
from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._arrays import ArrayModule, stored_arrays, to_tensor, wide
from sklearn_fpe.nn._blocks import BlockLinear, layer_from_state
from sklearn_fpe.nn._layers import DenseLinear, Layer, MaskedLinear, is_recorded
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._state import index, listing, record, require

MAX_FOLDED_OFFSET = 1e3
"""Largest mean of a column, in units of its scale, that is folded into float32."""

FOLDED_SCALES = (1e-15, 1e15)
"""Smallest and largest scale of a column that is folded into float32 weights."""


class MLP(ArrayModule):
    """Multi-layer perceptron over dense or partitioned layers.

    Parameters
    ----------
    layers : list of DenseLinear, MaskedLinear or BlockLinear
        The affine maps, hidden layers first, the output layer last.
    activation : str or Activation, default="relu"
        Activation of the hidden layers. The output layer has none.
    parents : list of int tensors, default=None
        The parent neuron of every unit of each hidden layer; None: the units are the
        parents.
    skip : DenseLinear or MaskedLinear, default=None
        Skip connection: a linear map without biases from the inputs to the outputs,
        which is added to the output layer's. None: there is none.

    Attributes
    ----------
    layers : torch.nn.ModuleList
        The affine maps.
    activations : torch.nn.ModuleList
        The activation after each hidden layer.
    activation : Activation
        The activation function.
    input_mean, input_scale : double tensors of shape (n_inputs,) or None
        The input is mapped to ``(x - input_mean) / input_scale`` first, see
        :meth:`fold_input`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import MLP
    >>> network = MLP.dense([4, 3, 2], generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 4)).shape, network.n_nonzero
    (torch.Size([5, 2]), 23)
    """

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
            parents = [
                torch.arange(layer.out_features, device="cpu") for layer in layers[:-1]
            ]
        for level, parent in enumerate(parents):
            self.register_buffer(f"parents_{level}", parent)
        self.register_buffer("input_mean", None)
        self.register_buffer("input_scale", None)

    @classmethod
    def dense(
        cls,
        widths: Sequence[int],
        activation: str | Activation = "relu",
        generator: torch.Generator | None = None,
        skip: bool = False,
    ) -> MLP:
        """Make a dense network with freshly drawn weights.

        Weights are uniform in ±sqrt(g / (fan_in + fan_out)) with the activation's gain
        g, which is 2 for ``"logistic"`` and 6 otherwise (Glorot and Bengio, 2010);
        biases are zero. What is trained by a convex loss alone starts from zero: a
        network without hidden layers, and with a skip connection the connection and
        the output layer.

        Parameters
        ----------
        widths : sequence of int
            Inputs, hidden widths, outputs.
        activation : str or Activation, default="relu"
            See :class:`MLP`.
        generator : torch.Generator, default=None
            Source of randomness. None: fresh, without moving the global generator.
        skip : bool, default=False
            Whether to make a skip connection.

        Returns
        -------
        network : MLP
            The network, in float32 on the CPU.
        """
        activation = get_activation(activation)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        layers = []
        for n_in, n_out in pairwise(widths):
            bound = math.sqrt(activation.gain / (n_in + n_out))
            weight = torch.empty(n_out, n_in, dtype=torch.float32, device="cpu")
            weight.uniform_(-bound, bound, generator=generator)
            bias = torch.zeros(n_out, dtype=torch.float32, device="cpu")
            layers.append(DenseLinear(weight, bias))
        linear = None
        if skip:
            shape = (widths[-1], widths[0])
            linear = DenseLinear(torch.zeros(shape, dtype=torch.float32, device="cpu"))
        if skip or len(layers) == 1:
            nn.init.zeros_(layers[-1].weight)
        return cls(layers, activation, skip=linear)

    def to_state(self) -> dict[str, Any]:
        """Return the network, but for its activation, as dicts, lists and arrays.

        :meth:`from_state` makes the network of it again. It depends on values alone,
        not on a device.
        """
        arrays = stored_arrays(self)
        n_hidden = len(self.layers) - 1
        return {
            "layers": [layer.to_state() for layer in self.layers],
            "skip": None if self.skip is None else self.skip.to_state(),
            "parents": [arrays.pop(f"parents_{level}") for level in range(n_hidden)],
            **arrays,
        }

    @classmethod
    def from_state(
        cls, state: Any, activation: str | Activation, shape: Shape, name: str
    ) -> MLP:
        """Make a network of what :meth:`to_state` returned, and check it.

        Parameters
        ----------
        state : dict
            Layers, skip connection, parents and the standardisation that is not folded.
        activation : str or Activation
            Activation of the hidden layers.
        shape : Shape
            Shape of the network after its expansion.
        name : str
            Name of the network in messages.

        Returns
        -------
        network : MLP
            The network, on the CPU, in evaluation mode.
        """
        ends = ("input_mean", "input_scale")
        is_scaled = isinstance(state, dict) and any(end in state for end in ends)
        needed = ("layers", "skip", "parents", *(ends if is_scaled else ()))
        entries, skip, parents, *scaling = record(state, name, needed)
        n_hidden, layers, n = len(shape.hidden), [], shape.n_inputs
        listing(entries, f"{name}.layers", n_hidden + 1, n_hidden + 1)
        for level, entry in enumerate(entries):
            layers.append(layer_from_state(entry, n, f"{name}.layers.{level}"))
            n = layers[-1].out_features
        fits = (skip is not None) == shape.skip
        require(fits, f"{name} must have a skip connection if the shape has one")
        if skip is not None:
            skip = layer_from_state(skip, shape.n_inputs, f"{name}.skip", True)
        n_outputs = {n, n if skip is None else skip.out_features}
        fits = n_outputs == {shape.n_outputs}
        require(fits, f"{name} must have {shape.n_outputs} outputs", n_outputs)
        listing(parents, f"{name}.parents", n_hidden, n_hidden)
        for level, parent in enumerate(parents):
            part, n_children = f"{name}.parents.{level}", shape.expansion[level]
            index(parent, part, (layers[level].out_features,), shape.hidden[level])
            fits = np.bincount(parent).max() <= n_children
            require(fits, f"{part} must name no parent more than {n_children} times")
        network = cls(layers, activation, [to_tensor(wide(p)) for p in parents], skip)
        if is_scaled:
            pair = dict(zip(("mean", "scale"), scaling, strict=True))
            affine = Affine.from_state(pair, f"{name}.input")
            fits = len(affine.mean) == shape.n_inputs
            require(fits, f"{name}.input_mean must have {shape.n_inputs} entries")
            network.input_mean, network.input_scale = affine.tensors("cpu")
        return network.eval()

    @property
    def hidden(self) -> list[Layer]:
        """The hidden layers' affine maps."""
        return list(self.layers[:-1])

    @property
    def parents(self) -> list[Tensor]:
        """The parent neuron of every unit, an int tensor per hidden layer."""
        return [
            getattr(self, f"parents_{level}") for level in range(len(self.layers) - 1)
        ]

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
        """Columns of what :meth:`transform` returns."""
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

    # ----------------------------------------------------------------------------------
    # Forward
    # ----------------------------------------------------------------------------------

    def transform(self, x: Tensor) -> Tensor:
        """Map x (n_rows, n_inputs) to the activations of the last hidden layer.

        Without hidden layers, to x itself.
        """
        return self._hidden(self._scaled(x))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Map x (n_rows, n_inputs) to outputs (n_rows, n_outputs), without a link.

        They are written into `out` if it is given, which autograd cannot record.
        """
        last = self.layers[-1]
        x = self._scaled(x)
        hidden = self._hidden(x)
        outputs = last(hidden) if out is None else last(hidden, out=out)
        if self.skip is None:
            return outputs
        if is_recorded():
            return outputs + self.skip(x)
        return outputs.addmm_(x, self.skip.weight.to(x.dtype).mT)

    def _hidden(self, x: Tensor) -> Tensor:
        recorded = is_recorded()
        for layer, module in zip(self.layers, self.activations, strict=False):
            x = layer(x)
            hooked = module._forward_hooks or module._forward_pre_hooks
            x = module(x) if recorded or hooked else self.activation.apply_(x)
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        """Apply the part of the standardisation that is not folded."""
        if self.input_mean is None:
            return x
        if not x.is_floating_point():
            raise TypeError(
                f"The input must be of a floating-point dtype, got {x.dtype}."
            )
        assert self.input_mean is not None
        assert self.input_scale is not None
        return ((x.double() - self.input_mean) / self.input_scale).to(x.dtype)

    def arranged(self) -> MLP:
        """Return a network with the same parameters that acts on arranged columns.

        ``network.arranged()(network.arrange(x))`` equals ``network(x)``; it saves time
        where the same rows are used many times. The network itself where its first
        layer reads the columns in their order.
        """
        first = self.layers[0]
        if not self.reorders_columns or not isinstance(first, BlockLinear):
            return self
        others = list(self.layers[1:])
        twin = MLP([first.arranged(), *others], self.activation, self.parents)
        twin.train(self.training)
        return twin

    def alive(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the units that edges join to an input and an output.

        Parameters
        ----------
        masks : sequence of bool tensors
            A mask for every layer of :attr:`maps`, of the shape of its `weight`.

        Returns
        -------
        alive : list of bool tensors of shape (n_units,)
            The living units of every hidden layer.
        """
        # Without loops until nothing changes, because the host would wait in each.
        layers = list(zip(self.layers, masks, strict=False))
        reached, end = [], masks[0].new_ones(layers[0][0].in_features)
        for layer, mask in layers[:-1]:
            edges = mask & layer.between(end, mask.new_ones(layer.out_features))
            end = layer.total_in(edges) > 0
            reached.append(end)
        needed, end = [], masks[0].new_ones(layers[-1][0].out_features)
        for layer, mask in reversed(layers[1:]):
            edges = mask & layer.between(mask.new_ones(layer.in_features), end)
            end = layer.total_out(edges) > 0
            needed.append(end)
        return [r & n for r, n in zip(reached, reversed(needed), strict=True)]

    def edges_between(self, alive: Sequence[Tensor]) -> list[Tensor]:
        """Return the edges that join the units `alive`, a mask for every layer."""
        first = self.layers[0]
        ones = first.weight.new_ones(first.in_features, dtype=torch.bool)
        n_outputs = self.layers[-1].out_features
        ends = [ones, *alive, ones.new_ones(n_outputs)]
        edges = [
            layer.between(a, b)
            for layer, (a, b) in zip(self.layers, pairwise(ends), strict=True)
        ]
        return (
            edges
            if self.skip is None
            else [*edges, ones.new_ones(n_outputs, len(ones))]
        )

    def without_dead_units(self) -> MLP:
        """Return the network without hidden units that have no edge at all."""
        masks = [layer.kept() for layer in self.layers]
        into = [
            layer.total_in(m) > 0 for layer, m in zip(self.layers, masks, strict=False)
        ]
        out = [
            layer.total_out(m) > 0 for layer, m in zip(self.layers, masks, strict=False)
        ]
        alive = [i | o for i, o in zip(into[:-1], out[1:], strict=True)]
        for units in alive:
            units[0] |= not bool(units.any())  # no layer is left without units
        if all(bool(a.all()) for a in alive):
            return self
        ones = [torch.ones_like(e) for e in (out[0], into[-1])]
        ends = [ones[0], *alive, ones[1]]
        layers = [
            layer.select_units(a, b)
            for layer, (a, b) in zip(self.layers, pairwise(ends), strict=True)
        ]
        parents = [parent[a] for parent, a in zip(self.parents, alive, strict=True)]
        network = MLP(layers, self.activation, parents, self.skip)
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

    @property
    def reorders_columns(self) -> bool:
        """Whether the first layer alone reads the columns in another order."""
        first = self.layers[0]
        if self.skip is not None or not isinstance(first, BlockLinear):
            return False
        return first.reorders_columns

    def arrange(self, x: Tensor) -> Tensor:
        """Return the columns of x as :meth:`arranged` reads them.

        The input must not be scaled, see :meth:`fold_input`.
        """
        first = self.layers[0]
        if not self.reorders_columns or not isinstance(first, BlockLinear):
            return x
        return first.arrange(x)

    def to_sequential(self) -> nn.Sequential:
        """Return the same function as ``nn.Linear`` modules and activations.

        The weights are copies, dense and zero where pruned. Where the network maps its
        input to ``(x - input_mean) / input_scale`` first, that map is folded into the
        first ``nn.Linear``, which loses digits in columns whose mean is far above
        their scale.

        Returns
        -------
        sequential : torch.nn.Sequential
            ``Linear, activation, ..., Linear`` on the device of the network.

        Raises
        ------
        ValueError
            If the network has a skip connection, which is no sequence of modules.
        """
        if self.skip is not None:
            raise ValueError(
                "A network with a skip connection is no sequence of modules; use the "
                "network itself, a torch.nn.Module."
            )
        modules: list[nn.Module] = []
        for layer in self.layers:
            weight, bias = layer.dense_weight().clone(), layer.dense_bias().clone()
            # Not by nn.Linear(...), which would move the global generator.
            linear = nn.Linear.__new__(nn.Linear)
            nn.Module.__init__(linear)
            linear.out_features, linear.in_features = weight.shape
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
            modules += [linear, self.activation.module()]
        if self.input_mean is not None and self.input_scale is not None:
            first = modules[0]
            assert isinstance(first, nn.Linear)
            with torch.no_grad():
                scaled = first.weight.double() / self.input_scale
                first.bias.copy_(first.bias.double() - scaled @ self.input_mean)
                first.weight.copy_(scaled)
        return nn.Sequential(*modules[:-1]).train(self.training)

    # ----------------------------------------------------------------------------------
    # Location and scale
    # ----------------------------------------------------------------------------------

    @property
    def input_affine(self) -> Affine:
        """The map of the input that is not folded; the identity if there is none."""
        if self.input_mean is None or self.input_scale is None:
            return Affine.identity(self.layers[0].in_features)
        mean, scale = self.input_mean.cpu().numpy(), self.input_scale.cpu().numpy()
        return Affine(mean, scale)

    @torch.no_grad()
    def fold_input(self, affine: Affine) -> None:
        """Make the network act on x where it acted on ``affine(x)``.

        The map is folded into the first layer. Where single precision would lose a
        column, because its mean is more than :data:`MAX_FOLDED_OFFSET` scales from
        zero or its scale is outside of :data:`FOLDED_SCALES`, the column's map stays
        in double precision in :attr:`input_mean` and :attr:`input_scale`.

        Parameters
        ----------
        affine : Affine
            Location and scale of the input columns.
        """
        affine = self.input_affine.compose(affine)
        least, most = FOLDED_SCALES
        size = np.abs(affine.scale)
        kept = (np.abs(affine.mean) / MAX_FOLDED_OFFSET > size) | (size < least)
        kept |= size > most
        stays = Affine(np.where(kept, affine.mean, 0), np.where(kept, affine.scale, 1))
        self._fold(affine.relative_to(stays))
        self.input_mean = self.input_scale = None
        if kept.any():
            self.input_mean, self.input_scale = stays.tensors(self.device)

    @torch.no_grad()
    def unfold_input(self, affine: Affine) -> None:
        """Make the network act on ``affine(x)`` where it acted on x.

        The inverse of :meth:`fold_input` for the same argument; for others it expresses
        the same function in other coordinates.
        """
        self._fold(self.input_affine.relative_to(affine))
        self.input_mean = self.input_scale = None

    @torch.no_grad()
    def change_input(self, old: Affine, new: Affine) -> None:
        """Make the network act on ``new(x)`` where it acted on ``old(x)``.

        As a function of x it stays the same.
        """
        self._fold(old.relative_to(new))

    def _fold(self, affine: Affine) -> None:
        self.layers[0].fold_input(affine)
        if self.skip is not None:
            self.layers[-1].add_bias(self.skip.scale_input(affine))

    @torch.no_grad()
    def change_output(self, old: Affine, new: Affine) -> None:
        """Make ``new.undo(outputs)`` what ``old.undo(outputs)`` was."""
        last, back = self.layers[-1], new.relative_to(old)
        mean, scale = back.tensors(self.device)
        for layer in self.output_maps:
            layer.weight.copy_(layer.weight.double() / scale.unsqueeze(1))
        assert last.bias is not None
        last.bias.copy_((last.bias.double() - mean) / scale)
