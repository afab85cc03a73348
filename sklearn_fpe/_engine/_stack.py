"""Networks of one shape that train as one: batched products, one matrix to update.

The time of a step of a small network is spent on launching operations and on narrow
matrix products. A stack launches the operations once for all networks, and multiplies
rows that several networks read by their concatenated first layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sklearn_fpe._engine._step import update_adamw
from sklearn_fpe.nn import BlockLinear
from sklearn_fpe.nn._layers import Layer

if TYPE_CHECKING:
    from sklearn_fpe._engine._trainer import Epoch, Trainer


def shape_of(epoch: Epoch) -> tuple | None:
    """Return a key that the networks of a stack must share; None: it trains alone."""
    trainer = epoch.trainer
    alone = trainer.net.flat_ is None or trainer.world.size > 1
    if alone or any(isinstance(layer, BlockLinear) for layer in trainer.network.maps):
        return None
    n_rows = len(epoch.rows)
    batch_size = trainer.settings.rows_per_step(n_rows)
    return (
        tuple(tuple(parameter.shape) for parameter in trainer.network.parameters()),
        trainer.network.skip is not None,
        trainer.network.activation,
        trainer.settings.loss,
        trainer.settings.device,
        trainer.settings.tf32,
        batch_size,
        -(-n_rows // batch_size),
        epoch.rows.weights.ndim,
    )


def stream_of(epoch: Epoch) -> tuple:
    """Return a key of the batches of an epoch: its rows and their order."""
    return id(epoch.rows), epoch.trainer.order_seed


class Stack:
    """Networks of one shape whose parameters are the rows of one matrix.

    The parameters, masks and optimizer states of each network become views of a row, so
    that hooks may read and change them as if each network trained alone.

    Parameters
    ----------
    trainers : sequence of Trainer
        The networks in training, ordered by stream.
    n_streams : int
        Streams of batches; each feeds equally many consecutive networks.

    Attributes
    ----------
    values, gradients, trainable : tensors of shape (n_networks, n)
        Parameters, their gradients, and 1.0 where they are trained.
    steps : tensor of shape (n_networks,)
        Steps of the optimizers so far.
    """

    def __init__(self, trainers: Sequence[Trainer], n_streams: int) -> None:
        self.trainers, self.n_streams = list(trainers), n_streams
        self.optimizers = [trainer.net.optimizer_ for trainer in trainers]
        self.flats = [t.net.flat_ for t in trainers if t.net.flat_ is not None]
        flat = self.flats[0]
        shape = (len(trainers), len(flat.vector))
        self.values, self.gradients, self.trainable, *means = (
            flat.vector.detach().new_zeros(shape) for _ in range(5)
        )
        self.steps = self.values.new_zeros(len(trainers))
        for k, (own, optimizer) in enumerate(
            zip(self.flats, self.optimizers, strict=True)
        ):
            own.move_to(self.values[k], self.gradients[k], self.trainable[k])
            optimizer.move_to(self.steps[k], *(mean[k] for mean in means))
        self.activation = flat.network.activation
        self.loss = trainers[0].settings.loss
        self.first, *self.others = (_Layer(m, self) for m in flat.network.layers)
        skip = flat.network.skip
        self.skip = None if skip is None else _Layer(skip, self)

    def run_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Run an epoch of every network, in the order of the trainers."""
        for trainer, epoch in zip(self.trainers, epochs, strict=True):
            trainer.begin_epoch(epoch)
        groups = self._groups(epochs)
        callbacks = [t.net.before_step for t in self.trainers if t.net.before_step]
        losses, sizes = [], []
        for x, targets, shares, n_rows in self._batches(epochs):
            losses.append(self._backpropagate(x, targets, shares))
            sizes.append(n_rows)
            for before_step in callbacks:
                before_step()
            self.gradients.mul_(self.trainable)
            self.steps += 1
            for group in groups:
                update_adamw(*group)
        of_steps = torch.stack(losses).cpu().double()
        weights = torch.tensor(sizes, dtype=torch.float64, device="cpu")
        n_per_stream = len(self.trainers) // self.n_streams
        weights = weights.repeat_interleave(n_per_stream, dim=1)
        means = (of_steps * weights).sum(0) / weights.sum(0)
        for trainer, loss in zip(self.trainers, means.tolist(), strict=True):
            trainer.end_epoch(loss)

    def _groups(self, epochs: Sequence[Epoch]) -> list[tuple]:
        """Return the arguments of the optimizer's kernel for each set of constants."""
        found: dict[tuple, tuple] = {}
        for optimizer, flat, epoch in zip(
            self.optimizers, self.flats, epochs, strict=True
        ):
            (group,) = optimizer.param_groups
            constants = {**group, "lr": epoch.rate}
            key = (epoch.rate, group["weight_decay"])
            _, vectors, gradients, states = found.setdefault(
                key, (constants, [], [], [])
            )
            vectors.append(flat.vector.detach())
            gradients.append(flat.gradient)
            states.append(optimizer.state[flat.vector])
        return list(found.values())

    def _batches(
        self, epochs: Sequence[Epoch]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, list[int]]]:
        """Yield rows, targets, shares and the numbers of rows of the streams.

        Rows are of shape (n_streams, n_rows, n_inputs). Targets and shares are those of
        the rows of all networks, concatenated. If a stream has fewer rows than another,
        rows with weight zero are added.
        """
        n_per_stream = len(epochs) // self.n_streams
        streams = [
            epoch.rows.iterate(
                epoch.trainer.settings.rows_per_step(len(epoch.rows)),
                epoch.trainer.order_seed,
            )
            for epoch in epochs[::n_per_stream]
        ]
        for batches in zip(*streams, strict=True):
            x = [x for x, _ in batches]
            targets = _stacked([targets for _, (targets, _) in batches])
            shares = _stacked([weights / len(weights) for _, (_, weights) in batches])
            yield (
                _stacked(x),
                targets.repeat_interleave(n_per_stream, dim=0).flatten(0, 1),
                shares.repeat_interleave(n_per_stream, dim=0).flatten(0, 1),
                [len(rows) for rows in x],
            )

    @torch.no_grad()
    def _backpropagate(self, x: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        """Write the gradients of all networks; return their losses, (n_networks,)."""
        apply_, backward_ = self.activation.apply_, self.activation.backward_
        assert backward_ is not None
        if not self.others:  # no hidden layer
            outputs = self.first.shared_product(x).mT + self.first.bias.unsqueeze(1)
            losses, gradient = self._differentiate(outputs, targets, shares)
            self.first.shared_gradients(x, gradient.mT)
            return losses
        # Activations are (n_networks, n_units, n_rows), because the first product
        # returns the units of all networks one after another.
        outputs = self.first.shared_product(x).add_(self.first.bias.unsqueeze(2))
        activations = [apply_(outputs)]
        *middle, last = self.others
        for layer in middle:
            outputs = torch.baddbmm(
                layer.bias.unsqueeze(2), layer.weight, activations[-1]
            )
            activations.append(apply_(outputs))
        outputs = torch.baddbmm(
            last.bias.unsqueeze(1), activations[-1].mT, last.weight.mT
        )
        if self.skip is not None:
            outputs += self.skip.shared_product(x).mT
        losses, gradient = self._differentiate(outputs, targets, shares)
        back = gradient.mT
        if self.skip is not None:
            self.skip.shared_gradients(x, back)
        for layer, activation in zip(
            reversed(self.others), reversed(activations), strict=True
        ):
            layer.gradients(activation, back)
            back = backward_(torch.bmm(layer.weight.mT, back), activation)
        self.first.shared_gradients(x, back)
        return losses

    def _differentiate(
        self, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses (n_networks,), gradient (n_networks, n_rows, n_outputs)."""
        n_networks, n_rows, _ = outputs.shape
        flat = outputs.flatten(0, 1)
        losses, gradient = self.loss.gradient(flat, targets, shares)
        if losses.ndim > shares.ndim:
            losses = losses.sum(dim=1)
        losses = (losses * shares).view(n_networks, -1).sum(1)
        return losses, gradient.unflatten(0, (n_networks, n_rows))


class _Layer:
    """The parameters of a layer of every network, and their gradients, as views.

    Weights are of shape (n_networks, n_outputs, n_inputs), biases (n_networks,
    n_outputs).
    """

    def __init__(self, layer: Layer, stack: Stack) -> None:
        def view(matrix: Tensor, parameter: torch.nn.Parameter) -> Tensor:
            place = stack.flats[0].places[parameter]
            return matrix[:, place].view(len(matrix), *parameter.shape)

        self.weight = view(stack.values, layer.weight)
        self.weight_gradient = view(stack.gradients, layer.weight)
        self.has_bias = layer.bias is not None
        if layer.bias is not None:
            self.bias = view(stack.values, layer.bias)
            self.bias_gradient = view(stack.gradients, layer.bias)

    def shared_product(self, x: Tensor) -> Tensor:
        """Multiply x (n_streams, n_rows, n_inputs), which several networks read.

        Returns the products (n_networks, n_outputs, n_rows), without biases.
        """
        n_networks, n_outputs, n_inputs = self.weight.shape
        wide = self.weight.reshape(len(x), -1, n_inputs)
        return torch.bmm(wide, x.mT).view(n_networks, n_outputs, x.shape[1])

    def shared_gradients(self, x: Tensor, back: Tensor) -> None:
        """Write the gradients, given those of the products, for shared rows x."""
        wide = back.reshape(len(x), -1, x.shape[1])
        product = torch.bmm(wide, x)
        self.weight_gradient.copy_(product.view(self.weight.shape))
        self._sum(back)

    def gradients(self, activation: Tensor, back: Tensor) -> None:
        """Write the gradients where every network has inputs of its own.

        The inputs `activation` are (n_networks, n_inputs, n_rows), the gradients with
        respect to the outputs `back` (n_networks, n_outputs, n_rows).
        """
        torch.bmm(back, activation.mT, out=self.weight_gradient)
        self._sum(back)

    def _sum(self, back: Tensor) -> None:
        if self.has_bias:
            torch.sum(back, 2, out=self.bias_gradient)


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack tensors, padding the shorter ones with zeros."""
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    if len({len(part) for part in parts}) == 1:
        return torch.stack(parts)
    return pad_sequence(parts, batch_first=True)
