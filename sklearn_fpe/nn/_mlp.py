"""The network: a dense parent, or the network it was expanded to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_fpe.nn._activation import Activation, get_activation
from sklearn_fpe.nn._affine import Affine
from sklearn_fpe.nn._arrays import stored_arrays
from sklearn_fpe.nn._layers import DenseLinear, is_recorded
from sklearn_fpe.nn._network import Network
from sklearn_fpe.nn._shape import Shape
from sklearn_fpe.nn._stored import network_parts

MAX_FOLDED_OFFSET = 1e3
"""Largest mean of a column, in units of its scale, that is folded into float32."""

FOLDED_SCALES = (1e-15, 1e15)
"""Smallest and largest scale of a column that is folded into float32 weights."""


class MLP(Network):
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
        biases are zero. Zero are also the weights whose loss is convex: those of a
        network without hidden layers, and a skip connection with the output layer.

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

        The state depends on values alone, not on a device.
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
        """Make a network of `state`, which :meth:`to_state` returned, and check it.

        `activation` is that of the hidden layers, `shape` that of the network after
        its expansion, `name` that of the network in messages. The network is on the
        CPU, in evaluation mode.
        """
        layers, parents, skip, affine = network_parts(state, shape, name)
        network = cls(layers, activation, parents, skip)
        if affine is not None:
            network.input_mean, network.input_scale = affine.tensors("cpu")
        return network.eval()

    def transform(self, x: Tensor) -> Tensor:
        """Map x (n_rows, n_inputs) to the last hidden activations; to x without any."""
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
        mean = self.input_mean
        if mean is None:
            return x
        if not x.is_floating_point():
            raise TypeError(
                f"The input must be of a floating-point dtype, got {x.dtype}."
            )
        assert self.input_scale is not None
        return ((x.double() - mean) / self.input_scale).to(x.dtype)

    @property
    def reorders_columns(self) -> bool:
        """Whether the first layer alone reads the columns in another order."""
        return self.skip is None and self.layers[0].reorders_columns

    def arrange(self, x: Tensor) -> Tensor:
        """Return the columns of x as :meth:`arranged` reads them.

        The input must not be scaled, see :meth:`fold_input`.
        """
        return self.layers[0].arrange(x) if self.reorders_columns else x

    def arranged(self) -> MLP:
        """Return a network with the same parameters that acts on arranged columns.

        ``network.arranged()(network.arrange(x))`` equals ``network(x)``. It saves time
        where the same rows are used many times.
        """
        if not self.reorders_columns:
            return self
        layers = [self.layers[0].arranged(), *self.layers[1:]]
        twin = MLP(layers, self.activation, self.parents)
        return twin.train(self.training)

    def to_sequential(self) -> nn.Sequential:
        """Return the same function as ``nn.Linear`` modules and activations.

        The weights are copies, dense and zero where pruned, on the device of the
        network. The map of the input that is not folded yet, see :meth:`fold_input`, is
        folded into the first ``nn.Linear``, which loses digits in columns whose mean is
        far above their scale. Raises a ValueError for a network with a skip connection.
        """
        if self.skip is not None:
            raise ValueError(
                "A network with a skip connection is no sequence of modules; use the "
                "network itself, a torch.nn.Module."
            )
        layers = [
            DenseLinear(layer.dense_weight().clone(), layer.dense_bias().clone())
            for layer in self.layers
        ]
        if self.input_mean is not None:
            layers[0].fold_input(self.input_affine)
        modules: list[nn.Module] = []
        for layer in layers:
            # Without memory, because drawing weights would move the global generator.
            linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
            linear.load_state_dict(layer.state_dict(), assign=True)
            modules += [linear, self.activation.module()]
        return nn.Sequential(*modules[:-1]).train(self.training)

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
        """
        affine = self.input_affine.compose(affine)
        least, most = FOLDED_SCALES
        size = np.abs(affine.scale)
        kept = np.abs(affine.mean) / MAX_FOLDED_OFFSET > size
        kept |= (size < least) | (size > most)
        stays = Affine(np.where(kept, affine.mean, 0), np.where(kept, affine.scale, 1))
        self._fold(affine.relative_to(stays))
        self.input_mean = self.input_scale = None
        if kept.any():
            self.input_mean, self.input_scale = stays.tensors(self.device)

    @torch.no_grad()
    def unfold_input(self, affine: Affine) -> None:
        """Make the network act on ``affine(x)`` where it acted on x.

        For the same argument, this undoes :meth:`fold_input`.
        """
        self._fold(self.input_affine.relative_to(affine))
        self.input_mean = self.input_scale = None

    @torch.no_grad()
    def change_input(self, old: Affine, new: Affine) -> None:
        """Make the network act on ``new(x)`` where it acted on ``old(x)``."""
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
