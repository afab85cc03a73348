"""The network: a dense parent or what it was expanded to."""

import math
from itertools import pairwise

import torch
from torch import nn

from sklearn_fpe.nn._layers import BlockLinear, DenseLinear
from sklearn_fpe.nn._pickling import PickledAsArrays

ACTIVATIONS = {
    "identity": (nn.Identity(), nn.Identity(), None),
    "logistic": (torch.sigmoid, torch.sigmoid_, lambda a: a.addcmul_(a, a, value=-1)),
    "tanh": (torch.tanh, torch.tanh_, lambda a: a.square_().neg_().add_(1)),
    "relu": (torch.relu, torch.relu_, torch.Tensor.sign_),
}
"""The activation functions, by the names that scikit-learn gives them.

Each is followed by the one that works in place, for where its input has no further use,
and by what turns activations into derivatives, in place; None: they are all one.
"""


class MLP(PickledAsArrays, nn.Module):
    """Multi-layer perceptron over dense or partitioned layers.

    Parameters
    ----------
    layers : list of DenseLinear, MaskedLinear or BlockLinear
        The affine maps, hidden layers first, the output layer last.
    activation : {"identity", "logistic", "tanh", "relu"}, default="relu"
        Activation of the hidden layers. The output layer has none.
    parents : list of int tensors, default=None
        The parent neuron of every unit of each hidden layer; None: the units are the
        parents.

    Attributes
    ----------
    hidden : list of modules
        The hidden layers' affine maps.
    center : tensor of shape (n_inputs,) or None
        Vector that is subtracted from the input first, see :meth:`fold_input`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_fpe.nn import MLP
    >>> network = MLP.dense([4, 3, 2], generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 4)).shape, network.n_nonzero
    (torch.Size([5, 2]), 23)
    """

    def __init__(self, layers, activation="relu", parents=None):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        if parents is None:
            parents = [torch.arange(layer.out_features) for layer in layers[:-1]]
        for level, parent in enumerate(parents):
            self.register_buffer(f"parents_{level}", parent)
        self.register_buffer("center", None)

    @classmethod
    def dense(cls, widths, activation="relu", generator=None):
        """Make a dense network with freshly drawn weights.

        Weights are uniform in +-sqrt(g / (fan_in + fan_out)), with g = 2 for
        ``"logistic"`` and 6 otherwise (Glorot and Bengio, 2010); biases are zero.

        Parameters
        ----------
        widths : sequence of int
            Inputs, hidden widths, outputs.
        activation : str, default="relu"
            See :class:`MLP`.
        generator : torch.Generator, default=None
            Source of randomness. None: fresh, without moving the global generator.
        """
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        layers = []
        gain = 2.0 if activation == "logistic" else 6.0
        for n_in, n_out in pairwise(widths):
            # skip_init: the default initialisation would move the global generator.
            layer = nn.utils.skip_init(DenseLinear, n_in, n_out, dtype=torch.float32)
            bound = math.sqrt(gain / (n_in + n_out))
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
            layers.append(layer)
        return cls(layers, activation)

    @property
    def hidden(self):
        """The hidden layers' affine maps."""
        return list(self.layers[:-1])

    @property
    def parents(self):
        """The parent neuron of every unit, an int tensor per hidden layer."""
        return [
            getattr(self, f"parents_{level}") for level in range(len(self.layers) - 1)
        ]

    @property
    def n_nonzero(self):
        """Kept positions of all layers, biases included."""
        return sum(layer.n_nonzero for layer in self.layers)

    @property
    def gathers(self):
        """Whether it saves time to :meth:`gather` rows that are used again and again.

        It does where the first layer reads columns in another order, or where rows laid
        out spare it the mask in training.
        """
        first = self.layers[0]
        is_block = isinstance(first, BlockLinear)
        return is_block and (first.gathers or (first.dense and first.mask is not None))

    def gather(self, x, in_place=False):
        """Lay x (n_rows, n_inputs) out as the first layer, of blocks, reads it.

        With ``in_place=True``, x itself may be what is returned.
        """
        return self.layers[0].gather(self.centred(x), in_place)

    def transform(self, x, gathered=False):
        """Map x (n_rows, n_inputs) to the activations of the last hidden layer.

        With ``gathered=True``, x is what :meth:`gather` returns.
        """
        function, in_place, _ = ACTIVATIONS[self.activation]
        activate = function if torch.is_grad_enabled() else in_place
        x = x if gathered else self.centred(x)
        *hidden, _ = self.layers
        for level, layer in enumerate(hidden):
            first = gathered and level == 0
            x = activate(layer(x, gathered=True) if first else layer(x))
        return x

    def forward(self, x, gathered=False, out=None):
        """Map x (n_rows, n_inputs) to outputs (n_rows, n_outputs), without a link.

        They are written into `out`, if it is given; only without recording gradients.
        """
        *_, last = self.layers
        x = self.transform(x, gathered)
        return last(x) if out is None else last(x, out=out)

    def centred(self, x):
        """Subtract :attr:`center` from x (n_rows, n_inputs), if there is one."""
        return x if self.center is None else x - self.center.to(x.dtype)

    @torch.no_grad()
    def fold_input(self, mean, scale, max_offset=1e3):
        """Make the network act on x where it acted on ``(x - mean) / scale``.

        Folding is exact up to rounding. Where ``|mean| / scale`` is above
        `max_offset` it would lose the signal of the column in single precision; there
        the mean stays a fixed vector, :attr:`center`, that is subtracted first.

        Parameters
        ----------
        mean, scale : double tensors of shape (n_inputs,)
            Location and positive scale of the input columns.
        max_offset : float, default=1e3
            Largest offset, in units of the scale, that is folded.
        """
        if self.center is not None:
            # (x - mean) / scale - center = (x - (mean + scale * center)) / scale
            mean = mean + scale * self.center.double()
            self.center = None
        far = mean.abs() > max_offset * scale
        if far.any():
            center = torch.where(far, mean, torch.zeros_like(mean))
            self.center = center.to(self.layers[0].weight.dtype)
            # What rounding the centre left over is folded.
            mean = mean - self.center.double()
        self.layers[0].fold_input(1.0 / scale, mean)

    @torch.no_grad()
    def unfold_input(self, mean, scale):
        """Make the network act on ``(x - mean) / scale`` where it acted on x.

        The inverse of :meth:`fold_input` for the same arguments; for others it
        expresses the same function in other coordinates.
        """
        if self.center is not None:
            mean = mean - self.center.double()
            self.center = None
        self.layers[0].fold_input(scale, -mean / scale)

    @torch.no_grad()
    def change_input_scale(self, mean, scale, new_mean, new_scale):
        """Make the network act on ``(x - new_mean) / new_scale``, for any x.

        It acted on ``(x - mean) / scale``; as a function of x it stays the same.
        """
        self.layers[0].fold_input(new_scale / scale, (mean - new_mean) / new_scale)

    @torch.no_grad()
    def change_output_scale(self, mean, scale, new_mean, new_scale):
        """Keep ``outputs * scale + mean`` for another `new_mean` and `new_scale`."""
        last, ratio = self.layers[-1], scale / new_scale
        last.weight.copy_(last.weight.double() * ratio.unsqueeze(1))
        last.bias.copy_(last.bias.double() * ratio + (mean - new_mean) / new_scale)
