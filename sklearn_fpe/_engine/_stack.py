"""Networks of one shape that train as one: batched products, one vector to update.

A step of a small network is bound by the overhead of its operations and by narrow
matrix products. Networks that read the same rows share the product of the first layer,
which is then as wide as all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sklearn_fpe._engine._step import FlatParameters, VectorAdamW, update_adamw
from sklearn_fpe.nn import BlockLinear
from sklearn_fpe.nn._layers import Layer

if TYPE_CHECKING:
    from sklearn_fpe._engine._trainer import Epoch, Trainer


def shape_of(epoch: Epoch) -> tuple | None:
    """Return what the networks of a stack have in common; None: it trains alone.

    Parameters
    ----------
    epoch : Epoch
        An epoch of a network.

    Returns
    -------
    shape : tuple or None
        Shapes of the parameters, activation, loss, device and batches.
    """
    trainer = epoch.trainer
    maps = trainer.network.maps
    alone = trainer.net.flat_ is None or trainer.world.size > 1
    if alone or any(isinstance(layer, BlockLinear) for layer in maps):
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
    )


def stream_of(epoch: Epoch) -> tuple:
    """Return what identifies the batches of an epoch: its rows and their order."""
    return id(epoch.rows), epoch.trainer.order_seed


class Stack:
    """Networks of one shape whose parameters are the rows of one matrix.

    The networks, their masks and their optimizers stay what they are: their tensors
    are views of the rows, so that whatever changes masks or reads running means does
    not notice.

    Parameters
    ----------
    trainers : sequence of Trainer
        The networks in training, ordered by stream.
    n_streams : int
        Streams of batches; each feeds as many consecutive networks.

    Attributes
    ----------
    values, gradients, trainable : tensors of shape (n_networks, n)
        Parameters, their gradients, and 1.0 where they are trained.
    """

    def __init__(self, trainers: Sequence[Trainer], n_streams: int) -> None:
        self.trainers, self.n_streams = list(trainers), n_streams
        self.flats = [_flat(trainer) for trainer in trainers]
        shape = (len(trainers), len(self.flats[0].vector))
        self.values, self.gradients, self.trainable, *means = (
            self.flats[0].vector.detach().new_zeros(shape) for _ in range(5)
        )
        self.steps = self.values.new_zeros(len(trainers))
        self.optimizers: list[VectorAdamW] = []
        rows = zip(self.values, self.gradients, self.trainable, strict=True)
        states = zip(self.steps, *means, strict=True)
        for trainer, flat, row, state in zip(
            trainers, self.flats, rows, states, strict=True
        ):
            flat.move_to(*row)
            trainer.net.optimizer_.move_to(*state)
            self.optimizers.append(trainer.net.optimizer_)
        network = self.flats[0].network
        self.activation = network.activation
        self.loss = trainers[0].settings.loss
        layers = [self._views(layer) for layer in network.layers]
        self.first, *self.others = layers
        self.skip = None if network.skip is None else self._views(network.skip)

    def _views(self, layer: Layer) -> _Layer:
        """Return the parameters of a layer of all networks as views."""
        places, shapes = self.flats[0].places, []
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                shapes.append((places[parameter], parameter.shape))
        return _Layer(
            *(
                [
                    matrix[:, place].view(len(matrix), *shape)
                    for matrix in (self.values, self.gradients)
                ]
                for place, shape in shapes
            )
        )

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
        n_per_network = len(self.trainers) // self.n_streams
        weights = torch.tensor(sizes, dtype=torch.float64, device="cpu")
        weights = weights.repeat_interleave(n_per_network, dim=1)
        means = (of_steps * weights).sum(0) / weights.sum(0)
        for trainer, loss in zip(self.trainers, means.tolist(), strict=True):
            trainer.end_epoch(loss)

    def _groups(self, epochs: Sequence[Epoch]) -> list[tuple]:
        """Return the arguments of the optimizer's kernel, by its constants."""
        found: dict[tuple, tuple] = {}
        for optimizer, flat, epoch in zip(
            self.optimizers, self.flats, epochs, strict=True
        ):
            (group,) = optimizer.param_groups
            key = (epoch.rate, group["weight_decay"])
            constants = {**group, "lr": epoch.rate}
            _, *members = found.setdefault(key, (constants, [], [], []))
            state = optimizer.state[flat.vector]
            for part, of_member in zip(
                members, (flat.vector.detach(), flat.vector.grad, state), strict=True
            ):
                part.append(of_member)
        return list(found.values())

    def _batches(
        self, epochs: Sequence[Epoch]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, list[int]]]:
        """Yield x (n_streams, n_rows, n_inputs), targets, shares and numbers of rows.

        Targets and shares are those of every network's rows, one after another. Where a
        stream has fewer rows than another, rows of weight zero are added.
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
            n_rows = [len(x) for x, _ in batches]
            x = _stacked([x for x, _ in batches])
            targets = _stacked([targets for _, (targets, _) in batches])
            shares = _stacked([weights / len(weights) for _, (_, weights) in batches])
            yield (
                x,
                targets.repeat_interleave(n_per_stream, dim=0).flatten(0, 1),
                shares.repeat_interleave(n_per_stream, dim=0).flatten(0, 1),
                n_rows,
            )

    @torch.no_grad()
    def _backpropagate(self, x: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        """Write the gradients of all networks; return their losses, (n_networks,)."""
        apply_, backward_ = self.activation.apply_, self.activation.backward_
        assert backward_ is not None
        if not self.others:
            # Without a hidden layer.
            outputs = self.first.shared_product(x).mT + self.first.bias.unsqueeze(1)
            losses, gradient = self._differentiate(outputs, targets, shares)
            self.first.shared_gradients(x, gradient.mT)
            return losses
        # Units come before rows, because the first product is that of all networks.
        inputs = self.first.shared_product(x).add_(self.first.bias.unsqueeze(2))
        activations = [apply_(inputs)]
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
    """The parameters of a layer of every network, and their gradients.

    Parameters
    ----------
    weight : pair of tensors of shape (n_networks, n_outputs, n_inputs)
        Weights and their gradients.
    bias : pair of tensors of shape (n_networks, n_outputs), default=None
        Biases and their gradients.
    """

    def __init__(self, weight: list[Tensor], bias: list[Tensor] | None = None) -> None:
        self.weight, self.weight_gradient = weight
        if bias is not None:
            self.bias, self.bias_gradient = bias

    def shared_product(self, x: Tensor) -> Tensor:
        """Multiply rows that several networks read.

        Parameters
        ----------
        x : tensor of shape (n_streams, n_rows, n_inputs)
            Rows.

        Returns
        -------
        outputs : tensor of shape (n_networks, n_outputs, n_rows)
            The products, without biases.
        """
        n_networks, n_outputs, n_inputs = self.weight.shape
        wide = self.weight.reshape(len(x), -1, n_inputs)
        return torch.bmm(wide, x.mT).view(n_networks, n_outputs, x.shape[1])

    def shared_gradients(self, x: Tensor, back: Tensor) -> None:
        """Write the gradients for ``back`` (n_networks, n_outputs, n_rows)."""
        wide = back.reshape(len(x), -1, x.shape[1])
        product = torch.bmm(wide, x)
        self.weight_gradient.copy_(product.view(self.weight.shape))
        self._sum(back)

    def gradients(self, activation: Tensor, back: Tensor) -> None:
        """Write the gradients where every network has inputs of its own.

        Parameters
        ----------
        activation : tensor of shape (n_networks, n_inputs, n_rows)
            Inputs.
        back : tensor of shape (n_networks, n_outputs, n_rows)
            Gradient with respect to the outputs.
        """
        torch.bmm(back, activation.mT, out=self.weight_gradient)
        self._sum(back)

    def _sum(self, back: Tensor) -> None:
        if hasattr(self, "bias"):
            torch.sum(back, 2, out=self.bias_gradient)


def _flat(trainer: Trainer) -> FlatParameters:
    flat = trainer.net.flat_
    assert flat is not None
    return flat


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack tensors, the shorter ones filled up with zeros."""
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    longest = max(map(len, parts))
    if all(len(part) == longest for part in parts):
        return torch.stack(parts)
    out = parts[0].new_zeros(len(parts), longest, *parts[0].shape[1:])
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out
