"""What the estimators share: validate, warm up, expand, fine-tune, keep."""

import copy
import warnings
from abc import abstractmethod
from numbers import Integral, Real

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
)
from sklearn.utils.validation import check_is_fitted

from sklearn_fpe import _training, _validation
from sklearn_fpe._callbacks import Task
from sklearn_fpe._data import View, as_tensor, chunks
from sklearn_fpe._phases import Phases
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import check_expansion
from sklearn_fpe.nn._expand import warn_expansion
from sklearn_fpe.nn._mlp import ACTIVATIONS
from sklearn_fpe.nn._partition import SPLITS
from sklearn_fpe.nn._prune import PRUNES

CACHE_BYTES = 2**22
"""Bytes of rows, activations included, that are predicted at a time.

They are to stay near the core between one layer and the next.
"""


FIXED = (
    *("hidden_layer_sizes", "expansion", "split", "feature_groups", "prune", "budget"),
    *("activation", "standardize", "class_weight", "task"),
)
"""The parameters that stay as they are while training goes on."""

LEARNED = (
    *("_targets", "_sizes", "_seeds", "_made_with", "_moments", "_scaler", "_phases"),
)
"""Private names of what was learned, beside the public ones that end in "_"."""


class BaseFPE(CallbackSupportMixin, BaseEstimator):
    """Base of the estimators; a leaf says what targets and outputs are.

    A leaf spells out the parameters, says what its targets are, and makes predictions
    of :meth:`_outputs`.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "expansion": ["array-like", Interval(Integral, 1, None, closed="left")],
        "split": [StrOptions(set(SPLITS)), callable],
        "feature_groups": ["array-like", None],
        "prune": [StrOptions(set(PRUNES))],
        "warmup": [
            Interval(Integral, 0, None, closed="left"),
            Interval(Real, 0, 1, closed="both"),
        ],
        "budget": [Interval(Integral, 1, None, closed="left"), None],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "learning_rate": [StrOptions({"constant", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "skorch_callbacks": [list, None],
        "memory": [str, HasMethods("cache"), None],
        "random_state": ["random_state"],
        "verbose": ["boolean", Interval(Integral, 0, None, closed="left")],
    }

    # The HTML representation documents parameters only beside a link; the paper is what
    # has an address.
    _doc_link_module = "sklearn_fpe"
    _doc_link_template = "https://arxiv.org/abs/2510.04500"

    @abstractmethod
    def _make_targets(self):
        """Return the targets this estimator learns, see ``_targets``."""

    # ----------------------------------------------------------------------------------
    # Fitting
    # ----------------------------------------------------------------------------------

    def _fit(self, X, y, sample_weight, X_val, y_val, sample_weight_val):
        device, n_warmup = self._settings()
        _validation.check_schedule(n_warmup, self.max_iter)
        self._check_validation(X_val, y_val)
        resume = self.warm_start and self.__sklearn_is_fitted__()
        self._prepare(resume)
        data = self._check_data(X, y, sample_weight, learn=not resume)
        if not resume:
            self._plan(data[0].shape[1])
        val = None
        if X_val is not None:
            val = self._check_data(X_val, y_val, sample_weight_val, suffix="_val")
        train, held = self._split_validation(data, val)
        with _training.training(device, self.batch_size):
            phases = Phases(self, device)
            if not resume:
                phases.learn_scale(*train)
            n_phases = 2 if phases.phase == "warm-up" else 1
            task = Task.fit(self, train, sample_weight, n_phases)
            phases.fit(train, held, n_warmup, task)
            self._keep(phases)
        task.end(dict)
        return self

    def _partial_fit(self, X, y, sample_weight, classes=None):
        device, n_warmup = self._settings()
        self._check_partial()
        resume = self.__sklearn_is_fitted__()
        self._prepare(resume)
        data = self._check_data(X, y, sample_weight, learn=not resume, classes=classes)
        view, y, weights = _used_rows(*data)
        if not resume:
            self._plan(view.shape[1])
        # Taken off: if training fails, the next call starts from what was kept.
        phases = vars(self).pop("_phases", None)
        with _training.training(device, self.batch_size):
            if phases is None or not phases.made_for(self, device):
                phases = Phases(self, device)
            if phases.phase == "warm-up":
                phases.learn_scale(view, y, weights)
                if len(phases.loss_curve) >= n_warmup:
                    phases.split()
            phases.partial_fit(view, y, weights)
            self._keep(phases)
        self._phases = phases
        return self

    def _settings(self):
        """Check the parameters that data have no say in; return device and warm-up."""
        _validation.resolve_hidden(self.hidden_layer_sizes)
        _validation.resolve_expansion(self.expansion)
        if self.memory is not None:
            _validation.check_cache(self)
        _validation.check_skorch_callbacks(self.skorch_callbacks)
        return (
            _validation.resolve_device(self.device),
            _validation.resolve_warmup(self.warmup, self.max_iter),
        )

    def _check_validation(self, X_val, y_val):
        if (X_val is None) != (y_val is None):
            given, missing = ("X_val", "y_val")[:: 1 if y_val is None else -1]
            raise ValueError(f"{given} is given, but {missing} is not.")
        if X_val is not None and not self.early_stopping:
            raise ValueError(
                "X_val and y_val are given, but early_stopping=False would not use "
                "them: set early_stopping=True."
            )

    def _check_partial(self):
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: which epoch is the "
                "last one is the caller's to say."
            )
        if getattr(self, "class_weight", None) == "balanced":
            raise ValueError(
                'partial_fit does not support class_weight="balanced": the class '
                "frequencies of all rows are not known. Pass a dict."
            )

    def _prepare(self, resume):
        """Forget an earlier fit, or check that it can be gone on with."""
        if resume:
            _validation.check_unchanged(vars(self).get("_made_with", {}), self)
            return
        for name in list(vars(self)):
            if name in LEARNED or (name.endswith("_") and not name.startswith("_")):
                delattr(self, name)

    def _check_data(self, X, y, sample_weight, *, learn=False, classes=None, suffix=""):
        """Check arrays; return X, y and the weights of the rows."""
        if learn:
            self._targets = self._make_targets()
        X, y = _validation.check_X_y(
            self, X, y, reset=learn, suffix=suffix, y_numeric=self._targets.y_numeric
        )
        weights = _validation.check_weights(sample_weight, X, "sample_weight" + suffix)
        y = self._targets.check(
            y, weights, learn=learn, classes=classes, name="y" + suffix
        )
        return X, y, self._targets.row_weights(y, weights)

    def _plan(self, n_features):
        """Settle shape, expansion, budget and seeds, or say why it cannot be."""
        hidden = _validation.resolve_hidden(self.hidden_layer_sizes)
        expansion = _validation.resolve_expansion(self.expansion)
        if self.split == "groups":
            _validation.check_groups(self.feature_groups, n_features)
        self._sizes, self.budget_ = check_expansion(
            [n_features, *hidden, self._targets.n_columns],
            expansion,
            self.split,
            prune=self.prune,
            budget=self.budget,
            groups=self.feature_groups,
        )
        level = 1 + _validation.stack_level()
        warn_expansion(self._sizes, expansion, self.budget_, stacklevel=level)
        values = {name: getattr(self, name) for name in FIXED if hasattr(self, name)}
        self._made_with = {
            # A function, and so a copy of it, may be equal to nothing but itself.
            name: value if callable(value) else copy.deepcopy(value)
            for name, value in values.items()
        }
        self._seeds = self._random_seeds()

    def _random_seeds(self):
        """Draw independent seeds, so that one use of randomness moves no other."""
        if self.random_state is None:
            entropy = None  # fresh, without moving NumPy's global generator
        else:
            entropy = int(check_random_state(self.random_state).randint(2**31 - 1))
        names = ("init", "split", "shuffle", "validation")
        streams = np.random.SeedSequence(entropy).generate_state(len(names))
        return {name: int(seed) for name, seed in zip(names, streams, strict=True)}

    def _split_validation(self, data, val):
        """Return (view, y, weights) to train on, and to validate on or None."""
        train = _used_rows(*data)
        if not self.early_stopping:
            return train, None
        held = None if val is None else _used_rows(*val)
        if held is None:
            rows = np.flatnonzero(data[2])
            try:
                train, held = train_test_split(
                    rows,
                    test_size=self.validation_fraction,
                    random_state=self._seeds["validation"],
                    stratify=self._targets.strata(data[1][rows]),
                )
            except ValueError as error:
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} of {len(rows)} "
                    f"rows cannot be held out for early_stopping: {error}"
                ) from error
            train, held = (_rows(*data, np.sort(part)) for part in (train, held))
        if len(held[1]) < self._targets.rows_to_score:
            raise ValueError(
                f"early_stopping needs at least {self._targets.rows_to_score} rows to "
                f"validate on, got {len(held[1])}: raise validation_fraction or give "
                f"X_val and y_val."
            )
        return train, held

    def _keep(self, phases):
        attributes = phases.attributes()
        for name in ("validation_scores_", "best_validation_score_", "_phases"):
            vars(self).pop(name, None)
        vars(self).update(attributes)

    # ----------------------------------------------------------------------------------
    # Using what was fitted
    # ----------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def _outputs(self, X, transform=False):
        """Check X and run the network over it in pieces; return an ndarray.

        It is double if X is of higher precision than float32, else float32.
        """
        if not self.__sklearn_is_fitted__():
            check_is_fitted(self)  # raises; it takes long to find that all is well
        X = _validation.check_X(self, X, reset=False, values=False)
        dtype = _validation.predict_dtype(X)
        network, layers = self.module_, list(self.module_.layers)
        device = layers[0].weight.device
        view = View(X)
        n_columns = layers[-1].in_features if transform else layers[-1].out_features
        outputs = torch.empty(len(view), n_columns, dtype=dtype, device="cpu")
        width = sum(layer.in_features for layer in layers)
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for rows in chunks(len(view), width, CACHE_BYTES, dtype.itemsize):
                part = view.read(rows)
                if not isinstance(part, torch.Tensor):
                    _validation.check_values(self, X, part)
                x = as_tensor(part, dtype).to(device)
                if transform:
                    outputs[rows] = network.transform(x)
                elif device.type == "cpu":
                    network(x, out=outputs[rows])
                else:
                    outputs[rows] = network(x)
        return outputs.numpy()

    @property
    def n_nonzero_(self):
        """Kept parameters of the fitted network, biases included."""
        check_is_fitted(self)
        return self.module_.n_nonzero

    @property
    def coefs_(self):
        """Weights, a SciPy CSR array of shape (n_inputs, n_units) per layer."""
        check_is_fitted(self)
        layers = [
            (layer.dense_weight().cpu().numpy(), layer.kept().cpu().numpy())
            for layer in self.module_.layers
        ]
        weight, kept = layers[-1]
        scale, _ = self._targets.output_affine()
        layers[-1] = (weight * scale[:, None], kept)
        return [_csr(weight.T, kept.T) for weight, kept in layers]

    @property
    def intercepts_(self):
        """Biases, an ndarray of shape (n_units,) per layer."""
        check_is_fitted(self)
        biases = [layer.unit_bias().cpu().numpy() for layer in self.module_.layers]
        if self.module_.center is not None:
            center = self.module_.center.double().cpu()
            weight = self.module_.layers[0].dense_weight().double().cpu()
            biases[0] = biases[0] - (weight @ center).numpy()
        scale, shift = self._targets.output_affine()
        biases[-1] = biases[-1] * scale + shift
        return biases

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self):
        """Hold no optimizer; the network pickles its tensors as arrays."""
        state = super().__getstate__().copy()
        state.pop("_phases", None)
        if "module_" in state:
            state["_fpe_version"] = __version__
        return state

    def __setstate__(self, state):
        """Put the network on the device that `device` means here."""
        version = state.pop("_fpe_version", None)
        super().__setstate__(state)
        if "module_" not in state:
            return
        if version != __version__:
            warnings.warn(
                f"This {type(self).__name__} was saved by sklearn_fpe {version}; this "
                f"is {__version__}. Fit it anew if it misbehaves.",
                UserWarning,
                stacklevel=2,
            )
        try:
            device = _validation.resolve_device(self.device)
        except ValueError as error:
            warnings.warn(f"{error} Using the CPU.", UserWarning, stacklevel=2)
            device = torch.device("cpu")
        self.module_.to(device)


def _used_rows(X, y, weights):
    """Leave out the rows of weight 0."""
    return _rows(X, y, weights, np.flatnonzero(weights))


def _rows(X, y, weights, rows):
    """Select rows, without a copy of X."""
    index = None if len(rows) == len(weights) else rows
    return View(X, index), y[rows], weights[rows]


def _csr(values, kept):
    """Make a CSR array that stores every kept position, zeros included."""
    row, column = np.nonzero(kept)
    return sparse.csr_array((values[kept], (row, column)), shape=values.shape)
