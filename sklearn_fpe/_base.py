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
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory

from sklearn_fpe import _training, _validation
from sklearn_fpe._data import Moments, Scaler, View, chunks, make_rows
from sklearn_fpe._phases import Phases
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import MLP, check_expansion
from sklearn_fpe.nn._expand import expand_to, warn_expansion
from sklearn_fpe.nn._mlp import ACTIVATIONS
from sklearn_fpe.nn._partition import SPLITS
from sklearn_fpe.nn._prune import PRUNES

PREDICT_BYTES = 2**23
"""Bytes, as float64, of the input rows that are predicted at a time."""


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
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "skorch_callbacks": [list, None],
        "memory": [str, HasMethods("cache"), None],
        "random_state": ["random_state"],
        "verbose": ["boolean", Interval(Integral, 0, None, closed="left")],
    }

    @abstractmethod
    def _make_targets(self):
        """Return the targets this estimator learns, see ``_targets``."""

    # ----------------------------------------------------------------------------------
    # Fitting
    # ----------------------------------------------------------------------------------

    def _fit(self, X, y, sample_weight, X_val, y_val, sample_weight_val):
        resume = self.warm_start and self.__sklearn_is_fitted__()
        if not resume:
            self._forget()
        settings = self._settings()
        self._check_validation(X_val, y_val)
        X, y, weights = self._check_data(X, y, sample_weight, learn=not resume)
        if resume:
            self._check_unchanged()
        else:
            self._plan(X.shape[1])
            self._start_random_streams()
        val = None
        if X_val is not None:
            val = self._check_data(
                X_val, y_val, sample_weight_val, learn=False, suffix="_val"
            )
        train, val = self._split_validation(X, y, weights, val)
        n_warmup = 0 if resume else settings["n_warmup"]
        context = self._init_callback_context(max_subtasks=2)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        with _training.readable_memory_errors(settings["device"], self.batch_size):
            self._run(train, val, settings, n_warmup, resume, context, (X, y))
        context.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes=dict
        )
        return self

    def _check_data(self, X, y, sample_weight, *, learn, classes=None, suffix=""):
        """Check arrays; return X, y and the weights of the rows."""
        if learn:
            self._targets = self._make_targets()
        X, y = _validation.check_X_y(
            self, X, y, reset=learn, y_numeric=self._targets.y_numeric
        )
        weights = _validation.check_weights(sample_weight, X, "sample_weight" + suffix)
        y = self._targets.check(y, weights, learn=learn, classes=classes)
        return X, y, self._targets.row_weights(y, weights)

    def _settings(self):
        """Resolve the parameters that data have no say in."""
        _validation.resolve_hidden(self.hidden_layer_sizes)
        _validation.resolve_expansion(self.expansion)
        if self.memory is not None:
            check_memory(self.memory)
            if not isinstance(self.random_state, Integral):
                raise ValueError(
                    f"memory needs an integer random_state, so that a cached warm-up "
                    f"is the one that would be run, got {self.random_state!r}."
                )
        return {
            "device": _validation.resolve_device(self.device),
            "n_warmup": _validation.resolve_warmup(self.warmup, self.max_iter),
        }

    def _forget(self):
        """Drop what an earlier fit learned, so that a failed one leaves nothing."""
        for name in [n for n in vars(self) if n.endswith("_") and n[0] != "_"]:
            if not name.startswith("__"):
                delattr(self, name)
        for name in ("_net", "_moments", "_scaler", "_seeds", "_sizes", "_targets"):
            self.__dict__.pop(name, None)

    def _plan(self, n_features):
        """Settle shape, expansion and budget, or say why it cannot be."""
        hidden = _validation.resolve_hidden(self.hidden_layer_sizes)
        widths = [n_features, *hidden, self._targets.n_columns]
        expansion = _validation.resolve_expansion(self.expansion)
        if self.split == "groups" and self.feature_groups is None:
            raise ValueError(
                'split="groups" needs feature_groups, one label per column of X, got '
                "None."
            )
        if self.split == "groups" and np.shape(self.feature_groups) != (n_features,):
            raise ValueError(
                f"feature_groups must have one label per column of X, shape "
                f"({n_features},), got shape {np.shape(self.feature_groups)}."
            )
        self._sizes, self.budget_ = check_expansion(
            widths,
            expansion,
            self.split,
            prune=self.prune,
            budget=self.budget,
            groups=self.feature_groups,
        )
        warn_expansion(self._sizes, expansion, self.budget_, stacklevel=5)

    def _check_unchanged(self):
        """Check that a warm start continues the network there is."""
        hidden = _validation.resolve_hidden(self.hidden_layer_sizes)
        if (
            hidden != self._sizes.hidden
            or self._targets.n_columns != self._sizes.n_outputs
        ):
            raise ValueError(
                f"warm_start continues a network of hidden_layer_sizes="
                f"{self._sizes.hidden} with {self._sizes.n_outputs} outputs, but now "
                f"hidden_layer_sizes={hidden} and y asks for {self._targets.n_columns} "
                f"outputs. Use warm_start=False to start anew."
            )

    def _start_random_streams(self):
        """Draw independent seeds, so that one use of randomness moves no other."""
        if self.random_state is None:
            entropy = None  # fresh, without moving NumPy's global generator
        else:
            entropy = int(check_random_state(self.random_state).randint(2**31 - 1))
        names = ("init", "split", "shuffle", "validation")
        streams = np.random.SeedSequence(entropy).generate_state(len(names))
        self._seeds = {n: int(s) for n, s in zip(names, streams, strict=True)}

    def _check_validation(self, X_val, y_val):
        if (X_val is None) != (y_val is None):
            given, missing = ("X_val", "y_val")[:: 1 if y_val is None else -1]
            raise ValueError(f"{given} is given, but {missing} is not.")
        if X_val is not None and not self.early_stopping:
            raise ValueError(
                "X_val and y_val are given, but early_stopping=False would not use "
                "them: set early_stopping=True."
            )

    def _split_validation(self, X, y, weights, val):
        """Return (view, y, weights) to train on and to validate on, or None."""
        rows = np.flatnonzero(weights)
        if not self.early_stopping:
            return _subset(X, y, weights, rows), None
        if val is not None:
            return _subset(X, y, weights, rows), (View(val[0]), *val[1:])
        try:
            train, held = train_test_split(
                rows,
                test_size=self.validation_fraction,
                random_state=self._seeds["validation"],
                stratify=self._targets.strata(y[rows]),
            )
        except ValueError as error:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(rows)} rows "
                f"cannot be held out for early_stopping: {error}"
            ) from error
        return (
            _subset(X, y, weights, np.sort(train)),
            _subset(X, y, weights, np.sort(held)),
        )

    def _run(self, train, val, settings, n_warmup, resume, context, data):
        view, y, weights = train
        device = settings["device"]
        if not resume:
            self._learn_scaler(view, weights)
            self._targets.learn_scale(y, weights)
            self._begin_history()
        rows = self._rows(view, y, weights, device)
        held = None if val is None else (self._rows(*val, device), *val[1:])
        network = self._unfolded(device) if resume else self._new_network(device)
        net = self._make_net(network, device)
        phases = Phases(self, net, rows, held, context, data)
        n_fine_tune = self.max_iter - n_warmup
        try:
            if not resume:
                phases.warm_up(n_warmup, train)
                network = self._expand(network)
            net.swap(network)
            rows.gather(network.columns)
            if held is not None:
                held[0].gather(network.columns)
            phases.fine_tune(n_warmup, n_fine_tune)
        finally:
            # Nothing of the data outlives the fit.
            net.module_ = network
        self._keep(network, net)

    def _learn_scaler(self, view, weights):
        if self.standardize:
            self._moments = Moments(view.shape[1]).update(view, weights)
            self._scaler = self._moments.scaler()
        else:
            self._scaler = Scaler.identity(view.shape[1])

    def _begin_history(self):
        self.phase_ = "warm-up"
        self.n_iter_ = 0
        self.loss_curve_ = []
        if self.early_stopping:
            self.validation_scores_ = []

    def _rows(self, view, y, weights, device):
        targets = self._targets.encode(y)
        # Weights of mean 1: the learning rate does not depend on their scale.
        return make_rows(view, targets, weights / weights.mean(), self._scaler, device)

    def _new_network(self, device):
        sizes = self._sizes
        generator = torch.Generator().manual_seed(self._seeds["init"])
        network = MLP.dense(
            [sizes.n_inputs, *sizes.hidden, sizes.n_outputs], self.activation, generator
        )
        if self.standardize:
            # A constant column is zero: no gradient, so no use for its weights. As
            # zeros they are the first to be pruned.
            constant = torch.from_numpy(self._moments.m2 == 0)
            with torch.no_grad():
                network.layers[0].weight[:, constant] = 0.0
        return network.to(device)

    def _make_net(self, network, device):
        return _training.make_net(
            network,
            self._targets.loss,
            lr=self.learning_rate_init,
            weight_decay=self.weight_decay,
            device=device,
            callbacks=copy.deepcopy(self.skorch_callbacks),
            bfloat16=self.precision == "bfloat16",
        )

    def _expand(self, network):
        expanded = expand_to(
            network,
            self._sizes,
            self.budget_,
            self.split,
            prune=self.prune,
            groups=self.feature_groups,
            rng=np.random.default_rng(self._seeds["split"]),
        )
        self.expansion_ = self._sizes.expansion
        self.phase_ = "fine-tune"
        return expanded

    def _keep(self, network, net):
        """Fold the standardisation in; what is left predicts from raw input."""
        device = network.layers[0].weight.device
        network.fold_input(*self._scaler.tensors(device))
        self.module_ = network.eval()
        self._net = net
        self.n_layers_ = len(network.layers) + 1
        self.n_outputs_ = self._targets.n_columns
        self.best_loss_ = min(self.loss_curve_)
        if not hasattr(self, "expansion_"):
            self.expansion_ = (1,) * len(network.hidden)

    def _unfolded(self, device):
        """Return the kept network as one of standardised input again."""
        network = self.module_.to(device)
        network.unfold_input(*self._scaler.tensors(device))
        return network

    # ----------------------------------------------------------------------------------
    # Incremental fitting
    # ----------------------------------------------------------------------------------

    def _partial_fit(self, X, y, sample_weight, classes=None):
        first = not self.__sklearn_is_fitted__()
        settings = self._settings()
        X, y, weights = self._check_data(
            X, y, sample_weight, learn=first, classes=classes
        )
        view, y, weights = _subset(X, y, weights, np.flatnonzero(weights))
        if first:
            self._plan(X.shape[1])
            self._start_random_streams()
            self._begin_history()
            self._targets.learn_scale(y, weights)
        device = settings["device"]
        if self.phase_ == "warm-up":
            if not self.standardize:
                self._scaler = Scaler.identity(view.shape[1])
            else:
                if first:
                    self._moments = Moments(view.shape[1])
                self._moments.update(view, weights)
                self._scaler = self._moments.scaler()
        # Unfolding with the new statistics expresses the same function in them.
        network = self._new_network(device) if first else self._unfolded(device)
        try:
            rows = self._rows(view, y, weights, device)
            net = getattr(self, "_net", None)
            if net is None or net.module_ is not network:
                net = self._make_net(network, device)
            if self.phase_ == "warm-up" and self.n_iter_ >= settings["n_warmup"]:
                network = self._expand(network)
                net.swap(network)
            rows.gather(network.columns)
            network.train()
            with _training.readable_memory_errors(device, self.batch_size):
                loss = _training.run_epoch(
                    net,
                    rows,
                    batch_size=_validation.resolve_batch_size(
                        self.batch_size, len(rows)
                    ),
                    seed=(self._seeds["shuffle"], self.n_iter_),
                    lr=self.learning_rate_init,
                )
            self.loss_curve_.append(loss)
            self.n_iter_ += 1
        finally:
            if self.loss_curve_:
                self._keep(network, net)
        return self

    # ----------------------------------------------------------------------------------
    # Using what was fitted
    # ----------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def _outputs(self, X, transform=False):
        """Run the network over checked rows, in pieces; return a float32 ndarray."""
        network = self.module_
        device = network.layers[0].weight.device
        function = network.transform if transform else network
        view = View(X)
        parts = []
        with torch.inference_mode():
            for rows in chunks(*view.shape, PREDICT_BYTES):
                part = np.asarray(view.read(rows), dtype=np.float32, order="C")
                if not part.flags.writeable:
                    part = part.copy()
                parts.append(function(torch.from_numpy(part).to(device)).cpu())
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy()

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
        """Hold tensors on the CPU and no optimizer."""
        state = super().__getstate__().copy()
        state.pop("_net", None)
        if "module_" in state:
            state["module_"] = copy.deepcopy(state["module_"]).to("cpu")
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


def _subset(X, y, weights, rows):
    """Select rows, without a copy of X."""
    index = None if len(rows) == len(weights) else rows
    return View(X, index), y[rows], weights[rows]


def _csr(values, kept):
    """Make a CSR array that stores every kept position, zeros included."""
    row, column = np.nonzero(kept)
    return sparse.csr_array((values[kept], (row, column)), shape=values.shape)
