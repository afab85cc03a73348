"""What a fitted estimator knows: attributes, and the state that is pickled."""

from __future__ import annotations

import math
import warnings
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from sklearn_fpe._engine._recipe import Learned
from sklearn_fpe._estimators import _inputs, _parameters
from sklearn_fpe._estimators._predicting import Predicting
from sklearn_fpe._estimators._targets import targets_from_state
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import MLP, Ensemble

COLUMNS = ("n_features_in_", "feature_names_in_")
"""The names under which an estimator holds what it knows of the columns of X."""

FITTED = ("_learned", "_trainer", *COLUMNS)
"""The names under which an estimator holds what it has learned."""


class Fitted(Predicting):
    """Attributes and pickles of what an estimator has learned."""

    @property
    def learned_(self) -> Learned:
        """The whole fitted state as one frozen object."""
        if not self._is_fitted():
            check_is_fitted(self)
        return self._learned

    @property
    def module_(self) -> MLP | Ensemble:
        """The fitted network, or networks as one, acting on X as it is."""
        return self.learned_.predictor

    def _single(self, name: str) -> Learned:
        """Return what was learned, of which an attribute exists for one network."""
        learned = self.learned_
        if learned.others:
            raise AttributeError(
                f"{name} belongs to one network, and this {type(self).__name__} has "
                f"{len(learned.members)}: see {name} of each of its estimators_."
            )
        return learned

    @property
    def expansion_(self) -> tuple[int, ...]:
        """Children per parent neuron of each hidden layer."""
        return self.learned_.expansion

    @property
    def budget_(self) -> int:
        """Non-zero parameters allowed, biases included."""
        return sum(member.recipe.budget for member in self.learned_.members)

    @property
    def phase_(self) -> str:
        """``"warm-up"`` until the network is expanded, then ``"fine-tune"``."""
        return self.learned_.phase

    @property
    def n_nonzero_(self) -> int:
        """Kept parameters of the fitted network, biases included."""
        return sum(member.network.n_nonzero for member in self.learned_.members)

    @property
    def n_iter_(self) -> int:
        """Epochs of the last fit, and calls of ``partial_fit`` since."""
        return max(member.history.n_iter for member in self.learned_.members)

    @property
    def n_layers_(self) -> int:
        """Layers, input and output included."""
        return len(self.learned_.network.layers) + 1

    @property
    def n_outputs_(self) -> int:
        """Columns of the network's output."""
        return self.learned_.recipe.shape.n_outputs

    @property
    def loss_curve_(self) -> list[float]:
        """Mean training loss of every epoch."""
        curves = [member.history.losses for member in self.learned_.members]
        if len(curves) == 1:
            return list(curves[0])
        epochs = zip_longest(*curves)
        return [_mean([v for v in losses if v is not None]) for losses in epochs]

    @property
    def best_loss_(self) -> float:
        """Smallest value of `loss_curve_`."""
        return min(self.loss_curve_, default=math.inf)

    def _validated(self, name: str):
        history = self._single(name).history
        if history.best_iter is None:
            raise AttributeError(
                f"{name} exists after a fit with early_stopping=True only."
            )
        return history

    @property
    def validation_scores_(self) -> list[float]:
        """Score of the held-out rows after every epoch of the fine-tuning."""
        return list(self._validated("validation_scores_").validation_scores)

    @property
    def validation_loss_curve_(self) -> list[float]:
        """Mean loss of the held-out rows after every epoch of the fine-tuning."""
        return list(self._validated("validation_loss_curve_").validation_losses)

    @property
    def best_validation_score_(self) -> float:
        """Validation score of the weights that were kept."""
        return self._validated("best_validation_score_").best_score

    @property
    def best_iter_(self) -> int:
        """Epoch of the last fit whose weights were kept, counted from 1."""
        best = self._validated("best_iter_").best_iter
        assert best is not None
        return best

    @property
    def coefs_(self) -> list[sparse.csr_array]:
        """Weights, a SciPy CSR array of shape (n_inputs, n_units) per layer."""
        learned = self._single("coefs_")
        output, affine = learned.targets.output_affine(), learned.network.input_affine
        weights = [
            layer.dense_weight().cpu().numpy().T for layer in learned.network.layers
        ]
        masks = [layer.dense_mask().cpu().numpy().T for layer in learned.network.layers]
        if self._is_double(learned):
            weights = [weight.astype(np.float64) for weight in weights]
            weights[0] = weights[0] / affine.scale[:, None]
            weights[-1] = weights[-1] * output.scale
        return [_csr(w, mask) for w, mask in zip(weights, masks, strict=True)]

    @property
    def skip_coef_(self) -> sparse.csr_array:
        """Weights of the skip connection, a SciPy CSR array (n_inputs, n_outputs)."""
        learned = self._single("skip_coef_")
        skip = learned.network.skip
        if skip is None:
            raise AttributeError(
                f"skip_coef_ exists after a fit with skip_connection=True and hidden "
                f"layers only; this {type(self).__name__} has no skip connection."
            )
        weight = skip.dense_weight().cpu().numpy().T
        if self._is_double(learned):
            scale = learned.network.input_affine.scale[:, None]
            output = learned.targets.output_affine()
            weight = weight.astype(np.float64) / scale * output.scale
        return _csr(weight, skip.dense_mask().cpu().numpy().T)

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """Biases, an ndarray of shape (n_units,) per layer."""
        learned = self._single("intercepts_")
        network, affine = learned.network, learned.network.input_affine
        biases = [layer.dense_bias().cpu().numpy() for layer in network.layers]
        if self._is_double(learned):
            biases = [bias.astype(np.float64) for bias in biases]
            shift = affine.mean / affine.scale
            for layer, level in zip(network.input_maps, (0, -1), strict=False):
                weight = layer.dense_weight().double().cpu().numpy()
                biases[level] = biases[level] - weight @ shift
            biases[-1] = learned.targets.output_affine().undo(biases[-1])
        return biases

    @staticmethod
    def _is_double(learned: Learned) -> bool:
        """Tell whether coefficients are in float64, as location and scale are."""
        return learned.network.input_mean is not None or learned.targets.y_numeric

    def _accept(self, draft, learned: Learned, trainer: tuple | None = None) -> None:
        """Take over what was learned, in one assignment."""
        state = {k: v for k, v in vars(self).items() if k not in FITTED}
        state |= draft._as_fitted(learned)
        if trainer is not None:
            state["_trainer"] = trainer
        self.__dict__ = state

    def _as_fitted(self, learned: Learned) -> dict[str, Any]:
        """Return the attributes of an estimator that has learned this."""
        seen = {name: vars(self)[name] for name in COLUMNS if name in vars(self)}
        return {"_learned": learned, **seen}

    def _score_arguments(self, y, sample_weight):
        """Return targets and weights for scikit-learn's metrics, off any device."""
        numeric = self.learned_.targets.y_numeric
        y = _inputs.check_y(y, numeric=numeric)
        if sample_weight is not None:
            sample_weight = _inputs.weights_as_array(sample_weight)
        return y, sample_weight

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self):
        """Hold no optimizer, and what was learned as plain values and arrays."""
        state = super().__getstate__().copy()
        state.pop("_trainer", None)
        if "_learned" in state:
            if self._chooses_device():
                # To predict on the same kind of device, with the same bits.
                on_cpu = state["_learned"].network.device.type == "cpu"
                state["_on_accelerator"] = not on_cpu
            state["_learned"] = state["_learned"].to_state()
            state["_fpe_version"] = __version__
        return state

    def __setstate__(self, state):
        """Put the network on the device that `device` means here."""
        state = dict(state)
        version, learned = state.pop("_fpe_version", None), state.get("_learned")
        on_accelerator = state.pop("_on_accelerator", None)
        if isinstance(learned, dict):
            state["_learned"] = Learned.from_state(learned, targets_from_state, "it")
        super().__setstate__(state)
        if learned is None:
            return
        if version != __version__:
            warnings.warn(
                f"This {type(self).__name__} was saved by sklearn_fpe {version}; this "
                f"is {__version__}. Fit it anew if it misbehaves.",
                UserWarning,
                stacklevel=_parameters.stack_level(),
            )
        self.device = _parameters.usable_device(self.device)
        work = _parameters.LOADED_ROWS * self._learned.recipe.shape.n_parameters()
        if on_accelerator is not None and self._chooses_device():
            work = math.inf if on_accelerator else 0
        device = _parameters.resolve_device(self.device, work)
        for member in self._learned.members:
            member.network.to(device)

    def _chooses_device(self) -> bool:
        """Tell whether the parameter `device` leaves the choice to the library."""
        return isinstance(self.device, str) and self.device == "auto"


class Averaged(Fitted):
    """What an estimator has whose predictions several networks may share."""

    @property
    def estimators_(self) -> list:
        """The networks, each as a fitted estimator of its own."""
        found = []
        for learned in self.learned_.members:
            model = object.__new__(type(self))
            model.__dict__ = {**vars(self), "_learned": learned, "n_estimators": 1}
            vars(model).pop("_trainer", None)
            found.append(model)
        return found

    def hidden_activations(self, X):
        """Compute the activations of the last hidden layer.

        They are what an :class:`FPETransformer` of the same weights returns.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input.

        Returns
        -------
        activations : ndarray of float32 of shape (n_samples, n_units)
            One column per kept child of the last hidden layer.
        """
        return self._hidden(X)


def make_unfitted(kind: type, parameters: dict[str, Any]):
    """Make an estimator of parameters that ``fit`` would take, whatever the device.

    Raises ValueError or TypeError if there are others.
    """
    estimator = kind(**parameters)
    estimator._validate_params()
    _parameters.resolve_hidden(estimator.hidden_layer_sizes)
    _parameters.resolve_expansion(estimator.expansion)
    return estimator


def make_fitted(estimator, learned: Learned, version: str):
    """Let an estimator have learned what a version stored, as if it were unpickled."""
    estimator.n_features_in_ = learned.recipe.shape.n_inputs
    state = vars(estimator) | {"_learned": learned, "_fpe_version": version}
    estimator.__setstate__(state)
    return estimator


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _csr(values: np.ndarray, kept: np.ndarray) -> sparse.csr_array:
    """Make a CSR array that stores every kept position, zeros included."""
    row, column = np.nonzero(kept)
    return sparse.csr_array((values[kept], (row, column)), shape=values.shape)
