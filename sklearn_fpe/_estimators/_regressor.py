"""FPERegressor."""

from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils._param_validation import Interval

from sklearn_fpe._estimators._base import BaseFPE
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._fitted import Averaged
from sklearn_fpe._estimators._real_targets import RealTargets, r2


class FPERegressor(RegressorMixin, Averaged, BaseFPE):
    """Multi-layer perceptron regressor with Fixed Parameter Expansion.

    Fixed Parameter Expansion trains an MLP with hidden layers
    ``h = act(W x + b)`` in four steps: warm up the dense parent network, split every
    hidden neuron into `expansion` children among which its input edges are
    partitioned, prune back to the budget, fine-tune. The result has as many non-zero
    parameters as the parent, in more and less entangled neurons [1]_.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of int, default=(32,)
        Widths of the dense parent network's hidden layers. Each parent neuron is
        split into `expansion` children. ``()`` is a linear model, such as a linear
        probe of embeddings, which `budget` prunes: an integer `expansion`, `split`,
        `activation` and `skip_connection` have no effect on it.

    expansion : int or array-like of int, default=4
        Children per parent neuron, one number for all hidden layers or one for each. 1
        is the dense baseline under the same schedule. If the inputs or the budget do
        not allow it, the largest possible expansion is used, with a warning; see
        `expansion_`.

    split : {"auto", "learned", "random", "shared", "contiguous", "feature", "groups"} \
            or callable or sklearn_fpe.nn.SplitRule, default="auto"
        How the input edges of a parent are partitioned among its children.

        - ``"auto"``: ``"learned"`` if pruning is gradual, else ``"shared"``;
        - ``"learned"``: every child starts with all inputs of its parent, and gradual
          pruning decides which child keeps which input. The most accurate if features
          interact;
        - ``"random"``: a random partition for every neuron (the paper's);
        - ``"shared"``: one random partition for all neurons of a layer, so that the
          layer runs as dense blocks;
        - ``"contiguous"``: runs of neighbouring columns, the same for all neurons;
        - ``"feature"``: columns that the neurons use alike stay together, the same for
          all neurons;
        - ``"groups"``: the columns of a group stay together, see `feature_groups`;
        - a callable ``f(weight, n_children, rng)`` that returns an int array of the
          shape of `weight`, (n_neurons, n_inputs): the child of each edge. It is
          called once more before training, on the initial weights, so that a mistake
          raises early;
        - a rule of your own, see :class:`~sklearn_fpe.nn.SplitRule`.

    feature_groups : array-like of shape (n_features,), default=None
        Group labels of the columns of X, for ``split="groups"``. Deeper layers are
        then split ``"shared"``.

    prune : {"auto", "gradual", "magnitude", "structured", "rewired"} or \
            sklearn_fpe.nn.PruneRule, default="auto"
        How the network is pruned to the budget.

        - ``"auto"``: ``"gradual"``; ``"magnitude"`` for `partial_fit`, because the
          budget holds after every call;
        - ``"gradual"``: keep everything at the split, and remove the weights of least
          saliency step by step until three quarters of the epochs are over. Until then
          the whole expanded network trains, at about 20 bytes a weight (value,
          gradient, two running means, masks);
        - ``"magnitude"``: remove the smallest weights of all layers at the split;
        - ``"structured"``: remove the least used inputs of a block and the weakest
          children at the split. The remaining matrices are dense, so the matrix
          products cost as much as the parent's. Needs a split that all neurons of a
          layer share;
        - ``"rewired"``: keep dense blocks as well, and move edges inside them during
          the fine-tuning: the smallest weights are replaced by the edges with the
          largest gradients. Needs a split that all neurons of a layer share;
        - a rule of your own, see :class:`~sklearn_fpe.nn.PruneRule`.

    skip_connection : bool, default=False
        Whether to add a linear map from the inputs straight to the outputs, which
        hidden layers then need not learn. It is trained and pruned with the rest under
        the budget of the network without it: more weights to choose from, not more
        parameters. It and the output layer start from zero. Not with
        ``prune="structured"`` or ``"rewired"``, which keep dense blocks only.

    n_estimators : int, default=1
        Number of networks whose predictions are averaged: probabilities in
        classification. They differ in their initial weights and random splits, read the
        same batches, and train as one stacked network, which takes less time than one
        after another. `budget` is the budget of each network; `budget_` and
        `n_nonzero_` count all networks.

    warmup : int or float in [0, 1], default=0.1
        Epochs before the split, as a number or as a fraction of `max_iter`: 1 is one
        epoch, 1.0 is all epochs. In ``partial_fit`` it counts calls.

    budget : int, default=None
        Number of non-zero parameters, biases included. None: as many as the dense
        parent has.

    activation : {"identity", "logistic", "tanh", "relu", "gelu", "silu"} or \
            sklearn_fpe.nn.Activation, default="relu"
        Activation of the hidden layers. The first four train fastest, because their
        gradients are computed without autograd. For an activation of your own, see
        :class:`~sklearn_fpe.nn.Activation`.

    batch_size : int or "auto", default="auto"
        Rows per step. ``"auto"``: the power of two nearest to a sixteenth of the
        rows, between 16 and 256.

    learning_rate : {"cosine", "constant"}, default="cosine"
        Schedule of the learning rate over the epochs: half a cosine from
        `learning_rate_init` down to 0, or constant. `partial_fit` is always constant.

    learning_rate_init : float or "auto", default="auto"
        Learning rate of AdamW at the start. ``"auto"``: 6.4 divided by the number of
        columns of X, between 0.01 and 0.1; a fifth of that where it is constant.

    max_iter : int, default=50
        Epochs, warm-up and fine-tuning together.

    standardize : bool, default=True
        Whether to bring the columns of X to mean 0 and variance 1 for training. The
        scaling is folded into the first layer when training ends: predictions take no
        extra time, and `coefs_` act on X as it is. A column whose values differ only by
        rounding counts as constant, with a warning.

    weight_decay : float or "auto", default="auto"
        Decoupled weight decay of AdamW, per unit of learning rate. ``"auto"``:
        ``d / 60 * sqrt(d / n)``, at most 3, for d columns and n rows, for which
        `partial_fit` takes 10 000. Without a skip connection, and with u < 32 units in
        the narrowest hidden layer, ``u / 32`` of that. Units are parents in the
        warm-up and children after it.

    early_stopping : bool, default=False
        Whether to stop the fine-tuning when the score on held-out rows no longer
        improves, and keep the best weights. The warm-up always runs to its end.

    scoring : str, callable or None, default=None
        Score of the held-out rows that `early_stopping` watches.

        - None: the coefficient of determination, R²;
        - ``"loss"``: minus the training loss of the held-out rows;
        - another string: a scorer of scikit-learn, such as
          ``"neg_mean_absolute_error"``;
        - a callable ``f(estimator, X, y)`` that returns a number, the higher the
          better.

        The weights of the held-out rows are passed as `sample_weight`.

    validation_fraction : float in (0, 1), default=0.1
        Share of the rows that is held out if `early_stopping` and no `X_val` is
        given, stratified by class in classification.

    n_iter_no_change : int or inf, default=10
        Stop after more than this many epochs in a row without improvement, if
        `early_stopping`.

    tol : float, default=1e-4
        Least improvement of the score that counts for `early_stopping`.

    refit : bool, default=False
        Whether to train a new network on all rows, held-out rows included, for the
        `best_iter_` epochs that `early_stopping` found best, with the same schedule of
        the learning rate. Not with `X_val` or `skorch_callbacks`.

    warm_start : bool, default=False
        Whether `fit` continues to fine-tune the network of an earlier `fit`, for
        `max_iter` epochs, with its partition, its masks and its scaling. Parameters
        that determine the network, such as `expansion`, must stay as they are.

    device : str or torch.device, default="auto"
        Device that computes. ``"auto"``: a CUDA device, if there is one and if X is on
        it or rows times parameters of the expanded network are at least 2**28; else the
        CPU, because it has finished smaller fits before a GPU is set up.

    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Precision of the matrix products in training. ``"tf32"`` rounds factors to 10
        bits after the point on CUDA devices that support it, which is several times
        faster for wide layers; on the CPU it means ``"float32"``. The setting of torch
        is restored at the end, but holds for all threads of the process meanwhile.
        ``"bfloat16"`` uses autocast. The weights stay float32.

    skorch_callbacks : list of skorch callbacks, default=None
        Callbacks of the skorch net that runs the training. They cost a synchronisation
        per batch, and autograd computes the gradients. Copies of them are used. Warm-up
        and fine-tuning are separate trainings, each with its own history; a callback
        that stops the training stops the phase. With `early_stopping` they see the
        held-out rows, as ``valid_loss`` and in their scorers. Learning rate schedulers
        are refused, because the learning rate is set at every epoch.

    memory : str, path-like or joblib.Memory, default=None
        Cache of the dense warm-up, which does not depend on `expansion`, `split`,
        `prune` and `budget`: a search over them trains it once per fold. Needs an
        integer `random_state` and no `skorch_callbacks`. Its files are pickles, which
        can run any code when they are read: use a folder that only you can write.

    random_state : int, RandomState instance or None, default=None
        Source of the initial weights, the split, the shuffling and the hold-out, as
        independent streams. The global generators are not touched.

    distributed : bool, default=False
        Whether this is one of several processes that fit one model together, each on
        its own rows. All of them call `fit` with the same parameters, and all end with
        the same model. The processes form torch's default process group; if there is
        none, `fit` creates it from torchrun's environment variables. Not with
        `skorch_callbacks` or `memory`.

    verbose : bool or int, default=False
        Whether to print a line per epoch.

    Attributes
    ----------
    out_activation_ : str
        ``"identity"``.

    learned_ : object
        The whole fitted state as one frozen object: the network, the standardisation of
        inputs and targets, the recipe and the history of the training. A fit replaces
        it at once.

    module_ : sklearn_fpe.nn.MLP or sklearn_fpe.nn.Ensemble
        The fitted network, acting on X as it is; several `n_estimators` as one.

    estimators_ : list
        The `n_estimators` networks, each as a fitted estimator of its own. Weights,
        such as `coefs_`, and the record of the validation belong to one network: with
        several, they are attributes of these estimators only.

    expansion_ : tuple of int
        Children made per parent neuron, for each hidden layer.

    budget_ : int
        Non-zero parameters allowed, biases included.

    n_nonzero_ : int
        Kept parameters, biases included; never above `budget_`.

    coefs_ : list of scipy.sparse.csr_array
        Weight matrices of shape (n_inputs, n_units), made on demand.

    skip_coef_ : scipy.sparse.csr_array of shape (`n_features_in_`, `n_outputs_`)
        Weights of the skip connection, in the units of `coefs_`, made on demand; if
        `skip_connection` and there are hidden layers.

    intercepts_ : list of ndarray of shape (n_units,)
        Biases, made on demand.

    loss_curve_ : list of float
        Mean training loss of every epoch, those before a warm start included.

    best_loss_ : float
        Smallest value of `loss_curve_`.

    validation_scores_ : list of float
        Score of the held-out rows, see `scoring`, after every epoch of the
        fine-tuning, if `early_stopping`.

    validation_loss_curve_ : list of float
        Mean loss of the held-out rows after every epoch of the fine-tuning, if
        `early_stopping`.

    best_validation_score_ : float
        Validation score of the weights that were kept, if `early_stopping`. After a
        warm start the earlier weights are scored again, on the held-out rows of this
        fit, and compete, unless `refit` trained them on such rows.

    best_iter_ : int
        Epoch of the last fit, counted from 1 with the warm-up, whose weights were
        kept, if `early_stopping`; 0 if those from before a warm start were. With
        `refit`, the number of epochs of the training on all rows.

    n_iter_ : int
        Epochs that the last `fit` ran, and the calls of `partial_fit` since.

    phase_ : {"warm-up", "fine-tune"}
        ``"warm-up"`` until the network is expanded, then ``"fine-tune"``. Only
        `partial_fit` can leave a model in its warm-up.

    n_layers_ : int
        Layers, input and output included.

    n_outputs_ : int
        Columns of the network's output.

    n_features_in_ : int
        Columns of X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of X, if it has names that are strings.

    See Also
    --------
    FPEClassifier : The same for labels.
    FPETransformer : The hidden activations as features.
    sklearn.neural_network.MLPRegressor : The dense network of scikit-learn.

    Notes
    -----
    Training is in float32 by AdamW; predictions are computed in float64 if X has a
    higher precision than float32. Without `early_stopping` the schedule runs to its
    end. With the same seed, machine and number of threads, two fits give the same bits.
    Progress is shown by scikit-learn's callbacks, ``set_callbacks(ProgressBar())``.

    References
    ----------
    .. [1] "Expand Neurons, Not Parameters", arXiv:2510.04500.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_fpe import FPERegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = FPERegressor((8,), expansion=2, max_iter=20, random_state=0)
    >>> reg.fit(X, y).predict(X).shape
    (442,)
    >>> reg.n_nonzero_ <= reg.budget_
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseFPE._parameter_constraints,
        "skip_connection": ["boolean"],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes=(32,),
        *,
        expansion=4,
        split="auto",
        feature_groups=None,
        prune="auto",
        skip_connection=False,
        n_estimators=1,
        warmup=0.1,
        budget=None,
        activation="relu",
        batch_size="auto",
        learning_rate="cosine",
        learning_rate_init="auto",
        max_iter=50,
        standardize=True,
        weight_decay="auto",
        early_stopping=False,
        scoring=None,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        refit=False,
        warm_start=False,
        device="auto",
        precision="float32",
        skorch_callbacks=None,
        memory=None,
        random_state=None,
        distributed=False,
        verbose=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.expansion = expansion
        self.split = split
        self.feature_groups = feature_groups
        self.prune = prune
        self.skip_connection = skip_connection
        self.n_estimators = n_estimators
        self.warmup = warmup
        self.budget = budget
        self.activation = activation
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.standardize = standardize
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.scoring = scoring
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.refit = refit
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.skorch_callbacks = skorch_callbacks
        self.memory = memory
        self.random_state = random_state
        self.distributed = distributed
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Train one epoch on the given rows.

        The first `warmup` calls are the warm-up (a fraction counts against
        `max_iter`); the next call splits. The standardisation is updated during the
        warm-up and frozen at the split, so the first batches should be
        representative. The learning rate is constant. A call that fails leaves the
        model as it was.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training input.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets; on any device.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; rows of weight 0 are left out.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X):
        """Predict targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions; float64 if X is of higher precision than float32, or if
            float32 cannot hold the units of the targets, else float32.
        """
        targets, outputs = self._run_network(X)
        y = targets.decide(outputs)
        if not np.isfinite(y).all():
            raise ValueError(
                "Input X contains a value too large for float64: the predictions, in "
                "the units of the targets, overflow."
            )
        if outputs.dtype == np.float64 or not targets.fit_single():
            return y
        with np.errstate(over="ignore"):
            narrow = y.astype(np.float32)
        return narrow if np.isfinite(narrow).all() else y

    def score(self, X, y, sample_weight=None):
        """Return the coefficient of determination of the predictions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets; on any device.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        score : float
            The score, at most 1.
        """
        y, sample_weight = self._score_arguments(y, sample_weight)
        return r2(y, self.predict(X), sample_weight)

    @property
    def out_activation_(self):
        """Name of the output activation."""
        return self.learned_.targets.link

    def _make_targets(self):
        return RealTargets()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
