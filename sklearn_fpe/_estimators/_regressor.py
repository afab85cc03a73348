"""FPERegressor."""

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_fpe._estimators._base import BaseFPE
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._targets import RealTargets


class FPERegressor(RegressorMixin, BaseFPE):
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
        split into `expansion` children.

    expansion : int or array-like of int, default=4
        Children per parent neuron, one number for all hidden layers or one for
        each. 1 is the dense baseline under the same schedule. Where the inputs or
        the budget do not allow it, the largest possible one is used, with a
        warning; see `expansion_`.

    split : {"random", "shared", "contiguous", "feature", "groups"} or callable, \
            default="shared"
        How the input edges of a parent are dealt to its children.

        - ``"random"``: at random, every neuron on its own (the paper's);
        - ``"shared"``: at random, one deal for all neurons of a layer;
        - ``"contiguous"``: neighbouring columns together, one deal for all;
        - ``"feature"``: columns that are used alike together, one deal for all;
        - ``"groups"``: the columns of a group together, see `feature_groups`;
        - a callable ``f(weight, n_children, rng)`` that returns an int array of the
          shape of `weight`, (n_neurons, n_inputs): the child of each edge.

    feature_groups : array-like of shape (n_features,), default=None
        Group labels of the columns of X, for ``split="groups"``. Deeper layers are
        then split ``"shared"``.

    prune : {"magnitude", "structured"}, default="magnitude"
        How the network is brought back to the budget.

        - ``"magnitude"``: the smallest weights of all layers go;
        - ``"structured"``: the least used inputs of a block and the weakest children
          go, so that all that is kept is dense: nothing is masked, and the matrix
          products cost what the parent's cost. Needs a split that all neurons of a
          layer share.

    warmup : int or float in [0, 1], default=0.1
        Epochs before the split: a number, or a fraction of `max_iter`; 1 is one epoch,
        1.0 all of them. For ``partial_fit``, calls.

    budget : int, default=None
        Non-zero parameters in all, biases included. None: as many as the dense
        parent has.

    activation : {"identity", "logistic", "tanh", "relu"}, default="relu"
        Activation of the hidden layers.

    batch_size : int or "auto", default="auto"
        Rows per step. ``"auto"``: the power of two nearest to a sixteenth of the
        rows, between 16 and 256.

    learning_rate : {"cosine", "constant"}, default="cosine"
        Course of the learning rate over the epochs: half a cosine from
        `learning_rate_init` down to 0, or constant. `partial_fit` is always
        constant.

    learning_rate_init : float, default=1e-2
        Learning rate of AdamW at the start.

    max_iter : int, default=50
        Epochs, warm-up and fine-tuning together.

    standardize : bool, default=True
        Whether to bring the columns of X to mean 0 and variance 1 for training. The
        scaling is folded into the first layer when training ends: predictions pay
        nothing, `coefs_` act on X as it is.

    weight_decay : float, default=0.0
        Decoupled weight decay of AdamW, per unit of learning rate.

    early_stopping : bool, default=False
        Whether to stop the fine-tuning when the score on held-out rows no longer
        improves, and keep the best weights. The warm-up always runs to its end.

    validation_fraction : float in (0, 1), default=0.1
        Share of the rows that is held out if `early_stopping` and no `X_val` is
        given, stratified by class in classification.

    n_iter_no_change : int or inf, default=10
        Epochs in a row without improvement that `early_stopping` bears; it stops at the
        next one.

    tol : float, default=1e-4
        Least improvement of the score that counts for `early_stopping`.

    warm_start : bool, default=False
        Whether `fit` goes on fine-tuning the network of an earlier `fit`, for
        `max_iter` epochs, with its partition, its masks and its scaling. What shapes
        the network, such as `expansion`, must stay as it is.

    device : str or torch.device, default="auto"
        Where to compute. ``"auto"``: on a CUDA device if there is one, else on the
        CPU.

    precision : {"float32", "bfloat16"}, default="float32"
        Precision of the matrix products in training; with ``"bfloat16"`` by
        autocast, the weights stay float32.

    skorch_callbacks : list of skorch callbacks, default=None
        Callbacks for the skorch net that trains; they cost a synchronisation per
        batch, and gradients by autograd. Copies of them are used. One that stops the
        training stops the phase; the learning rate is set anew at every epoch.

    memory : str or joblib.Memory, default=None
        Cache of the dense warm-up, which does not depend on `expansion`, `split`,
        `prune` and `budget`: a search over them trains it once per fold. Needs an
        integer `random_state` and no `skorch_callbacks`.

    random_state : int, RandomState instance or None, default=None
        Source of the initial weights, the split, the shuffling and the hold-out, as
        independent streams. The global generators are not touched.

    verbose : bool or int, default=False
        Whether to print a line per epoch.

    Attributes
    ----------
    out_activation_ : str
        ``"identity"``.

    module_ : sklearn_fpe.nn.MLP
        The fitted network, acting on X as it is.

    expansion_ : tuple of int
        Children per parent neuron of each hidden layer, as done.

    budget_ : int
        Non-zero parameters allowed, biases included.

    n_nonzero_ : int
        Kept parameters, biases included; never above `budget_`.

    coefs_ : list of scipy.sparse.csr_array
        Weight matrices of shape (n_inputs, n_units), made on demand.

    intercepts_ : list of ndarray of shape (n_units,)
        Biases, made on demand.

    loss_curve_ : list of float
        Mean training loss of every epoch, those before a warm start included.

    best_loss_ : float
        Least of `loss_curve_`.

    validation_scores_ : list of float
        R² on the held-out rows after every epoch of the fine-tuning, if
        `early_stopping`.

    best_validation_score_ : float
        Best of `validation_scores_` and, after a warm start, of what the best weights
        before score now; that of the kept weights.

    n_iter_ : int
        Epochs that the last `fit` ran, and the calls of `partial_fit` since.

    phase_ : {"warm-up", "fine-tune"}
        Whether the network is split yet; it may not be after `partial_fit`.

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
    Training is in float32 by AdamW; predictions are computed in float64 where X is of
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

    def __init__(
        self,
        hidden_layer_sizes=(32,),
        *,
        expansion=4,
        split="shared",
        feature_groups=None,
        prune="magnitude",
        skip_connection=False,
        warmup=0.1,
        budget=None,
        activation="relu",
        batch_size="auto",
        learning_rate="cosine",
        learning_rate_init=1e-2,
        max_iter=50,
        standardize=True,
        weight_decay=0.0,
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
        verbose=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.expansion = expansion
        self.split = split
        self.feature_groups = feature_groups
        self.prune = prune
        self.skip_connection = skip_connection
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
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Train one epoch on the given rows.

        The first `warmup` calls are the warm-up (a fraction counts against
        `max_iter`); the next call splits. Until then the standardisation follows the
        rows seen so far, so that the first of them should tell the spread of the
        columns; afterwards it stands. The learning rate is constant. A call that
        fails leaves the model as it was.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training input.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
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
            Predictions; float64 if X is of higher precision than float32, else
            float32.
        """
        targets, outputs = self._raw_predict(X)
        y = targets.decide(outputs)
        with np.errstate(over="ignore"):
            narrow = y.astype(outputs.dtype, copy=False)
        if np.isfinite(narrow).all():
            return narrow
        # The units of the targets may be out of the range of float32.
        if not np.isfinite(y).all():
            raise ValueError(
                "Input X contains a value too large for float64: the predictions, in "
                "the units of the targets, overflow."
            )
        return y

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
        return super().score(X, *self._score_arguments(y, sample_weight))

    @property
    def out_activation_(self):
        """Name of the output activation."""
        check_is_fitted(self)
        return "identity"

    def _make_targets(self):
        return RealTargets()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
